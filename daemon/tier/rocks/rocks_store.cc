#include "daemon/tier/rocks/rocks_store.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "client/base/log.h"
#include "daemon/tier/rocks/database.h"
#include "daemon/tier/rocks/part_frame.h"
#include "daemon/tier/rocks/row_scan.h"
#include "daemon/tier/rocks/write_group.h"

namespace dyna {
namespace {

constexpr uint64_t kKeptDamaged = 256;  // damaged records that are kept for a look, a process
constexpr size_t kScanBatches = 4;      // of rows, on their way to the executor

class RocksStore final : public SpillStore {
 public:
  RocksStore(const RocksOptions& options, std::unique_ptr<Database> database, SpillPool& pool,
             Executor& executor)
      : options_(options), database_(std::move(database)), pool_(pool), executor_(executor) {
    stats_.state = "ok";
    stats_.budget = options.budget_bytes;
    counted_ = database_->fresh();
    RefreshDisk();
  }

  ~RocksStore() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    database_->db().DisableManualCompaction();  // or one of 20 GB would be waited for
    Answer(DropQueue(Status(StatusCode::kCancelled, "the store is closing")));
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return jobs_ == 0; });
  }

  void PutBlock(BlockWrite write, Done done) override {
    uint64_t bytes = 0;
    for (const PartWrite& part : write.parts) bytes += part.bytes.size();
    Enqueue({std::move(write), std::move(done), bytes});
  }
  void DeleteBlock(const record::BlockKey& key, Done done) override {
    Enqueue({DeleteBlockOp{key}, std::move(done), 0});
  }
  void PutRow(record::Row row, Done done) override {
    Enqueue({std::move(row), std::move(done), 0});
  }
  void DeleteRow(const RowKey& key, Done done) override {
    Enqueue({DeleteRowOp{key}, std::move(done), 0});
  }
  void Flush(Done done) override { Enqueue({FlushOp{}, std::move(done), 0}); }

  void ReadParts(BlockRead read, std::function<void(std::vector<Status>)> done) override {
    const size_t parts = read.parts.size();
    bool room;
    {
      std::lock_guard lock(mutex_);
      room = reads_ < options_.max_queued;
      if (room) ++reads_;
    }
    if (room && StartJob([this, read = std::move(read), done] { RunRead(read, done); })) return;
    {
      std::lock_guard lock(mutex_);
      if (room) --reads_;
      ++stats_.refused;
    }
    executor_.Post([done = std::move(done), parts] {
      done(std::vector<Status>(parts, Status(StatusCode::kRetry, "too many reads are queued", 10)));
    });
  }

  void Scan(std::function<void(std::vector<record::Row>)> batch, Done done) override {
    if (StartJob([this, batch = std::move(batch), done] { RunScan(batch, done); })) return;
    executor_.Post(
        [done = std::move(done)] { done(Status(StatusCode::kRetry, "too much is queued", 10)); });
  }

  void SetBudget(uint64_t bytes) override {
    std::lock_guard lock(mutex_);
    stats_.budget = bytes;
  }

  SpillStats stats() const override {
    std::lock_guard lock(mutex_);
    SpillStats stats = stats_;
    stats.queued = queue_.size() + reads_;
    stats.queued_bytes = queued_bytes_;
    return stats;
  }

 private:
  // ---- jobs

  bool StartJob(std::function<void()> job) {
    {
      std::lock_guard lock(mutex_);
      ++jobs_;
    }
    if (pool_.Post([this, job = std::move(job)] {
          job();
          EndJob();
        }))
      return true;
    EndJob();
    return false;
  }
  void EndJob() {
    std::lock_guard lock(mutex_);
    --jobs_;
    changed_.notify_all();  // under the lock: the destructor may be waiting to free it
  }

  void Answer(std::vector<std::pair<Done, Status>> answers) {
    if (answers.empty()) return;
    executor_.Post([answers = std::move(answers)] {
      for (const auto& [done, status] : answers)
        if (done) done(status);
    });
  }

  // ---- writes

  void Enqueue(WriteOp op) {
    Status refusal;
    {
      std::lock_guard lock(mutex_);
      if (stopping_) {
        refusal = Status(StatusCode::kCancelled, "the store is closing");
      } else if (!counted_ && std::holds_alternative<BlockWrite>(op.what)) {
        refusal = Status(StatusCode::kRetry, "the start-up scan has not finished", 100);
      } else if (!std::holds_alternative<DeleteBlockOp>(op.what) &&
                 (queue_.size() >= options_.max_queued ||
                  (!queue_.empty() && queued_bytes_ + op.bytes > options_.max_queued_bytes))) {
        // A deletion carries nothing, there are no more of them than blocks, and none may be lost.
        refusal = Status(StatusCode::kRetry, "too many writes are queued", 10);
      }
      if (refusal.ok()) {
        queued_bytes_ += op.bytes;
        queue_.push_back(std::move(op));
        if (draining_) return;
        draining_ = true;
      } else {
        ++stats_.refused;
      }
    }
    std::vector<std::pair<Done, Status>> answers;
    if (!refusal.ok()) {
      answers.emplace_back(std::move(op.done), std::move(refusal));
    } else if (!StartJob([this] { Drain(); })) {
      answers = DropQueue(Status(StatusCode::kRetry, "too much is queued", 10));
    }
    Answer(std::move(answers));
  }

  std::vector<std::pair<Done, Status>> DropQueue(const Status& why) {
    std::lock_guard lock(mutex_);
    std::vector<std::pair<Done, Status>> answers;
    for (WriteOp& op : queue_) answers.emplace_back(std::move(op.done), why);
    stats_.refused += queue_.size();
    queue_.clear();
    queued_bytes_ = 0;
    draining_ = false;
    return answers;
  }

  // One group, and then the next in a job of its own, so that reads get their turn.
  void Drain() {
    do RunGroup();
    while (NeedsAnother() && !StartJob([this] { Drain(); }));
  }
  bool NeedsAnother() {
    std::lock_guard lock(mutex_);
    draining_ = !queue_.empty();
    return draining_;
  }

  void RunGroup() {
    WriteGroup::Limits limits;
    bool full_of_garbage, failed_before;
    {
      std::lock_guard lock(mutex_);
      limits = {stats_.live_bytes, stats_.budget, stats_.quarantined < kKeptDamaged};
      // Deleted blobs stay on disk until they are compacted; that lag has a bound too.
      full_of_garbage =
          stats_.budget > 0 &&
          stats_.disk_bytes > stats_.budget + stats_.budget / 4 + 4 * options_.write_buffer_bytes;
      failed_before = commit_failed_;
    }
    if (failed_before) database_->db().Resume().PermitUncheckedError();  // after a full disk
    WriteGroup group(*database_, limits);
    std::vector<std::pair<Done, Status>> answers;
    std::vector<size_t> committed;  // of `answers`: those whose fate is the commit's
    uint64_t bytes = 0;
    bool flush = false;
    while (!flush) {
      WriteOp op;
      {
        std::lock_guard lock(mutex_);
        if (queue_.empty() || !group.Admits(queue_.front())) break;
        if (bytes > 0 && bytes + queue_.front().bytes > options_.group_bytes) break;
        op = std::move(queue_.front());
        queue_.pop_front();
        queued_bytes_ -= op.bytes;
      }
      bytes += op.bytes;
      flush = std::holds_alternative<FlushOp>(op.what);
      Status status;
      if (full_of_garbage && std::holds_alternative<BlockWrite>(op.what)) {
        status = Status(StatusCode::kRetry, "deleted blocks are being compacted away", 1000);
      } else {
        status = group.Add(op);
        if (status.ok()) committed.push_back(answers.size());
      }
      answers.emplace_back(std::move(op.done), std::move(status));
    }
    Status commit = group.Commit();
    if (commit.ok() && flush) commit = database_->Flush();
    if (!commit.ok())
      for (size_t i : committed) answers[i].second = commit;
    Account(group.delta(), commit, answers, full_of_garbage);
    if (flush || bytes > 0) RefreshDisk();
    Answer(std::move(answers));
  }

  void Account(const GroupDelta& delta, const Status& commit,
               const std::vector<std::pair<Done, Status>>& answers, bool full_of_garbage) {
    bool compact = false;
    {
      std::lock_guard lock(mutex_);
      for (const auto& [done, status] : answers) {
        if (status.code() == StatusCode::kInternal) ++stats_.errors;
        if (status.code() == StatusCode::kQuota || status.code() == StatusCode::kRetry)
          ++stats_.refused;
      }
      commit_failed_ = !commit.ok();
      if (commit.ok()) {
        stats_.live_bytes += static_cast<uint64_t>(delta.live_bytes);
        stats_.blocks += static_cast<uint64_t>(delta.blocks);
        stats_.writes += delta.writes;
        stats_.written_bytes += delta.written_bytes;
        stats_.deletes += delta.deletes;
        stats_.quarantined += delta.quarantined;
        ++stats_.commits;
        garbage_ += delta.deleted_bytes;
      }
      // Mostly RocksDB collects by itself as it flushes; this is for what it left. Each costs about
      // a rewrite of what lives, so it waits until a third of that is dead.
      const uint64_t slack = std::max(stats_.live_bytes / 3, 3 * options_.write_buffer_bytes);
      compact = (stats_.disk_bytes > stats_.live_bytes + slack || full_of_garbage) &&
                garbage_ > slack / 2 && !compacting_ && !stopping_;
      if (compact) {
        compacting_ = true;
        garbage_ = 0;
      }
    }
    if (compact && !StartJob([this] { RunCompaction(); })) {
      std::lock_guard lock(mutex_);
      compacting_ = false;
    }
  }

  void RunCompaction() {
    const Status status = database_->Compact();
    RefreshDisk();
    std::lock_guard lock(mutex_);
    compacting_ = false;
    if (!status.ok() && !stopping_) LogWarn("{}: {}", options_.path, status.ToString());
  }

  void RefreshDisk() {
    const uint64_t bytes = database_->DiskBytes(), files = database_->Files();
    std::lock_guard lock(mutex_);
    stats_.disk_bytes = bytes;
    stats_.files = files;
  }

  // ---- reads

  void RunRead(const BlockRead& read, const std::function<void(std::vector<Status>)>& done) {
    std::vector<Status> statuses;
    uint64_t bytes = 0, misses = 0, errors = 0;
    for (const PartRead& part : read.parts) {
      Status status = ReadPart(PartKey(read.key, read.generation, part.id), part.out);
      if (status.ok()) bytes += part.out.size();
      misses += status.code() == StatusCode::kMiss;
      errors += status.code() == StatusCode::kInternal;
      statuses.push_back(std::move(status));
    }
    {
      std::lock_guard lock(mutex_);
      --reads_;
      stats_.reads += read.parts.size();
      stats_.read_bytes += bytes;
      stats_.read_misses += misses;
      stats_.errors += errors;
    }
    executor_.Post([done, statuses = std::move(statuses)] { done(statuses); });
  }

  Status ReadPart(const std::string& key, std::span<std::byte> out) {
    rocksdb::PinnableSlice value;
    const auto status =
        database_->db().Get(database_->read_options(), database_->blocks(), key, &value);
    if (status.IsNotFound()) return Status(StatusCode::kMiss, "not stored");
    if (!status.ok() && !status.IsCorruption()) return FromRocks(status, "read");
    const Status opened =
        status.ok() ? OpenPart(key, value.ToStringView(), out) : Internal(status.ToString());
    if (opened.code() != StatusCode::kInternal) return opened;
    Enqueue({QuarantinePartOp{key}, nullptr, 0});
    return Status(StatusCode::kMiss, "damaged, and quarantined");
  }

  void RunScan(const std::function<void(std::vector<record::Row>)>& batch, const Done& done) {
    ScanTotals totals;
    const Status status = ScanRows(*database_, totals, [&](ScanBatch found) {
      for (std::string& key : found.damaged) Enqueue({QuarantineRowOp{std::move(key)}, nullptr, 0});
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || *in_flight_ < kScanBatches; });
      if (stopping_) return false;
      ++*in_flight_;
      lock.unlock();
      executor_.Post(
          [this, rows = std::move(found.rows), batch, alive = std::weak_ptr(in_flight_)]() mutable {
            batch(std::move(rows));
            if (alive.expired()) return;  // the store is gone; only the loop thread destroys it
            std::lock_guard relock(mutex_);
            --*in_flight_;
            changed_.notify_all();
          });
      return true;
    });
    if (status.ok()) {
      std::lock_guard lock(mutex_);
      if (!counted_) {
        // Added, because rows may have been deleted meanwhile.
        stats_.live_bytes += totals.live_bytes;
        stats_.blocks += totals.blocks;
        counted_ = true;
      }
    }
    executor_.Post([done, status] { done(status); });
  }

  const RocksOptions options_;
  std::unique_ptr<Database> database_;
  SpillPool& pool_;
  Executor& executor_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<WriteOp> queue_;
  uint64_t queued_bytes_ = 0;
  uint32_t reads_ = 0;
  size_t jobs_ = 0;
  std::shared_ptr<size_t> in_flight_ = std::make_shared<size_t>(0);  // batches of the scan
  bool draining_ = false, stopping_ = false, counted_ = false;
  bool compacting_ = false, commit_failed_ = false;
  uint64_t garbage_ = 0;
  SpillStats stats_;
};

}  // namespace

Result<std::unique_ptr<SpillStore>> OpenRocksStore(const RocksOptions& options, SpillPool& pool,
                                                   Executor& executor) {
  DYNA_ASSIGN_OR_RETURN(std::unique_ptr<Database> database, Database::Open(options));
  return std::unique_ptr<SpillStore>(
      std::make_unique<RocksStore>(options, std::move(database), pool, executor));
}

}  // namespace dyna
