// Writes that go to the disk together: one atomic batch, in a bank one sync.
//
// Spill thread; one group of a store at a time.
#pragma once

#include <rocksdb/write_batch.h>

#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>

#include "daemon/tier/rocks/database.h"
#include "daemon/tier/spill_store.h"

namespace dyna {

struct DeleteBlockOp {
  record::BlockKey key;
};
struct DeleteRowOp {
  RowKey key;
};
// What a read or the scan found damaged; checked once more before it is moved.
struct QuarantinePartOp {
  std::string part_key;
};
struct QuarantineRowOp {
  std::string row_key;
};
struct FlushOp {};

struct WriteOp {
  std::variant<BlockWrite, DeleteBlockOp, record::Row, DeleteRowOp, QuarantinePartOp,
               QuarantineRowOp, FlushOp>
      what;
  SpillStore::Done done;
  uint64_t bytes = 0;  // of payload
  // Two operations of one key never share a group: the second has to see what the first did.
  std::string Key() const;
};

// What a group changes in the books, once it is committed.
struct GroupDelta {
  int64_t live_bytes = 0, blocks = 0;
  uint64_t writes = 0, written_bytes = 0, deletes = 0, deleted_bytes = 0, quarantined = 0;
};

class WriteGroup {
 public:
  struct Limits {
    uint64_t live_bytes = 0;   // before the group
    uint64_t budget = 0;       // 0: none
    bool keep_damaged = true;  // false: what is damaged is deleted, the quarantine is full
  };
  WriteGroup(Database& database, const Limits& limits) : database_(database), limits_(limits) {}

  // Whether the operation may still join.
  bool Admits(const WriteOp& op) const { return keys_.count(op.Key()) == 0; }
  // Not OK: it is refused, and the group goes on without it.
  Status Add(const WriteOp& op);
  // All or nothing.
  Status Commit();
  const GroupDelta& delta() const { return delta_; }

 private:
  struct Stored {
    record::BlockMeta meta;
    uint64_t row_bytes = 0;
  };
  Result<std::optional<Stored>> ReadStored(const record::BlockKey& key);
  Status Put(const BlockWrite& write);
  Status PutPart(const std::string& key, std::span<const std::byte> bytes);
  Status Delete(const record::BlockKey& key);
  Status PutRow(const record::Row& row);
  Status DeleteRow(const RowKey& key);
  Status Quarantine(const QuarantinePartOp& op);
  Status Quarantine(const QuarantineRowOp& op);
  Status MoveToQuarantine(const std::string& key, const rocksdb::Slice& value);
  void CountRemoved(const Stored& stored);

  Database& database_;
  const Limits limits_;
  rocksdb::WriteBatch batch_;
  std::set<std::string> keys_;
  GroupDelta delta_;
};

}  // namespace dyna
