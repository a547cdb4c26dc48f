// The policies behind the table of policy.cc, one file each. Only policy.cc and they include it.
#pragma once

#include <memory>

#include "daemon/policy/policy.h"

namespace dyna {

Result<std::unique_ptr<Policy>> MakeDynacompressPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeFullPolicy(const PolicyOptions& options);
Result<std::unique_ptr<Policy>> MakeUniformPolicy(const PolicyOptions& options);

}  // namespace dyna
