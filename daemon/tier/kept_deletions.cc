#include "daemon/tier/kept_deletions.h"

#include <chrono>
#include <map>
#include <set>
#include <utility>

namespace dyna {
namespace {

constexpr std::chrono::seconds kBetween{1};
constexpr size_t kAtOnce = 1024;

bool Undone(const Status& status) {
  return status.code() == StatusCode::kRetry || status.code() == StatusCode::kInternal;
}

class KeptDeletions final : public SpillStore {
 public:
  KeptDeletions(std::unique_ptr<SpillStore> inner, const Clock& clock, Executor& executor)
      : state_(std::make_shared<State>(std::move(inner), clock, executor)) {}

  void DeleteBlock(const record::BlockKey& key, Done done) override {
    State::Delete(state_, key, std::move(done));
  }
  void PutBlock(BlockWrite write, Done done) override {
    const record::BlockKey key = write.meta.key;
    if (!state_->TakesPlaceOfDeleted(key))
      return state_->inner->PutBlock(std::move(write), std::move(done));
    // Where it fails, what was to be deleted may still be there.
    state_->inner->PutBlock(std::move(write), [weak = std::weak_ptr<State>(state_), key,
                                               done = std::move(done)](Status status) {
      if (const auto state = weak.lock(); state && !status.ok()) State::Owe(state, key);
      if (done) done(std::move(status));
    });
  }
  void ReadParts(BlockRead read, std::function<void(std::vector<Status>)> done) override {
    state_->inner->ReadParts(std::move(read), std::move(done));
  }
  void PutRow(record::Row row, Done done) override {
    state_->inner->PutRow(std::move(row), std::move(done));
  }
  void DeleteRow(const RowKey& key, Done done) override {
    state_->inner->DeleteRow(key, std::move(done));
  }
  void Scan(std::function<void(std::vector<record::Row>)> batch, Done done) override {
    state_->inner->Scan(std::move(batch), std::move(done));
  }
  void Flush(Done done) override { state_->inner->Flush(std::move(done)); }
  void SetBudget(uint64_t bytes) override { state_->inner->SetBudget(bytes); }
  SpillStats stats() const override { return state_->inner->stats(); }

 private:
  // Completions that are on their way find it gone when the store is.
  struct State {
    State(std::unique_ptr<SpillStore> store, const Clock& c, Executor& e)
        : inner(std::move(store)), clock(c), executor(e) {}

    static void Delete(const std::shared_ptr<State>& self, record::BlockKey key, Done done) {
      self->owed.erase(key);
      const uint64_t number = ++self->deletions;
      self->on_way[key] = number;
      self->inner->DeleteBlock(key, [weak = std::weak_ptr<State>(self), key, number,
                                     done = std::move(done)](Status status) {
        if (const auto state = weak.lock()) {
          // Else the key was written or deleted anew since.
          const auto asked = state->on_way.find(key);
          if (asked != state->on_way.end() && asked->second == number) {
            state->on_way.erase(asked);
            if (Undone(status)) Owe(state, key);
          }
        }
        if (done) done(std::move(status));
      });
    }
    // What is written now must not be deleted by what was asked before.
    bool TakesPlaceOfDeleted(const record::BlockKey& key) {
      return (owed.erase(key) + on_way.erase(key)) != 0;
    }
    static void Owe(const std::shared_ptr<State>& self, const record::BlockKey& key) {
      self->owed.insert(key);
      if (std::exchange(self->armed, true)) return;
      self->executor.PostAt(self->clock.Now() + kBetween, [weak = std::weak_ptr<State>(self)] {
        if (const auto state = weak.lock()) TryAgain(state);
      });
    }
    static void TryAgain(const std::shared_ptr<State>& self) {
      self->armed = false;
      for (size_t n = 0; n < kAtOnce && !self->owed.empty(); ++n)
        Delete(self, *std::as_const(self->owed).begin(), {});
      if (self->owed.empty()) return;
      const record::BlockKey next = *self->owed.begin();
      Owe(self, next);  // arms the next round
    }

    const std::unique_ptr<SpillStore> inner;
    const Clock& clock;
    Executor& executor;
    std::set<record::BlockKey> owed;
    std::map<record::BlockKey, uint64_t> on_way;  // the newest deletion of each, by number
    uint64_t deletions = 0;
    bool armed = false;
  };

  std::shared_ptr<State> state_;
};

}  // namespace

std::unique_ptr<SpillStore> KeepDeletions(std::unique_ptr<SpillStore> inner, const Clock& clock,
                                          Executor& executor) {
  return std::make_unique<KeptDeletions>(std::move(inner), clock, executor);
}

}  // namespace dyna
