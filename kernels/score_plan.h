// A ScoreJob checked, and which tokens its queries see: what every backend's Score starts from.
//
// Values only; what they point to is the job's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/backend.h"

namespace dyna {

struct ScorePlan {
  std::vector<SegmentView> views;  // of the chain
  int d = 0, kv_heads = 0, group = 0;
  int queries = 0;  // positions, at most 64
  int64_t first_position = 0;
  int64_t window = 0;  // 0: full

  // INVALID names what of the job cannot be scored; UNSUPPORTED: contexts of fp8.
  static Result<ScorePlan> Of(const ScoreJob& job);

  int64_t Position(int w) const { return first_position + w; }
  int64_t length() const { return static_cast<int64_t>(views.size()) * kBlockTokens; }

  // Tokens that query w sees, held or not: its sinks, or all but those. Empty: begin == end.
  struct Tokens {
    int64_t begin, end;
  };
  Tokens Visible(int w, bool sinks) const {
    int64_t begin = window != 0 ? std::max<int64_t>(0, Position(w) + 1 - window) : 0;
    int64_t end = Position(w) + 1;
    if (sinks) {
      end = std::min<int64_t>(end, kPinnedTokens);
    } else {
      begin = std::max<int64_t>(begin, kPinnedTokens);
    }
    return {begin, std::max(begin, end)};
  }
  // How many tokens besides sinks query w sees: all of them, or the held ones.
  float VisibleCount(int w, bool held) const {
    const Tokens t = Visible(w, false);
    const int64_t end = held ? std::min(t.end, length()) : t.end;
    return static_cast<float>(std::max<int64_t>(end - t.begin, 0));
  }
  // Does any query see a token of `block`?
  bool Seen(size_t block) const {
    const int64_t start = static_cast<int64_t>(block) * kBlockTokens;
    if (Position(queries - 1) < start) return false;
    return window == 0 || Position(0) + 1 - window < start + kBlockTokens;
  }
};

}  // namespace dyna
