// The proposal's layer budget (policy 5): sum over layers of ceil(L / kappa_l) <= C_max, a bound on
// the tokens of one chain that are kept by themselves, whatever policy chose them. n_l = L /
// kappa_l is the mean over the kv heads of layer l; every layer counts, also those where nothing
// may go.
//
// Kept at any price: pinned tokens, layers of which no report told anything, sliding and opaque
// layers, blocks that stay whole, and, where readers know no masks, one token a tile (its mean is
// all that stands for the others). The rest goes by history: below one theta for all layers.
//
// Thread rule: a value; on whatever thread decides the chain.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "daemon/policy/log2_byte.h"
#include "daemon/policy/policy.h"

namespace dyna {

// How many tokens of each layer lie where, by log2 r, and where theta has to be.
class TokenBudget {
 public:
  explicit TokenBudget(std::span<const int> heads_of_layers);

  // Tokens of one kv head of a layer. A fixed one is kept at any theta.
  void Add(int layer, int eighths, int64_t tokens = 1);
  void AddFixed(int layer, int64_t tokens);

  // The least theta (eighths) whose kept tokens fit; what lies below it goes.
  // 0 = no limit. False: the fixed ones alone are too many.
  bool Solve(int64_t tokens, int* theta) const;
  // Of one kv head after the other: n_l times the heads of the layer.
  int64_t kept_heads(int layer, int theta) const;
  int64_t kept(int layer, int theta) const;  // n_l, rounded up
  int64_t kept(int theta) const;             // of all layers
  double kappa(int layer, int theta) const;  // L / n_l; 1 for none

 private:
  static constexpr int kBins = 64 * kEighths;  // +-32 octaves
  struct Layer {
    std::array<int64_t, kBins> free{};  // tokens that theta decides
    int64_t fixed = 0, tokens = 0, heads = 1;
  };
  std::vector<Layer> layers_;
};

struct TokenFit {
  int64_t before = 0, kept = 0;  // sum of n_l
  bool fits = true;              // false: what stays whole is more than that
};

// Narrows what a policy chose, or for one that chooses nothing what lives today, to `tokens`.
// `chain.importance` is r of policy.md 3, whatever scores the policy asked for; `whole`: [blocks],
// true where no token may go, empty: nowhere. REQUIRES a choice of the chain's shape.
TokenFit FitTokenBudget(const ChainView& chain, std::span<const uint8_t> whole, int64_t tokens,
                        ChainChoice* choice);

}  // namespace dyna
