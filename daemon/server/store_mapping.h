// From the operator's options to what the parts are told.
#pragma once

#include "daemon/config/options.h"
#include "daemon/net/session_host.h"
#include "daemon/store/store_options.h"

namespace dyna {

// INVALID naming policy.name where no policy is called that.
Status CheckPolicy(const config::Options& options);
StoreOptions StoreOptionsOf(const config::Options& options);
NetLimits NetLimitsOf(const config::Options& options);
UcxOptions UcxOptionsOf(const config::Options& options);

// The tenant of a uid: a configured one by its name, else one of its own.
TenantId TenantOfUid(const config::Options& options, uid_t uid);
TenantId TenantOfName(const std::string& name);

}  // namespace dyna
