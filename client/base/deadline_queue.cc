#include "client/base/deadline_queue.h"

#include <utility>

namespace dyna {

DeadlineQueue::DeadlineQueue(Executor& executor, const Clock& clock)
    : executor_(executor), clock_(clock), self_(std::make_shared<DeadlineQueue*>(this)) {}

DeadlineQueue::~DeadlineQueue() { *self_ = nullptr; }

DeadlineQueue::TimerId DeadlineQueue::Add(TimePoint when, std::function<void()> expired) {
  const TimerId id = next_id_++;
  index_[id] = order_.emplace(when, std::make_pair(id, std::move(expired)));
  Arm();
  return id;
}

bool DeadlineQueue::Cancel(TimerId id) {
  const auto it = index_.find(id);
  if (it == index_.end()) return false;
  order_.erase(it->second);
  index_.erase(it);
  return true;
}

// A wake-up that comes too early (its timer was cancelled) finds nothing due and arms the next.
void DeadlineQueue::Arm() {
  if (order_.empty() || order_.begin()->first >= armed_for_) return;
  armed_for_ = order_.begin()->first;
  executor_.PostAt(armed_for_, [weak = self_, when = armed_for_] {
    DeadlineQueue* queue = *weak;
    if (queue == nullptr || queue->armed_for_ != when) return;  // a nearer one took over
    queue->armed_for_ = TimePoint::max();
    queue->Run();
  });
}

void DeadlineQueue::Run() {
  const auto weak = self_;
  const TimePoint now = clock_.Now();
  while (!order_.empty() && order_.begin()->first <= now) {
    auto [id, expired] = std::move(order_.begin()->second);
    order_.erase(order_.begin());
    index_.erase(id);
    expired();
    if (*weak == nullptr) return;  // the callback destroyed us
  }
  Arm();
}

}  // namespace dyna
