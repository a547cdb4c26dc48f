#include "daemon/policy/token_budget.h"

#include <algorithm>
#include <bit>

namespace dyna {
namespace {

// theta lies between `-kHalf` (keeps all) and `kHalf` (keeps the fixed ones).
constexpr int kHalf = 32 * kEighths;
int Clamped(int eighths) { return std::clamp(eighths, -kHalf, kHalf - 1); }
size_t Bin(int eighths) {
  const int bin = Clamped(eighths) + kHalf;
  return static_cast<size_t>(bin);
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

uint64_t PinsOf(const ChainView& chain, size_t block) {
  return block == 0 ? (uint64_t{1} << chain.pinned) - 1 : 0;
}

// One chain, its tokens' ranks and what may go.
class Fit {
 public:
  Fit(const ChainView& chain, std::span<const uint8_t> whole, ChainChoice* choice)
      : chain_(chain), whole_(whole), choice_(*choice), blocks_(chain.tokens / kBlockTokens) {}

  TokenFit To(int64_t limit) {
    std::vector<int> heads;
    for (const LayerShape& layer : chain_.spec->layers)
      heads.push_back(std::max<int>(layer.kv_heads, 1));
    TokenBudget budget(heads);
    for (size_t block = 0; block < blocks_; ++block)
      for (const Tile& tile : TilesOf(block)) {
        budget.AddFixed(tile.layer, std::popcount(tile.mask & tile.fixed));
        for (uint64_t left = tile.mask & ~tile.fixed; left != 0; left &= left - 1)
          budget.Add(tile.layer, RankOf(tile, std::countr_zero(left)));
      }
    TokenFit fit;
    int theta = 0;
    budget.Solve(0, &theta);
    fit.before = fit.kept = budget.kept(theta);
    if (limit <= 0 || fit.kept <= limit) return fit;
    fit.fits = budget.Solve(limit, &theta);
    Cut(budget, limit, theta);
    fit.kept = 0;
    for (size_t l = 0; l < kept_.size(); ++l) fit.kept += CeilDiv(kept_[l], heads[l]);
    return fit;
  }

 private:
  struct Tile {
    int layer, head;
    size_t block;
    uint64_t mask;   // what is kept of it so far
    uint64_t fixed;  // of them, those that theta does not decide
    uint64_t* out;   // where the choice has it
  };

  Tile At(int layer, int head, size_t block) {
    const auto l = static_cast<size_t>(layer);
    const size_t at = static_cast<size_t>(head) * blocks_ + block;
    Tile tile{layer, head, block, ~uint64_t{0}, ~uint64_t{0}, &choice_.live[l][at]};
    const uint64_t today =
        chain_.live.empty() || chain_.live[l].empty() ? ~uint64_t{0} : chain_.live[l][at];
    tile.mask = today & (whole_.empty() || whole_[block] == 0 ? *tile.out : ~uint64_t{0});
    const bool free = chain_.spec->layers[l].kind == LayerKind::kFull &&
                      !chain_.importance.empty() && !chain_.importance[l].empty() &&
                      (whole_.empty() || whole_[block] == 0);
    if (!free) return tile;
    tile.fixed = PinsOf(chain_, block);
    const uint64_t others = tile.mask & ~tile.fixed;
    if (chain_.spec->masks || others == 0) return tile;
    int best = std::countr_zero(others);
    for (int t = best + 1; t < kBlockTokens; ++t)
      if ((others >> t & 1) != 0 && R(tile, t) > R(tile, best)) best = t;
    tile.fixed |= uint64_t{1} << best;
    return tile;
  }

  float R(const Tile& tile, int token) const {
    return chain_.importance[static_cast<size_t>(
        tile.layer)][(static_cast<size_t>(tile.head) * blocks_ + tile.block) * kBlockTokens +
                     static_cast<size_t>(token)];
  }
  // A history has the same r for 8 tokens: one logarithm does for them.
  int RankOf(const Tile& tile, int token) {
    const float r = R(tile, token);
    if (r != last_r_) last_rank_ = Clamped(Log2Byte(double{last_r_ = r}));
    return last_rank_;
  }

  const std::vector<Tile>& TilesOf(size_t block) {
    tiles_.clear();
    for (size_t l = 0; l < chain_.spec->layers.size(); ++l)
      for (int h = 0; h < chain_.spec->layers[l].kv_heads; ++h)
        tiles_.push_back(At(static_cast<int>(l), h, block));
    return tiles_;
  }

  // Takes what lies below theta. Of the bin just below it the newest tokens stay as long as they
  // fit: many may share one rank, and all of them would be too many to lose.
  void Cut(const TokenBudget& budget, int64_t limit, int theta) {
    const size_t layers = chain_.spec->layers.size();
    kept_.resize(layers);
    int64_t total = budget.kept(theta);
    for (size_t l = 0; l < layers; ++l) kept_[l] = budget.kept_heads(static_cast<int>(l), theta);
    for (size_t block = blocks_; block-- > 0;) {
      for (const Tile& tile : TilesOf(block)) *tile.out = tile.mask;
      for (int token = kBlockTokens - 1; token >= 0; --token)
        for (const Tile& tile : tiles_) {
          if (((tile.mask & ~tile.fixed) >> token & 1) == 0) continue;
          const int rank = RankOf(tile, token);
          if (rank >= theta) continue;
          const auto l = static_cast<size_t>(tile.layer);
          const bool opens = kept_[l] % chain_.spec->layers[l].kv_heads == 0;  // one more of n_l
          if (rank == theta - 1 && (!opens || total < limit)) {
            ++kept_[l];
            total += opens;
          } else {
            *tile.out &= ~(uint64_t{1} << token);
          }
        }
    }
  }

  const ChainView& chain_;
  std::span<const uint8_t> whole_;
  ChainChoice& choice_;
  const size_t blocks_;
  std::vector<Tile> tiles_;    // of one block
  std::vector<int64_t> kept_;  // [layer], of one kv head after the other
  float last_r_ = 1;
  int last_rank_ = 0;
};

}  // namespace

TokenBudget::TokenBudget(std::span<const int> heads_of_layers) : layers_(heads_of_layers.size()) {
  for (size_t l = 0; l < layers_.size(); ++l) layers_[l].heads = std::max(heads_of_layers[l], 1);
}

void TokenBudget::Add(int layer, int eighths, int64_t tokens) {
  Layer& l = layers_[static_cast<size_t>(layer)];
  l.free[Bin(eighths)] += tokens;
  l.tokens += tokens;
}

void TokenBudget::AddFixed(int layer, int64_t tokens) {
  Layer& l = layers_[static_cast<size_t>(layer)];
  l.fixed += tokens;
  l.tokens += tokens;
}

int64_t TokenBudget::kept_heads(int layer, int theta) const {
  const Layer& l = layers_[static_cast<size_t>(layer)];
  int64_t n = l.fixed;
  for (int bin = std::clamp(theta, -kHalf, kHalf) + kHalf; bin < kBins; ++bin)
    n += l.free[static_cast<size_t>(bin)];
  return n;
}

int64_t TokenBudget::kept(int layer, int theta) const {
  return CeilDiv(kept_heads(layer, theta), layers_[static_cast<size_t>(layer)].heads);
}

int64_t TokenBudget::kept(int theta) const {
  int64_t sum = 0;
  for (size_t l = 0; l < layers_.size(); ++l) sum += kept(static_cast<int>(l), theta);
  return sum;
}

double TokenBudget::kappa(int layer, int theta) const {
  const int64_t n = kept_heads(layer, theta);
  const int64_t all = layers_[static_cast<size_t>(layer)].tokens;
  return n > 0 ? static_cast<double>(all) / static_cast<double>(n) : 1.0;
}

bool TokenBudget::Solve(int64_t tokens, int* theta) const {
  *theta = -kHalf;
  if (tokens <= 0) return true;
  int low = -kHalf - 1, high = kHalf;  // what `high` keeps fits, if anything does
  if (kept(high) > tokens) {
    *theta = high;
    return false;
  }
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    (kept(middle) <= tokens ? high : low) = middle;
  }
  *theta = high;
  return true;
}

TokenFit FitTokenBudget(const ChainView& chain, std::span<const uint8_t> whole, int64_t tokens,
                        ChainChoice* choice) {
  return Fit(chain, whole, choice).To(tokens);
}

}  // namespace dyna
