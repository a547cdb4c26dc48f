#include "daemon/tier/memory_spill.h"

#include <cassert>
#include <cstring>
#include <set>

#include "daemon/tier/block_parts.h"

namespace dyna {

struct MemorySpill::Shared {
  Shared(Executor& e, std::shared_ptr<MemoryDisk> d) : executor(e), disk(std::move(d)) {}

  // The fault of this operation, if one is due.
  Status TakeFault() {
    if (faults == 0) return {};
    --faults;
    if (fault.code() == StatusCode::kInternal) ++stats.errors;
    return fault;
  }
  uint64_t Live(const record::BlockMeta& meta) const {
    return LiveBytes(meta, record::Serialize(meta).size(), 0);
  }

  Executor& executor;
  std::shared_ptr<MemoryDisk> disk;
  SpillStats stats;
  size_t faults = 0;
  Status fault;
  bool holding = false;
  std::deque<std::function<void(Shared&)>> waiting;
  std::set<std::pair<record::BlockKey, PartId>> damaged;
};

MemorySpill::MemorySpill(Executor& executor, const std::shared_ptr<MemoryDisk>& disk)
    : disk_(disk), shared_(std::make_shared<Shared>(executor, disk)) {
  shared_->stats.state = "ok";
  for (const auto& [key, block] : disk_->blocks) {
    shared_->stats.live_bytes += shared_->Live(block.meta);
    ++shared_->stats.blocks;
  }
}

MemorySpill::~MemorySpill() = default;

void MemorySpill::Enqueue(std::function<void(Shared&)> operation) {
  if (shared_->holding) return shared_->waiting.push_back(std::move(operation));
  shared_->executor.Post(
      [shared = shared_, operation = std::move(operation)] { operation(*shared); });
}

void MemorySpill::PutBlock(BlockWrite write, Done done) {
  if (!done) done = [](const Status&) {};
  Enqueue([write = std::move(write), done = std::move(done)](Shared& s) {
    if (Status fault = s.TakeFault(); !fault.ok()) return done(fault);
    const auto at = s.disk->blocks.find(write.meta.key);
    MemoryDisk::Block* stored = at == s.disk->blocks.end() ? nullptr : &at->second;
    Status status = CheckWrite(write, stored == nullptr ? nullptr : &stored->meta);
    if (!status.ok()) return done(status);
    const uint64_t before = stored == nullptr ? 0 : s.Live(stored->meta);
    const uint64_t after = s.stats.live_bytes - before + s.Live(write.meta);
    if (s.stats.budget > 0 && after > s.stats.budget && after > s.stats.live_bytes) {
      ++s.stats.refused;
      return done(Status(StatusCode::kQuota, "the byte budget is full"));
    }
    MemoryDisk::Block next;
    next.meta = write.meta;
    for (const ListedPart& part : PartsOf(write.meta))
      if (stored != nullptr && stored->parts.count(part.id) > 0)
        next.parts[part.id] = stored->parts[part.id];
    for (const PartWrite& part : write.parts) {
      next.parts[part.id].assign(part.bytes.begin(), part.bytes.end());
      s.damaged.erase({write.meta.key, part.id});
      s.stats.written_bytes += part.bytes.size();
    }
    if (stored == nullptr) ++s.stats.blocks;
    s.disk->blocks[write.meta.key] = std::move(next);
    s.stats.live_bytes = after;
    ++s.stats.writes;
    ++s.stats.commits;
    done({});
  });
}

void MemorySpill::ReadParts(BlockRead read, std::function<void(std::vector<Status>)> done) {
  Enqueue([read = std::move(read), done = std::move(done)](Shared& s) {
    const Status fault = s.TakeFault();
    if (!fault.ok()) return done(std::vector<Status>(read.parts.size(), fault));
    std::vector<Status> statuses;
    const auto at = s.disk->blocks.find(read.key);
    for (const PartRead& part : read.parts) {
      ++s.stats.reads;
      const bool there = at != s.disk->blocks.end() &&
                         at->second.meta.generation == read.generation &&
                         at->second.parts.count(part.id) > 0;
      if (!there || s.damaged.erase({read.key, part.id}) > 0) {
        if (there) {
          at->second.parts.erase(part.id);
          ++s.stats.quarantined;
        }
        ++s.stats.read_misses;
        statuses.push_back(Status(StatusCode::kMiss, "not stored"));
        continue;
      }
      const auto& bytes = at->second.parts[part.id];
      if (bytes.size() != part.out.size()) {
        statuses.push_back(Invalid("out: not the part's length"));
        continue;
      }
      std::memcpy(part.out.data(), bytes.data(), bytes.size());
      s.stats.read_bytes += bytes.size();
      statuses.push_back({});
    }
    done(std::move(statuses));
  });
}

void MemorySpill::DeleteBlock(const record::BlockKey& key, Done done) {
  if (!done) done = [](const Status&) {};
  Enqueue([key, done = std::move(done)](Shared& s) {
    if (Status fault = s.TakeFault(); !fault.ok()) return done(fault);
    const auto at = s.disk->blocks.find(key);
    if (at != s.disk->blocks.end()) {
      s.stats.live_bytes -= s.Live(at->second.meta);
      --s.stats.blocks;
      ++s.stats.deletes;
      s.disk->blocks.erase(at);
    }
    done({});
  });
}

void MemorySpill::PutRow(record::Row row, Done done) {
  if (!done) done = [](const Status&) {};
  Enqueue([row = std::move(row), done = std::move(done)](Shared& s) {
    if (Status fault = s.TakeFault(); !fault.ok()) return done(fault);
    if (Status valid = record::Validate(row); !valid.ok()) return done(valid);
    s.disk->rows[KeyOf(row)] = row;
    done({});
  });
}

void MemorySpill::DeleteRow(const RowKey& key, Done done) {
  if (!done) done = [](const Status&) {};
  Enqueue([key, done = std::move(done)](Shared& s) {
    if (Status fault = s.TakeFault(); !fault.ok()) return done(fault);
    s.disk->rows.erase(key);
    done({});
  });
}

void MemorySpill::Scan(std::function<void(std::vector<record::Row>)> batch, Done done) {
  Enqueue([batch = std::move(batch), done = std::move(done)](Shared& s) {
    if (Status fault = s.TakeFault(); !fault.ok()) return done(fault);
    std::vector<record::Row> rows;
    for (const auto& [key, row] : s.disk->rows) rows.push_back(row);
    for (const auto& [key, block] : s.disk->blocks) rows.push_back(block.meta);
    if (!rows.empty()) batch(std::move(rows));
    done({});
  });
}

void MemorySpill::Flush(Done done) {
  Enqueue([done = std::move(done)](Shared& s) { done(s.TakeFault()); });
}

void MemorySpill::SetBudget(uint64_t bytes) { shared_->stats.budget = bytes; }

SpillStats MemorySpill::stats() const {
  SpillStats stats = shared_->stats;
  stats.disk_bytes = stats.live_bytes;
  stats.queued = shared_->waiting.size();
  return stats;
}

void MemorySpill::FailNext(size_t count, Status status) {
  shared_->faults = count;
  shared_->fault = std::move(status);
}

void MemorySpill::Hold() { shared_->holding = true; }

void MemorySpill::Release(size_t count) {
  for (; count > 0 && !shared_->waiting.empty(); --count) {
    shared_->executor.Post(
        [shared = shared_, op = std::move(shared_->waiting.front())] { op(*shared); });
    shared_->waiting.pop_front();
  }
}

void MemorySpill::ReleaseAll() {
  Release(shared_->waiting.size());
  shared_->holding = false;
}

size_t MemorySpill::held() const { return shared_->waiting.size(); }

void MemorySpill::Damage(const record::BlockKey& key, const PartId& part) {
  assert(disk_->blocks.at(key).parts.count(part) > 0);
  shared_->damaged.insert({key, part});
}

}  // namespace dyna
