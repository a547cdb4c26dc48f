#include "client/transport/ucx_pump.h"

#include <poll.h>

#include <algorithm>
#include <utility>

namespace dyna {
namespace {

constexpr int kRoundsPerRun = 64;
constexpr int kTickBackOff = 16;  // an idle worker is looked at this much less often

bool Readable(int fd) {
  pollfd p{fd, POLLIN, 0};
  return ::poll(&p, 1, 0) > 0;
}

}  // namespace

UcxPump::UcxPump(asio::io_context& loop, const UcxOptions& options, std::shared_ptr<UcxStats> stats)
    : loop_(loop),
      options_(options),
      stats_(std::move(stats)),
      descriptor_(loop),
      tick_(loop),
      tick_interval_(options.safety_tick) {}

void UcxPump::Start(std::shared_ptr<UcxWorkerApi> worker) {
  worker_ = std::move(worker);
  descriptor_.assign(worker_->event_fd());
  Kick();
  Tick();
}

void UcxPump::Stop() {
  worker_.reset();
  tick_.cancel();
  if (descriptor_.is_open()) (void)descriptor_.release();
}

void UcxPump::Kick() {
  if (scheduled_) return;
  scheduled_ = true;
  asio::post(loop_, [self = shared_from_this()] {
    self->scheduled_ = false;
    self->Run();
  });
}

void UcxPump::Run() {
  int rounds = 0;
  while (worker_ && rounds < kRoundsPerRun && worker_->Progress() > 0) ++rounds;
  if (!worker_) return;  // stopped from a callback
  if (rounds > 0) active_ = true;
  if (rounds == kRoundsPerRun) return Kick();
  if (options_.busy_poll.count() > 0) {
    const TimePoint now = std::chrono::steady_clock::now();
    if (rounds > 0) last_work_ = now;
    if (now - last_work_ < options_.busy_poll) return Kick();
  }
  if (!worker_->Arm()) return Kick();
  Sleep();
}

// A fresh async_wait asks epoll for the present state too, so an event between Arm and here is
// not lost; one that is pending already is told by its edge.
void UcxPump::Sleep() {
  if (sleeping_) return;
  sleeping_ = true;
  descriptor_.async_wait(asio::posix::stream_descriptor::wait_read,
                         [self = shared_from_this()](const boost::system::error_code& error) {
                           self->sleeping_ = false;
                           if (error || !self->worker_) return;
                           ++self->stats_->wakeups;
                           self->last_work_ = std::chrono::steady_clock::now();
                           self->Run();
                         });
}

void UcxPump::Tick() {
  tick_.expires_after(tick_interval_);
  tick_.async_wait([self = shared_from_this()](const boost::system::error_code& error) {
    if (error || !self->worker_) return;
    // A loop that got no time for a while finds tick and event due at once: that is no rescue.
    const bool told = Readable(self->worker_->event_fd());
    self->active_ |= self->worker_->operations() > 0;
    if (self->sleeping_ && self->worker_->Progress() > 0) {
      self->stats_->rescued_wakeups += !told;
      self->active_ = true;
      self->Kick();
    }
    if (!self->worker_) return;
    const Duration base = self->options_.safety_tick;
    self->tick_interval_ = std::exchange(self->active_, false)
                               ? base
                               : std::min(2 * self->tick_interval_, kTickBackOff * base);
    self->Tick();
  });
}

}  // namespace dyna
