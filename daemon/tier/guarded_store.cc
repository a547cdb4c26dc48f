#include "daemon/tier/guarded_store.h"

#include <algorithm>
#include <utility>

#include "client/base/log.h"

namespace dyna {
namespace {

// Outlives the store: completions still on their way report to it.
struct Guard {
  Guard(std::string n, const BreakerOptions& options, const Clock& c)
      : name(std::move(n)), breaker(options), clock(c) {}

  void Report(const Status& status) {
    const auto before = breaker.state();
    switch (status.code()) {
      case StatusCode::kInternal:
        last_error = status.ToString();
        breaker.OnFailure(clock.Now());
        break;
      case StatusCode::kRetry:
      case StatusCode::kCancelled:
      case StatusCode::kInvalid:
        breaker.OnNeither();
        break;
      default:
        breaker.OnSuccess();  // a miss and a full budget are answers of a working disk
    }
    if (breaker.state() == before) return;
    if (breaker.state() == CircuitBreaker::State::kOpen) {
      LogError("{}: switched off, next attempt in {:.0f} s: {}", name,
               std::chrono::duration<double>(breaker.RetryAfter(clock.Now())).count(), last_error);
    } else if (breaker.state() == CircuitBreaker::State::kClosed) {
      LogInfo("{}: works again", name);
    }
  }

  uint32_t RetryAfterMs() const {
    const auto wait = std::chrono::ceil<std::chrono::milliseconds>(breaker.RetryAfter(clock.Now()));
    return static_cast<uint32_t>(wait.count());
  }
  Status Refusal() const {
    return Status(StatusCode::kRetry, name + " is off after errors: " + last_error,
                  std::max(RetryAfterMs(), 1u));
  }

  const std::string name;
  CircuitBreaker breaker;
  const Clock& clock;
  std::string last_error;
  uint64_t refused = 0;
};

class GuardedStore final : public SpillStore {
 public:
  GuardedStore(std::string name, std::unique_ptr<SpillStore> inner, const BreakerOptions& options,
               const Clock& clock, Executor& executor)
      : guard_(std::make_shared<Guard>(std::move(name), options, clock)),
        inner_(std::move(inner)),
        executor_(executor) {}

  void PutBlock(BlockWrite write, Done done) override {
    if (Admit(done)) inner_->PutBlock(std::move(write), Watched(std::move(done)));
  }
  void DeleteBlock(const record::BlockKey& key, Done done) override {
    if (Admit(done)) inner_->DeleteBlock(key, Watched(std::move(done)));
  }
  void PutRow(record::Row row, Done done) override {
    if (Admit(done)) inner_->PutRow(std::move(row), Watched(std::move(done)));
  }
  void DeleteRow(const RowKey& key, Done done) override {
    if (Admit(done)) inner_->DeleteRow(key, Watched(std::move(done)));
  }
  void Scan(std::function<void(std::vector<record::Row>)> batch, Done done) override {
    if (Admit(done)) inner_->Scan(std::move(batch), Watched(std::move(done)));
  }
  void Flush(Done done) override {
    if (Admit(done)) inner_->Flush(Watched(std::move(done)));
  }

  void ReadParts(BlockRead read, std::function<void(std::vector<Status>)> done) override {
    if (!guard_->breaker.Allow(guard_->clock.Now())) {
      ++guard_->refused;
      std::vector<Status> refusals(read.parts.size(), guard_->Refusal());
      executor_.Post([done = std::move(done), refusals = std::move(refusals)] { done(refusals); });
      return;
    }
    inner_->ReadParts(std::move(read),
                      [guard = guard_, done = std::move(done)](std::vector<Status> statuses) {
                        Status worst;
                        for (const Status& s : statuses)
                          if (worst.ok() || s.code() == StatusCode::kInternal) worst = s;
                        guard->Report(worst);
                        done(std::move(statuses));
                      });
  }

  void SetBudget(uint64_t bytes) override { inner_->SetBudget(bytes); }

  SpillStats stats() const override {
    SpillStats stats = inner_->stats();
    stats.refused += guard_->refused;
    if (guard_->breaker.state() != CircuitBreaker::State::kClosed) {
      stats.available = false;
      stats.retry_after_ms = guard_->RetryAfterMs();
      stats.state = "off after errors: " + guard_->last_error;
    }
    return stats;
  }

 private:
  bool Admit(Done& done) {
    if (guard_->breaker.Allow(guard_->clock.Now())) return true;
    ++guard_->refused;
    executor_.Post([done = std::move(done), refusal = guard_->Refusal()] {
      if (done) done(refusal);
    });
    return false;
  }
  Done Watched(Done done) {
    return [guard = guard_, done = std::move(done)](Status status) {
      guard->Report(status);
      if (done) done(std::move(status));
    };
  }

  std::shared_ptr<Guard> guard_;
  std::unique_ptr<SpillStore> inner_;
  Executor& executor_;
};

}  // namespace

std::unique_ptr<SpillStore> GuardStore(std::string name, std::unique_ptr<SpillStore> inner,
                                       const BreakerOptions& options, const Clock& clock,
                                       Executor& executor) {
  return std::make_unique<GuardedStore>(std::move(name), std::move(inner), options, clock,
                                        executor);
}

}  // namespace dyna
