// Keeps one connection up: tries again with a growing, jittered delay while the daemon is away.
//
// One thread, the executor's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "client/base/clock.h"
#include "client/base/deadline_queue.h"
#include "client/base/executor.h"
#include "schemas/status.h"

namespace dyna {

struct BackoffOptions {
  Duration first = std::chrono::milliseconds(20);
  Duration max = std::chrono::seconds(5);
};

// The delay before attempt n (0: the first retry): first * 2^n up to max, then a random share of
// 1/2..1 of it, so that the workers of a node do not return in step. `random` is any 64 bits.
Duration BackoffDelay(const BackoffOptions& options, uint32_t n, uint64_t random);

class Reconnector {
 public:
  // Starts one attempt, and calls `done` once, not from inside the call.
  using Attempt = std::function<void(std::function<void(const Status&)> done)>;

  Reconnector(Executor& executor, const Clock& clock, const BackoffOptions& options,
              Attempt attempt);
  ~Reconnector();

  void Start();  // the first attempt, at once
  void Lost();   // the connection that an attempt made has ended
  void Stop();

  // INVALID, UNAUTHENTICATED and UNSUPPORTED will not get better: no further attempt.
  bool gave_up() const { return state_ == State::kGaveUp; }
  bool connected() const { return state_ == State::kConnected; }
  const Status& last_error() const { return last_error_; }
  uint64_t attempts() const { return attempts_; }

 private:
  enum class State : uint8_t { kIdle, kTrying, kWaiting, kConnected, kGaveUp };
  void Try();
  void Ended(const Status& status);

  DeadlineQueue timers_;
  const BackoffOptions options_;
  const Attempt attempt_;
  State state_ = State::kIdle;
  uint32_t failures_ = 0;  // in a row
  uint64_t attempts_ = 0;
  uint64_t epoch_ = 0;  // answers of an attempt before Stop() are nobody's
  Status last_error_;
  std::shared_ptr<Reconnector*> self_;
};

}  // namespace dyna
