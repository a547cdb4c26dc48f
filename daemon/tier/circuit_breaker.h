// Stops asking something that keeps failing, and tries again now and then: closed (asking), open
// (not asking until a back-off passed), half-open (one question decides).
//
// Single-threaded. Knows no clock: the caller says what time it is.
#pragma once

#include <cstdint>

#include "client/base/clock.h"

namespace dyna {

struct BreakerOptions {
  int failures = 3;  // in a row, to open
  Duration first_backoff = std::chrono::seconds(1);
  Duration max_backoff = std::chrono::minutes(1);  // doubled at each failed attempt up to this
};

class CircuitBreaker {
 public:
  enum class State : uint8_t { kClosed, kOpen, kHalfOpen };
  explicit CircuitBreaker(const BreakerOptions& options) : options_(options) {}

  // May the caller ask now? In kHalfOpen one caller at a time may; its outcome must be reported.
  bool Allow(TimePoint now);
  void OnSuccess();
  void OnFailure(TimePoint now);
  void OnNeither();  // it did not get as far as the disk

  State state() const { return state_; }
  // Until the next attempt; 0 when closed.
  Duration RetryAfter(TimePoint now) const;
  uint64_t opened() const { return opened_; }  // how often

 private:
  void Open(TimePoint now);

  const BreakerOptions options_;
  State state_ = State::kClosed;
  int failures_ = 0;
  bool probing_ = false;
  Duration backoff_{0};
  TimePoint retry_at_{};
  uint64_t opened_ = 0;
};

}  // namespace dyna
