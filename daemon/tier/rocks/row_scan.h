// Reads all rows of a database in the order of their keys: contexts, bases, prices, learner states,
// blocks.
//
// Spill thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "daemon/tier/rocks/database.h"
#include "schemas/record.h"

namespace dyna {

struct ScanBatch {
  std::vector<record::Row> rows;
  std::vector<std::string> damaged;  // keys of rows that cannot be read
};
struct ScanTotals {
  uint64_t live_bytes = 0, blocks = 0;
};

// Until `sink` returns false (then CANCELLED). Rows of a later version are left alone and counted
// in the log.
Status ScanRows(Database& database, ScanTotals& totals, const std::function<bool(ScanBatch)>& sink);

}  // namespace dyna
