#include "client/base/asio_executor.h"

#include <memory>

namespace dyna {

void AsioExecutor::Post(Task task) { asio::post(loop_, std::move(task)); }

void AsioExecutor::PostAt(TimePoint when, Task task) {
  // The timer belongs to its handler, and is made on the loop: an io object has one thread.
  asio::post(loop_, [&loop = loop_, when, task = std::move(task)]() mutable {
    auto timer = std::make_shared<asio::steady_timer>(loop, when);
    timer->async_wait([timer, task = std::move(task)](const boost::system::error_code& error) {
      if (!error) task();
    });
  });
}

}  // namespace dyna
