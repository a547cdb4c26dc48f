// The codec threads, dyna-codec-0, -1, ...: the CPU backend's work (design 4).
//
// Run: the loop's thread. Small jobs run inline: a hop costs more than they do.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "client/base/executor.h"
#include "daemon/store/codec_runner.h"

namespace dyna {

class CodecPool final : public CodecRunner {
 public:
  // `inline_bytes`: what may run on the loop itself.
  CodecPool(Executor& loop, uint32_t threads, size_t inline_bytes = 64u << 10);
  ~CodecPool() override;  // runs what is queued, then joins
  void Run(size_t bytes, std::function<void()> work, std::function<void()> done) override;
  size_t queued() const;
  size_t threads() const { return threads_.size(); }

 private:
  struct Job {
    std::function<void()> work, done;
  };
  void Loop(size_t index);

  Executor& loop_;
  const size_t inline_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> queue_;  // bounded by the requests and demotions that may be in flight
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace dyna
