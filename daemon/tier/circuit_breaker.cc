#include "daemon/tier/circuit_breaker.h"

#include <algorithm>

namespace dyna {

bool CircuitBreaker::Allow(TimePoint now) {
  switch (state_) {
    case State::kClosed:
      return true;
    case State::kOpen:
      if (now < retry_at_) return false;
      state_ = State::kHalfOpen;
      probing_ = true;
      return true;
    case State::kHalfOpen:
      if (probing_) return false;
      probing_ = true;
      return true;
  }
  return false;
}

void CircuitBreaker::OnSuccess() {
  // Late answers of calls made before it opened prove nothing about now.
  if (state_ == State::kOpen) return;
  state_ = State::kClosed;
  failures_ = 0;
  probing_ = false;
  backoff_ = Duration{0};
}

void CircuitBreaker::OnFailure(TimePoint now) {
  if (state_ == State::kOpen) return;
  ++failures_;
  if (state_ == State::kHalfOpen || failures_ >= options_.failures) Open(now);
}

void CircuitBreaker::OnNeither() { probing_ = false; }

void CircuitBreaker::Open(TimePoint now) {
  backoff_ = backoff_ == Duration{0} ? options_.first_backoff
                                     : std::min(backoff_ * 2, options_.max_backoff);
  retry_at_ = now + backoff_;
  state_ = State::kOpen;
  probing_ = false;
  failures_ = 0;
  ++opened_;
}

Duration CircuitBreaker::RetryAfter(TimePoint now) const {
  if (state_ == State::kClosed) return Duration{0};
  return std::max(retry_at_ - now, Duration{0});
}

}  // namespace dyna
