// Drives a UCX worker from an event loop: progress until nothing is left, arm, sleep on the event
// descriptor. A run is bounded, so that a flood starves nobody; a slow tick counts what the
// descriptor failed to tell.
//
// One thread, the loop's.
#pragma once

#include <memory>

#include "client/base/asio.h"
#include "client/transport/ucx_worker_api.h"

namespace dyna {

class UcxPump : public std::enable_shared_from_this<UcxPump> {
 public:
  UcxPump(asio::io_context& loop, const UcxOptions& options, std::shared_ptr<UcxStats> stats);
  void Start(std::shared_ptr<UcxWorkerApi> worker);
  // The descriptor stays UCX's. Nothing runs after it.
  void Stop();
  // Something was submitted. Cheap; runs later.
  void Kick();

 private:
  void Run();
  void Sleep();
  void Tick();

  asio::io_context& loop_;
  const UcxOptions options_;
  const std::shared_ptr<UcxStats> stats_;
  asio::posix::stream_descriptor descriptor_;
  asio::steady_timer tick_;
  std::shared_ptr<UcxWorkerApi> worker_;  // null once stopped
  bool scheduled_ = false;
  bool sleeping_ = false;
  bool active_ = false;  // since the last tick
  Duration tick_interval_;
  TimePoint last_work_{};
};

}  // namespace dyna
