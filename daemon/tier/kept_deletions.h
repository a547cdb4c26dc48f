// A SpillStore whose deletions are not lost: one that is refused, or that the disk fails, is asked
// for again until it is done or the key is written anew. Else what was deleted would be back after
// a restart, and its bytes on no account until then. Its caller hears of the first try.
//
// Kept in memory: the process may end before the disk works again. At most as many keys as the disk
// has blocks. Loop thread only, as SpillStore.
#pragma once

#include <memory>

#include "client/base/clock.h"
#include "client/base/executor.h"
#include "daemon/tier/spill_store.h"

namespace dyna {

// Clock and executor outlive the store and its completions.
std::unique_ptr<SpillStore> KeepDeletions(std::unique_ptr<SpillStore> inner, const Clock& clock,
                                          Executor& executor);

}  // namespace dyna
