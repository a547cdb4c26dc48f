// A SpillStore in memory, for tests: the contract of the real one, and faults on demand.
//
// Test thread only. Nothing happens before the executor runs: each call is one task that takes
// effect and completes when a ManualExecutor gets to it; Hold() parks those tasks besides.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "client/base/executor.h"
#include "daemon/tier/spill_store.h"

namespace dyna {

// What survives the store: give it to the next one to play a restart.
struct MemoryDisk {
  struct Block {
    record::BlockMeta meta;
    std::map<PartId, std::vector<std::byte>> parts;
  };
  std::map<record::BlockKey, Block> blocks;
  std::map<RowKey, record::Row> rows;
};

class MemorySpill final : public SpillStore {
 public:
  // The executor outlives the store; `disk` may be shared by stores that follow one another.
  explicit MemorySpill(Executor& executor,
                       const std::shared_ptr<MemoryDisk>& disk = std::make_shared<MemoryDisk>());
  ~MemorySpill() override;

  void PutBlock(BlockWrite write, Done done) override;
  void ReadParts(BlockRead read, std::function<void(std::vector<Status>)> done) override;
  void DeleteBlock(const record::BlockKey& key, Done done) override;
  void PutRow(record::Row row, Done done) override;
  void DeleteRow(const RowKey& key, Done done) override;
  void Scan(std::function<void(std::vector<record::Row>)> batch, Done done) override;
  void Flush(Done done) override;
  void SetBudget(uint64_t bytes) override;
  SpillStats stats() const override;

  // ---- faults
  // The next `count` operations fail with `status` and change nothing.
  void FailNext(size_t count, Status status);
  // From now on operations wait; Release lets the oldest `count` of them go, in order.
  void Hold();
  void Release(size_t count);
  void ReleaseAll();  // and stop holding
  size_t held() const;
  // A bit flips: the next read of the part is a MISS and quarantines it. REQUIRES that it is there.
  void Damage(const record::BlockKey& key, const PartId& part);

  const MemoryDisk& disk() const { return *disk_; }

 private:
  struct Shared;  // outlives the store in its posted tasks
  void Enqueue(std::function<void(Shared&)> operation);

  std::shared_ptr<MemoryDisk> disk_;
  std::shared_ptr<Shared> shared_;
};

}  // namespace dyna
