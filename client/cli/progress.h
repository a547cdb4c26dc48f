// A bar on stderr, for work that takes more than a second; nothing where stderr is no terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace dyna::cli {

class Progress {
 public:
  Progress(std::string doing, uint64_t total, bool quiet);
  ~Progress();  // takes the bar away
  void Advance(uint64_t done);

 private:
  using Clock = std::chrono::steady_clock;
  const std::string doing_;
  const uint64_t total_;
  const bool shown_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
  bool drawn_ = false;
};

}  // namespace dyna::cli
