// Timers that can be cancelled, many on one wake-up of the executor: request deadlines, leases,
// back-off. Idle (nothing armed) it costs nothing.
//
// One thread: the executor's. Callbacks run from a posted task, never inside a call.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <unordered_map>

#include "client/base/clock.h"
#include "client/base/executor.h"

namespace dyna {

class DeadlineQueue {
 public:
  using TimerId = uint64_t;  // 0 is never given

  DeadlineQueue(Executor& executor, const Clock& clock);
  ~DeadlineQueue();  // what is still armed never runs
  DeadlineQueue(const DeadlineQueue&) = delete;
  DeadlineQueue& operator=(const DeadlineQueue&) = delete;

  TimerId Add(TimePoint when, std::function<void()> expired);
  TimerId AddAfter(Duration delay, std::function<void()> expired) {
    return Add(clock_.Now() + delay, std::move(expired));
  }
  // False when it has run already or never was.
  bool Cancel(TimerId id);
  size_t size() const { return index_.size(); }

 private:
  using Order = std::multimap<TimePoint, std::pair<TimerId, std::function<void()>>>;
  void Arm();
  void Run();

  Executor& executor_;
  const Clock& clock_;
  Order order_;
  std::unordered_map<TimerId, Order::iterator> index_;
  TimerId next_id_ = 1;
  TimePoint armed_for_ = TimePoint::max();
  std::shared_ptr<DeadlineQueue*> self_;  // null inside once we are gone: posted tasks check
};

}  // namespace dyna
