// The executor of an event loop: one io_context that one thread runs.
#pragma once

#include "client/base/asio.h"
#include "client/base/executor.h"

namespace dyna {

// Any thread may post. `loop` must outlive it.
class AsioExecutor final : public Executor {
 public:
  explicit AsioExecutor(asio::io_context& loop) : loop_(loop) {}
  void Post(Task task) override;
  void PostAt(TimePoint when, Task task) override;
  asio::io_context& loop() { return loop_; }

 private:
  asio::io_context& loop_;
};

}  // namespace dyna
