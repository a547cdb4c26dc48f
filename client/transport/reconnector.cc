#include "client/transport/reconnector.h"

#include <algorithm>
#include <utility>

#include "client/base/os.h"

namespace dyna {

Duration BackoffDelay(const BackoffOptions& options, uint32_t n, uint64_t random) {
  const Duration grown = n < 30 ? options.first * (int64_t{1} << n) : options.max;
  const Duration whole = std::min(grown, options.max);
  return whole / 2 + Duration(static_cast<int64_t>(random >> 1) % (whole.count() / 2 + 1));
}

Reconnector::Reconnector(Executor& executor, const Clock& clock, const BackoffOptions& options,
                         Attempt attempt)
    : timers_(executor, clock),
      options_(options),
      attempt_(std::move(attempt)),
      self_(std::make_shared<Reconnector*>(this)) {}

Reconnector::~Reconnector() { *self_ = nullptr; }

void Reconnector::Start() {
  if (state_ == State::kIdle) Try();
}

void Reconnector::Lost() {
  if (state_ != State::kConnected) return;
  failures_ = 0;
  Try();  // a daemon that restarts cleanly is back at once
}

void Reconnector::Stop() {
  ++epoch_;
  state_ = State::kIdle;
}

void Reconnector::Try() {
  state_ = State::kTrying;
  ++attempts_;
  attempt_([weak = self_, epoch = epoch_](const Status& status) {
    if (*weak && (*weak)->epoch_ == epoch) (*weak)->Ended(status);
  });
}

void Reconnector::Ended(const Status& status) {
  if (state_ != State::kTrying) return;
  last_error_ = status;
  if (status.ok()) {
    failures_ = 0;
    state_ = State::kConnected;
    return;
  }
  const StatusCode code = status.code();
  if (code == StatusCode::kInvalid || code == StatusCode::kUnauthenticated ||
      code == StatusCode::kUnsupported) {
    state_ = State::kGaveUp;
    return;
  }
  state_ = State::kWaiting;
  timers_.AddAfter(BackoffDelay(options_, failures_++, RandomU64()), [this, epoch = epoch_] {
    if (epoch == epoch_ && state_ == State::kWaiting) Try();
  });
}

}  // namespace dyna
