#include "daemon/server/codec_pool.h"

#include <string>
#include <utility>

#include "client/base/os.h"

namespace dyna {

CodecPool::CodecPool(Executor& loop, uint32_t threads, size_t inline_bytes)
    : loop_(loop), inline_bytes_(inline_bytes) {
  for (uint32_t i = 0; i < threads; ++i) threads_.emplace_back([this, i] { Loop(i); });
}

CodecPool::~CodecPool() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void CodecPool::Run(size_t bytes, std::function<void()> work, std::function<void()> done) {
  if (bytes <= inline_bytes_) {
    work();
    work = nullptr;
    loop_.Post(std::move(done));
    return;
  }
  {
    std::lock_guard lock(mutex_);
    queue_.push_back({std::move(work), std::move(done)});
  }
  wake_.notify_one();
}

size_t CodecPool::queued() const {
  std::lock_guard lock(mutex_);
  return queue_.size();
}

void CodecPool::Loop(size_t index) {
  SetThreadName("dyna-codec-" + std::to_string(index));
  for (;;) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      job = std::move(queue_.front());
      queue_.pop_front();
    }
    job.work();
    job.work = nullptr;  // what it shares with `done` is dropped on the loop
    loop_.Post(std::move(job.done));
  }
}

}  // namespace dyna
