// Time as the code sees it. A component takes a Clock& so that its tests turn the hands.
//
// Time points are of the monotonic clock; wall time is only for what is written to disk or shown.
// SystemClock: any thread. FakeClock: the test's thread.
#pragma once

#include <chrono>
#include <cstdint>

namespace dyna {

using Duration = std::chrono::nanoseconds;
using TimePoint = std::chrono::steady_clock::time_point;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimePoint Now() const = 0;
  virtual int64_t UnixMillis() const = 0;
};

class SystemClock final : public Clock {
 public:
  TimePoint Now() const override { return std::chrono::steady_clock::now(); }
  int64_t UnixMillis() const override {
    return std::chrono::duration_cast<std::chrono::milliseconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
  }
};

class FakeClock final : public Clock {
 public:
  TimePoint Now() const override { return now_; }
  int64_t UnixMillis() const override { return unix_ms_; }
  void Advance(Duration by) {
    now_ += by;
    unix_ms_ += std::chrono::duration_cast<std::chrono::milliseconds>(by).count();
  }

 private:
  TimePoint now_{std::chrono::hours(1)};  // not zero: "never" stays distinct
  int64_t unix_ms_ = 1'700'000'000'000;
};

}  // namespace dyna
