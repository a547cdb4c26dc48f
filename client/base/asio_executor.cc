#include "client/base/asio_executor.h"

#include <memory>

namespace dyna {

void AsioExecutor::Post(Task task) {
  asio::post(loop_, [dropping = dropping_, task = std::move(task)] {
    if (!*dropping) task();
  });
}

void AsioExecutor::PostAt(TimePoint when, Task task) {
  // The timer belongs to its handler, and is made on the loop: an io object has one thread.
  asio::post(loop_, [dropping = dropping_, &loop = loop_, when, task = std::move(task)]() mutable {
    if (*dropping) return;
    auto timer = std::make_shared<asio::steady_timer>(loop, when);
    timer->async_wait(
        [dropping, timer, task = std::move(task)](const boost::system::error_code& error) {
          if (!error && !*dropping) task();
        });
  });
}

}  // namespace dyna
