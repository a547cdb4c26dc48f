// A row that blocks' rows lean on (a context's, a basis'), as a disk has it. A block is written
// only when they are there: else a disk that fails one of them has a block that no start can take.
//
// Thread rule: the loop's. Outlives what it asked its disk for (it lives as long as the store).
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "daemon/tier/spill_store.h"

namespace dyna {

class DiskRow {
 public:
  using Done = SpillStore::Done;
  using Put = std::function<void(Done)>;  // writes the row

  bool there() const { return there_; }
  void Found() { there_ = true; }  // at a start

  // Calls `done` when the row is there, at once where it is, or with why it was not stored. `put`
  // runs in here, and only where no write of it is on its way already.
  void Ensure(const Put& put, Done done) {
    if (there_) return done({});
    waiting_.push_back(std::move(done));
    if (waiting_.size() > 1) return;
    put([this](const Status& status) {
      there_ = status.ok();
      for (const Done& waiter : std::exchange(waiting_, {})) waiter(status);
    });
  }

  // Its content is another now. Where that is not stored the next Ensure writes it.
  void Rewrite(const Put& put) {
    if (!there_ && waiting_.empty()) return;
    put([this](const Status& status) { there_ = there_ && status.ok(); });
  }

 private:
  bool there_ = false;
  std::vector<Done> waiting_;  // not empty: a write is on its way
};

struct DiskRows {
  DiskRow spill, bank;
  DiskRow& on(bool to_bank) { return to_bank ? bank : spill; }
};

}  // namespace dyna
