#include "daemon/policy/token_budget.h"

#include <gtest/gtest.h>

#include <bit>

#include "daemon/policy/policy_testing.h"

namespace dyna {
namespace {

TEST(TokenBudget, FitsForAnyStatistics) {
  auto dice = testing::Dice("token budget");
  for (int round = 0; round < 50; ++round) {
    constexpr int kLayers = 6;
    const std::vector<int> heads{1, 2, 3, 4, 8, 1};
    TokenBudget budget(heads);
    for (int i = 0; i < 600; ++i) {
      const int layer = static_cast<int>(dice() % kLayers);
      const int64_t pins = dice() % 16 == 0 ? 4 : 0;
      budget.AddFixed(layer, pins);
      budget.Add(layer, static_cast<int>(dice() % 900) - 450, 64 - pins);
    }
    const int64_t all = budget.kept(-1000), fixed = budget.kept(1000);
    const int64_t limit = 1 + static_cast<int64_t>(dice() % static_cast<uint64_t>(all));
    int theta;
    const bool fits = budget.Solve(limit, &theta);
    for (int l = 0; l < kLayers; ++l) EXPECT_GE(budget.kappa(l, theta), 1);
    EXPECT_EQ(fits, fixed <= limit);
    EXPECT_LE(budget.kept(theta), fits ? limit : fixed);
    const bool loosest = !fits || budget.kept(theta) == all;
    EXPECT_TRUE(loosest || budget.kept(theta - 1) > limit) << "a lower theta would have fitted";
  }
}

TEST(TokenBudget, NoLimitKeepsAll) {
  const std::vector<int> heads{2};
  TokenBudget budget(heads);
  budget.Add(0, -1000, 64);
  int theta;
  ASSERT_TRUE(budget.Solve(0, &theta));
  EXPECT_EQ(budget.kept(0, theta), 32) << "of two heads, the mean";
  EXPECT_EQ(budget.kappa(0, theta), 1);
}

// A chain with all that may keep a token: random scores and masks, a sliding layer, one of which
// nothing is known, blocks that stay whole, readers with and without masks.
struct Chain {
  Chain(std::mt19937_64& dice, bool masks) {
    spec = testing::SmallSpec(4, 1 + static_cast<int>(dice() % 3));
    spec.masks = masks;
    spec.layers[1].kind = LayerKind::kSliding;
    spec.layers[1].window = 128;
    const size_t blocks = 1 + dice() % 5;
    view.spec = &spec;
    view.tokens = static_cast<uint32_t>(blocks * kBlockTokens);
    words.assign(blocks, 1);
    for (size_t b = 0; b < blocks; ++b) whole.push_back(dice() % 5 == 0);
    for (const LayerShape& layer : spec.layers) {
      auto& r = scores.emplace_back(layer.kv_heads * view.tokens);
      for (float& x : r) x = static_cast<float>(dice() % 16);
      auto& mask = live.emplace_back(layer.kv_heads * blocks);
      for (uint64_t& m : mask) m = dice() | dice();
      auto& chosen = choice.live.emplace_back(layer.kv_heads * blocks);
      for (uint64_t& m : chosen) m = dice() | dice();
    }
    scores[2].clear();
    for (size_t l = 0; l < spec.layers.size(); ++l) {
      view.importance.emplace_back(scores[l]);
      view.live.emplace_back(live[l]);
    }
    view.blocks = words;
  }
  size_t blocks() const { return words.size(); }
  // What the store will make of the choice: whole blocks keep what lives today.
  uint64_t Kept(const ChainChoice& of, size_t layer, size_t at) const {
    return live[layer][at] & (whole[at % blocks()] != 0 ? ~uint64_t{0} : of.live[layer][at]);
  }
  int64_t Tokens(const ChainChoice& of) const {
    int64_t sum = 0;
    for (size_t l = 0; l < spec.layers.size(); ++l) {
      int64_t layer = 0;
      for (size_t at = 0; at < live[l].size(); ++at) layer += std::popcount(Kept(of, l, at));
      sum += (layer + spec.layers[l].kv_heads - 1) / spec.layers[l].kv_heads;
    }
    return sum;
  }
  ContextSpec spec;
  ChainView view;
  std::vector<uint64_t> words;
  std::vector<uint8_t> whole;
  std::vector<std::vector<float>> scores;
  std::vector<std::vector<uint64_t>> live;
  ChainChoice choice;
};

TEST(TokenBudget, NarrowsAnyChainToItsBudget) {
  auto dice = testing::Dice("token budget of a chain");
  for (int round = 0; round < 300; ++round) {
    const Chain chain(dice, round % 2 == 0);
    const int64_t before = chain.Tokens(chain.choice);
    const int64_t limit = 1 + static_cast<int64_t>(dice() % static_cast<uint64_t>(before + 50));
    ChainChoice after = chain.choice;
    const TokenFit fit = FitTokenBudget(chain.view, chain.whole, limit, &after);
    EXPECT_EQ(fit.before, before);
    EXPECT_EQ(fit.kept, chain.Tokens(after));
    if (before <= limit) {
      EXPECT_EQ(after.live, chain.choice.live) << "nothing to do";
      continue;
    }
    EXPECT_TRUE(fit.fits ? fit.kept == limit : fit.kept > limit) << fit.kept << " of " << limit;
    bool gone = false;
    for (size_t l = 0; l < chain.spec.layers.size(); ++l)
      for (size_t at = 0; at < chain.live[l].size(); ++at) {
        const uint64_t was = chain.Kept(chain.choice, l, at), is = chain.Kept(after, l, at);
        EXPECT_EQ(is & ~was, 0u) << "nothing comes back";
        const bool stays = l == 1 || l == 2 || chain.whole[at % chain.blocks()] != 0;
        const uint64_t pins = at % chain.blocks() == 0 ? 15 : 0;
        EXPECT_EQ((was & ~is) & (stays ? ~uint64_t{0} : pins), 0u);
        EXPECT_TRUE(chain.spec.masks || was == 0 || is != 0) << "a tile has something to serve";
        gone |= is != was;
      }
    EXPECT_TRUE(gone || !fit.fits);
  }
}

// The lowest go, in all layers and heads alike.
TEST(TokenBudget, TheLeastImportantGo) {
  auto dice = testing::Dice("theta");
  Chain chain(dice, /*masks=*/true);
  for (uint8_t& w : chain.whole) w = 0;
  for (auto& layer : chain.live)
    for (uint64_t& mask : layer) mask = ~uint64_t{0};
  chain.choice.live = chain.live;
  ChainChoice after = chain.choice;
  const TokenFit fit =
      FitTokenBudget(chain.view, chain.whole,
                     static_cast<int64_t>(2 * chain.view.tokens + chain.view.tokens), &after);
  ASSERT_TRUE(fit.fits);
  float lost = 0, held = 16;
  for (size_t l : {0, 3})
    for (size_t at = 0; at < chain.live[l].size(); ++at)
      for (size_t t = at % chain.blocks() == 0 ? 4 : 0; t < kBlockTokens; ++t) {
        const float r = chain.scores[l][at * kBlockTokens + t];
        if ((after.live[l][at] >> t & 1) != 0)
          held = std::min(held, r);
        else
          lost = std::max(lost, r);
      }
  EXPECT_LE(lost, held);
  EXPECT_GT(lost, 0);
}

}  // namespace
}  // namespace dyna
