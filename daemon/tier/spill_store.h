// The seam to a slower tier: what the store asks of RocksDB, of the fake in the tests, and later of
// a shared cold tier. One object is one database: the daemon has two, `spill` and `bank`.
//
// Called on the loop thread only; never blocks. Every completion is posted to the executor given
// at construction, never run inside the call; that of a write may be empty. Writes (PutBlock,
// DeleteBlock, PutRow, DeleteRow) take effect in the order of the calls, so a basis put before a
// block is on disk whenever the block is. A read sees every write that completed before it was
// asked. Spans named in a call stay valid and untouched until its completion has run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "schemas/record.h"
#include "schemas/status.h"

namespace dyna {

// One part of a block: a segment, or the block's history (layer and head 0).
struct PartId {
  enum class Kind : uint8_t { kSegment = 1, kHistory = 2 };
  Kind kind = Kind::kSegment;
  uint16_t layer = 0, head_begin = 0;
  bool operator==(const PartId&) const = default;
  auto operator<=>(const PartId&) const = default;
};

struct PartWrite {
  PartId id;
  std::span<const std::byte> bytes;
};

// A meta row and the parts that come with it, all or nothing. The row lists every part of the
// block; parts of the same generation that are on disk already need not come again (new history, a
// second writer's shard). Another generation than the stored one replaces it: the old
// parts are deleted in the same atomic write, so every listed part must come.
struct BlockWrite {
  record::BlockMeta meta;
  std::vector<PartWrite> parts;
};

struct PartRead {
  PartId id;
  std::span<std::byte> out;  // exactly the part's length
};
struct BlockRead {
  record::BlockKey key;
  uint32_t generation = 0;
  std::vector<PartRead> parts;
};

// What names a row that is not a block's.
struct RowKey {
  enum class Kind : uint8_t { kContext = 1, kBasis = 2, kPrice = 3, kLearner = 4 };
  Kind kind = Kind::kContext;
  uint64_t tenant = 0;
  Fingerprint context = 0;  // kPrice: the tier's number
  uint64_t item = 0;        // kBasis: the name; kLearner: the layer
  bool operator==(const RowKey&) const = default;
  auto operator<=>(const RowKey&) const = default;
};
// REQUIRES a row that is not a block's.
RowKey KeyOf(const record::Row& row);

struct SpillStats {
  bool available = true;        // false: a circuit breaker is open
  uint32_t retry_after_ms = 0;  // until it may be asked again, if it is open
  // Worth asking: works, or it is time to try whether it does.
  bool asks() const { return available || retry_after_ms == 0; }
  std::string state;  // "ok", or why not, for people
  uint64_t budget = 0;
  uint64_t live_bytes = 0;  // of the blocks held: rows and parts; what the budget counts
  uint64_t disk_bytes = 0;  // files, garbage included
  uint64_t files = 0;
  uint64_t blocks = 0;
  uint64_t writes = 0, written_bytes = 0;               // blocks
  uint64_t reads = 0, read_bytes = 0, read_misses = 0;  // parts
  uint64_t deletes = 0;
  uint64_t commits = 0;      // groups of writes; synced ones in a bank
  uint64_t errors = 0;       // operations that failed because the disk did
  uint64_t quarantined = 0;  // damaged records, since the start
  uint64_t refused = 0;      // RETRY (queue full or breaker open) and QUOTA
  uint64_t queued = 0, queued_bytes = 0;
};

class SpillStore {
 public:
  using Done = std::function<void(Status)>;
  virtual ~SpillStore() = default;

  // OK means: stored; in a bank, synced to the disk. QUOTA: over the byte budget, or the disk is
  // full. RETRY: too much is queued already, or the breaker is open. INVALID: the row or the parts
  // contradict each other. INTERNAL: the disk failed.
  virtual void PutBlock(BlockWrite write, Done done) = 0;

  // One status a part, in order: OK, MISS (not there, of another generation, or damaged: then it is
  // quarantined, and `out` undefined), INVALID (`out` is not the part's length), RETRY, INTERNAL.
  virtual void ReadParts(BlockRead read, std::function<void(std::vector<Status>)> done) = 0;

  // Row, segments and history. OK also when there was nothing.
  virtual void DeleteBlock(const record::BlockKey& key, Done done) = 0;

  virtual void PutRow(record::Row row, Done done) = 0;  // REQUIRES not a block's
  virtual void DeleteRow(const RowKey& key, Done done) = 0;

  // All rows, for start-up, before the first PutBlock (the budget counts from then on): contexts,
  // then bases, prices and learner states, then blocks. `batch` runs on the executor; a few batches
  // are in flight at most. Damaged rows are quarantined and left out.
  virtual void Scan(std::function<void(std::vector<record::Row>)> batch, Done done) = 0;

  // OK when everything that was written before it survives a crash of the process.
  virtual void Flush(Done done) = 0;

  virtual void SetBudget(uint64_t bytes) = 0;  // of live bytes; nothing is deleted by it
  virtual SpillStats stats() const = 0;
};

}  // namespace dyna
