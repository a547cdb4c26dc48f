// Where callbacks run. A component posts to the executor it lives on instead of calling up its
// caller's stack, so that its tests run every step by hand.
//
// Post and PostAt: any thread (AsioExecutor); the test's thread (ManualExecutor). Tasks of one
// executor never run at the same time.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <utility>

#include "client/base/clock.h"

namespace dyna {

class Executor {
 public:
  using Task = std::function<void()>;
  virtual ~Executor() = default;
  // Runs later, never inside this call, in the order of posting.
  virtual void Post(Task task) = 0;
  // Runs once, not before `when`. There is no cancel: a task checks whether it is still wanted
  // (deadline_queue.h turns this into timers that can be cancelled).
  virtual void PostAt(TimePoint when, Task task) = 0;
};

// For tests: nothing runs until the test says so.
class ManualExecutor final : public Executor {
 public:
  explicit ManualExecutor(const Clock& clock) : clock_(clock) {}
  void Post(Task task) override { ready_.push_back(std::move(task)); }
  void PostAt(TimePoint when, Task task) override { timed_.emplace(when, std::move(task)); }

  // Runs one task that is due; false when there is none.
  bool RunOne() {
    while (!timed_.empty() && timed_.begin()->first <= clock_.Now()) {
      ready_.push_back(std::move(timed_.begin()->second));
      timed_.erase(timed_.begin());
    }
    if (ready_.empty()) return false;
    Task task = std::move(ready_.front());
    ready_.pop_front();
    task();
    return true;
  }
  // Until nothing is due; the number of tasks run.
  size_t RunAll() {
    size_t n = 0;
    while (RunOne()) ++n;
    return n;
  }
  size_t pending() const { return ready_.size() + timed_.size(); }
  // As when the process dies: nothing of it runs.
  void DropAll() {
    ready_.clear();
    timed_.clear();
  }

 private:
  const Clock& clock_;
  std::deque<Task> ready_;
  std::multimap<TimePoint, Task> timed_;
};

}  // namespace dyna
