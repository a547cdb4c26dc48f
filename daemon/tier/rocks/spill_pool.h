// The threads that may wait for a disk: dyna-spill-0, -1, ... Every RocksDB call runs on one.
//
// Any thread posts. The queue is bounded; whoever cannot post says RETRY to its caller.
#pragma once

#include <cstddef>
#include <functional>
#include <thread>
#include <vector>

#include "client/base/bounded_queue.h"

namespace dyna {

class SpillPool {
 public:
  explicit SpillPool(int threads = 2, size_t capacity = 16384);
  ~SpillPool();  // runs what is queued, then joins
  SpillPool(const SpillPool&) = delete;
  SpillPool& operator=(const SpillPool&) = delete;

  // False, and `job` dropped, when the queue is full.
  bool Post(std::function<void()> job) { return queue_.TryPush(std::move(job)); }
  size_t queued() const { return queue_.size(); }

 private:
  BoundedQueue<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
};

}  // namespace dyna
