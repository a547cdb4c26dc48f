#include "client/cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace dyna::cli {

Progress::Progress(std::string doing, uint64_t total, bool quiet)
    : doing_(std::move(doing)),
      total_(std::max<uint64_t>(total, 1)),
      shown_(!quiet && isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (drawn_) fmt::print(stderr, "\r\033[K");
}

void Progress::Advance(uint64_t done) {
  const auto now = Clock::now();
  using std::chrono::milliseconds;
  if (!shown_ || now - start_ < milliseconds(700) || now - last_ < milliseconds(100)) return;
  last_ = now;
  drawn_ = true;
  const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(total_));
  const double spent = std::chrono::duration<double>(now - start_).count();
  const int width = 30, full = static_cast<int>(share * width);
  fmt::print(stderr, "\r{} [{}{}] {:3.0f} %  {:.0f} s left\033[K", doing_,
             std::string(static_cast<size_t>(full), '#'),
             std::string(static_cast<size_t>(width - full), '.'), 100 * share,
             share > 0 ? spent / share - spent : 0.0);
  std::fflush(stderr);
}

}  // namespace dyna::cli
