// The proposal's layer budget (policy 5): sum over layers of kept tokens <= C_max, where a token
// is kept when its K and V are not both means. theta by bisection on a histogram of importance.
//
// Thread rule: belongs to the loop.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "daemon/policy/log2_byte.h"

namespace dyna {

class TokenBudget {
 public:
  explicit TokenBudget(int layers) : layers_(static_cast<size_t>(layers)) {}

  // `tokens` of a layer whose log2(h w) is `eighths`, taken per kv head: a layer of n heads counts
  // a token n times and divides. `pinned` of them are kept at any theta.
  void Add(int layer, int eighths, int64_t tokens, int64_t pinned = 0);
  void Remove(int layer, int eighths, int64_t tokens, int64_t pinned = 0);

  // The least theta (eighths) whose kept tokens fit; what lies below it may keep only means.
  // 0 = no limit. False: the pinned ones alone are too many.
  bool Solve(int64_t tokens, int* theta) const;
  int64_t kept(int layer, int theta) const;  // n_l, within [pinned, L]
  double kappa(int layer, int theta) const;  // L / n_l

 private:
  static constexpr int kBins = 64 * kEighths;  // +-32 octaves
  struct Layer {
    std::array<int64_t, kBins> free{};  // tokens that theta decides
    int64_t pinned = 0, tokens = 0;
  };
  std::vector<Layer> layers_;
};

}  // namespace dyna
