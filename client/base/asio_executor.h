// The executor of an event loop: one io_context that one thread runs.
#pragma once

#include <memory>

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
  // From now on tasks are destroyed unrun, where the loop gets to them: what they would call is
  // about to go. The loop's thread.
  void DropTasks() { *dropping_ = true; }

 private:
  asio::io_context& loop_;
  std::shared_ptr<bool> dropping_ = std::make_shared<bool>(false);  // a task may outlive this
};

}  // namespace dyna
