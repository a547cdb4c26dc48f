// A SpillStore behind a circuit breaker: a failing disk costs the tier, never the service (design
// 8). While the breaker is open every call answers RETRY at once and the disk is left alone.
//
// Loop thread only, as SpillStore.
#pragma once

#include <memory>
#include <string>

#include "client/base/clock.h"
#include "client/base/executor.h"
#include "daemon/tier/circuit_breaker.h"
#include "daemon/tier/spill_store.h"

namespace dyna {

// `name` is for the log. Clock and executor outlive the store and its completions.
std::unique_ptr<SpillStore> GuardStore(std::string name, std::unique_ptr<SpillStore> inner,
                                       const BreakerOptions& options, const Clock& clock,
                                       Executor& executor);

}  // namespace dyna
