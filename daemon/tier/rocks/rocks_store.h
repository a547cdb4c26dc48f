// SpillStore on RocksDB (design 8). A `spill` database has no WAL and may be lost; a `bank` has one
// and acknowledges a write when it is synced, many in one group.
//
// The store is used on the loop thread; its work runs on the pool.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "client/base/executor.h"
#include "daemon/tier/rocks/spill_pool.h"
#include "daemon/tier/spill_store.h"
#include "schemas/status.h"

namespace dyna {

struct RocksOptions {
  enum class Kind : uint8_t { kSpill, kBank };
  Kind kind = Kind::kSpill;
  std::string path;  // the store's own directory
  // Of live bytes; 0: no bound. What was deleted leaves the disk when it is compacted: files take
  // up to 1.25 times the budget (beyond it puts wait), and while a compaction runs once the live
  // bytes more.
  uint64_t budget_bytes = 0;
  uint64_t write_buffer_bytes = 64u << 20;  // RocksDB keeps up to three in memory
  uint64_t group_bytes = 8u << 20;          // of one commit, beyond its first block
  uint64_t max_queued_bytes = 256u << 20;   // of writes that wait for their commit
  uint32_t max_queued = 4096;               // writes, and as many reads
};

// Opens or creates it. INVALID, readable: another daemon has it, or it is not ours. A `spill` that
// cannot be read any more is set aside like one of another format; a damaged `bank` is an error:
// its content was promised, and the operator decides. Until Scan has completed writes to a database
// that is not new are answered RETRY (the budget is not known before). Pool and executor outlive
// the store; its destructor waits for the jobs that run and answers CANCELLED to what is queued.
Result<std::unique_ptr<SpillStore>> OpenRocksStore(const RocksOptions& options, SpillPool& pool,
                                                   Executor& executor);

}  // namespace dyna
