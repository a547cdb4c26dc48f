// Each method's rule on an example small enough to work by hand. Chains of one block or two, the
// pinned tokens 0..3 always kept and within the budget C.
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "daemon/policy/policy.h"
#include "daemon/policy/policy_testing.h"

namespace dyna {
namespace {

using Tokens = std::set<int>;

struct Example {
  Example(std::string name, int budget, int layers = 1, int heads = 1, int tokens = 64)
      : spec(testing::SmallSpec(layers, heads)), words(static_cast<size_t>(tokens) / 64, 99) {
    options.name = std::move(name);
    options.drop.keep = budget / static_cast<double>(tokens);
    scores.assign(static_cast<size_t>(layers),
                  std::vector<float>(static_cast<size_t>(heads * tokens)));
    view.spec = &spec;
    view.tokens = static_cast<uint32_t>(tokens);
    view.blocks = words;
  }
  float& score(int layer, int head, int token) {
    return scores[static_cast<size_t>(layer)]
                 [static_cast<size_t>(head) * view.tokens + static_cast<size_t>(token)];
  }
  void Run() {
    for (const auto& x : scores) view.importance.emplace_back(x);
    auto policy = MakePolicy(options);
    ASSERT_TRUE(policy.ok()) << policy.status().ToString();
    ASSERT_TRUE((*policy)->SelectLive(view, &choice).ok());
  }
  Tokens Kept(int layer = 0, int head = 0) const {
    const size_t blocks = words.size();
    Tokens kept;
    for (uint32_t t = 0; t < view.tokens; ++t)
      if (choice.live[static_cast<size_t>(layer)][static_cast<size_t>(head) * blocks + t / 64] >>
              (t % 64) &
          1)
        kept.insert(static_cast<int>(t));
    return kept;
  }
  ContextSpec spec;
  PolicyOptions options;
  std::vector<uint64_t> words;
  std::vector<std::vector<float>> scores;
  ChainView view;
  ChainChoice choice;
};

// Scores 6 at 10 and 12, 9 at 20, else 0. Means over 3: 4 at 11; 3 at 19, 20, 21; 2 at 9, 10, 12,
// 13. C = 8 leaves two beside 4 pinned and a window of 2: token 11, and of the equal ones the
// first.
TEST(SnapKv, MeanPoolsAndKeepsTheWindow) {
  Example e("snapkv", 8);
  e.options.drop.window = 2;
  e.options.drop.pool = 3;
  e.score(0, 0, 10) = e.score(0, 0, 12) = 6;
  e.score(0, 0, 20) = 9;
  e.Run();
  EXPECT_EQ(e.Kept(), (Tokens{0, 1, 2, 3, 11, 19, 62, 63}));
}

// The same scores. Maxima over 3: 9 at 19, 20, 21, which beat all 6s: the hit and a neighbour stay.
TEST(FastKv, MaxPoolsForEachHead) {
  Example e("fastkv", 8, 1, 2);
  e.options.drop.window = 2;
  e.options.drop.pool = 3;
  e.score(0, 0, 10) = e.score(0, 0, 12) = 6;
  e.score(0, 0, 20) = 9;
  e.score(0, 1, 40) = 1;
  e.Run();
  EXPECT_EQ(e.Kept(0, 0), (Tokens{0, 1, 2, 3, 19, 20, 62, 63}));
  EXPECT_EQ(e.Kept(0, 1), (Tokens{0, 1, 2, 3, 39, 40, 62, 63}));
}

// Its own numbers: the last 8 tokens and pooling over 7. C = 14 leaves two: 33 reaches 30..36.
TEST(FastKv, HasThePapersWindowAndKernel) {
  Example e("fastkv", 14);
  e.score(0, 0, 33) = 1;
  e.Run();
  EXPECT_EQ(e.Kept(), (Tokens{0, 1, 2, 3, 30, 31, 56, 57, 58, 59, 60, 61, 62, 63}));
}

// C = 12: the last 6 are recent, 4 are pinned, two heavy hitters are left: 20 and 10.
TEST(H2o, KeepsHeavyHittersAndHalfRecent) {
  Example e("h2o", 12);
  e.score(0, 0, 10) = 6;
  e.score(0, 0, 11) = 5;
  e.score(0, 0, 20) = 9;
  e.Run();
  EXPECT_EQ(e.Kept(), (Tokens{0, 1, 2, 3, 10, 20, 58, 59, 60, 61, 62, 63}));
}

TEST(H2o, AccumulatesWithoutDecay) {
  PolicyOptions options;
  options.name = "h2o";
  auto policy = MakePolicy(options);
  (*policy)->Imply(&options);
  EXPECT_GT(options.history.half_life_tokens, 1e9);
}

TEST(StreamingLlm, KeepsTheFirstFourAndTheLast) {
  Example e("streamingllm", 8);
  e.Run();
  EXPECT_EQ(e.Kept(), (Tokens{0, 1, 2, 3, 60, 61, 62, 63}));
}

TEST(ExpectedAttention, KeepsTheBestOfEachHead) {
  Example e("expected_attention", 6, 1, 2);
  e.score(0, 0, 7) = .2f;
  e.score(0, 0, 50) = .1f;
  e.score(0, 0, 51) = .05f;
  e.score(0, 1, 8) = 3;
  e.score(0, 1, 9) = 2;
  e.Run();
  EXPECT_EQ(e.Kept(0, 0), (Tokens{0, 1, 2, 3, 7, 50}));
  EXPECT_EQ(e.Kept(0, 1), (Tokens{0, 1, 2, 3, 8, 9}));
}

// 62 keys along the first axis, one against it (30), one across, five times as long (40). The
// directions add up to (61, 1): -cos is 61/n, -1/n and -61/n with n = sqrt(61^2 + 1).
TEST(KeyDiff, ScoresByTheAngleToTheMeanDirection) {
  constexpr int kDim = 16;
  std::vector<float> k(64 * kDim);
  for (size_t t = 0; t < 64; ++t) k[t * kDim] = t % 2 == 0 ? 1 : 3;
  k[30 * kDim] = -2;
  k[40 * kDim] = 0;
  k[40 * kDim + 1] = 5;
  Example e("keydiff", 6);
  (*MakePolicy(e.options))->ScoreKeys(k, kDim, e.scores[0]);
  const double n = std::sqrt(61. * 61 + 1);
  EXPECT_NEAR(e.score(0, 0, 30), 61 / n, 1e-6);
  EXPECT_NEAR(e.score(0, 0, 40), -1 / n, 1e-6);
  EXPECT_NEAR(e.score(0, 0, 0), -61 / n, 1e-6);
  EXPECT_NEAR(e.score(0, 0, 1), -61 / n, 1e-6) << "lengths do not count";
  e.Run();
  EXPECT_EQ(e.Kept(), (Tokens{0, 1, 2, 3, 30, 40}));
}

TEST(Random, KeepsItsNumberAndDoesNotChangeItsMind) {
  Example one("random", 20, 2, 2), two("random", 20, 2, 2), more("random", 30, 2, 2);
  one.Run();
  two.Run();
  more.Run();
  EXPECT_EQ(one.Kept().size(), 20u);
  EXPECT_EQ(one.Kept(), two.Kept());
  EXPECT_NE(one.Kept(0, 0), one.Kept(0, 1));
  EXPECT_NE(one.Kept(0, 0), one.Kept(1, 0));
  for (int t : one.Kept()) EXPECT_TRUE(more.Kept().count(t)) << "one order of all tokens";
}

// Token 9 has 3 and token 5 2.5 in all four (layer, head) pairs; 17 has 8 in one, a mean of 2.
// C = 6 leaves two: 9 and 5, everywhere.
TEST(KvDistill, KeepsTheSameTokensEverywhere) {
  Example e("kvdistill", 6, 2, 2);
  for (int l = 0; l < 2; ++l)
    for (int h = 0; h < 2; ++h) {
      e.score(l, h, 9) = 3;
      e.score(l, h, 5) = 2.5f;
    }
  e.score(1, 0, 17) = 8;
  e.Run();
  for (int l = 0; l < 2; ++l)
    for (int h = 0; h < 2; ++h) EXPECT_EQ(e.Kept(l, h), (Tokens{0, 1, 2, 3, 5, 9}));
}

// Four layers, C = 8, a window of 2: base 2 a layer. The best 2 x 4 of all candidates are
// 9 8 7 6 of layer 0, 5.5 and 1 of layer 1, 1 of layer 2 and 1 of layer 3: counts 4, 2, 1, 1, which
// are the budgets already (their sum is 8). The .5s lose.
TEST(DynamicKv, GivesLayersWhatAGlobalTopKFinds) {
  Example e("dynamickv", 8, 4);
  e.options.drop.window = 2;
  e.options.drop.pool = 1;
  const float scores[4][4] = {{9, 8, 7, 6}, {5.5, 1, 0, 0}, {1, .5, 0, 0}, {1, .5, 0, 0}};
  for (int l = 0; l < 4; ++l)
    for (int i = 0; i < 4; ++i) e.score(l, 0, 10 + 10 * i) = scores[l][i];
  e.Run();
  EXPECT_EQ(e.Kept(0), (Tokens{0, 1, 2, 3, 10, 20, 30, 40, 62, 63}));
  EXPECT_EQ(e.Kept(1), (Tokens{0, 1, 2, 3, 10, 20, 62, 63}));
  EXPECT_EQ(e.Kept(2), (Tokens{0, 1, 2, 3, 10, 62, 63}));
  EXPECT_EQ(e.Kept(3), (Tokens{0, 1, 2, 3, 10, 62, 63}));
}

// A layer that has all the attention is held to 10 x base = 10 candidates: of the best 1 x 4 all
// are its, so its budget is the 4 that base 1 gives to four layers and the others' 0.
TEST(DynamicKv, OneLayerMayTakeAll) {
  Example e("dynamickv", 7, 4);
  e.options.drop.window = 2;
  e.options.drop.pool = 1;
  for (int t = 10; t < 40; ++t) e.score(2, 0, t) = static_cast<float>(t);
  e.Run();
  EXPECT_EQ(e.Kept(2), (Tokens{0, 1, 2, 3, 36, 37, 38, 39, 62, 63}));
  EXPECT_EQ(e.Kept(1), (Tokens{0, 1, 2, 3, 62, 63}));
}

// A steep sigmoid is a threshold. Tile 0: r = 64 of 128 tokens, A = 1/2: b = 8 (1 - 1/2) = 4, and
// A > tau: all but the pinned are pruned. Tile 1: A = 0: b = 8, nothing is. Inverted, as printed.
TEST(Printed, IsInvertedAsPrinted) {
  Example e("printed", 0, 1, 1, 128);
  e.options.printed = {2, 8, 1, 1000, .25};
  for (int t = 0; t < 64; ++t) e.score(0, 0, t) = 64;
  e.Run();
  EXPECT_EQ(e.choice.bits[0], (std::vector<float>{4, 8}));
  EXPECT_EQ(e.choice.live[0][0], 15u);
  EXPECT_EQ(e.choice.live[0][1], ~uint64_t{0});
}

// b never falls below b_min: A = 1 wants 8 (1 - 1) = 0.
TEST(Printed, KeepsBMin) {
  Example e("printed", 0);
  for (int t = 0; t < 64; ++t) e.score(0, 0, t) = 64;
  e.Run();
  EXPECT_EQ(e.choice.bits[0], (std::vector<float>{2}));
}

// Three tiles of r = 4, 1/4 and 1: ranks 1, 0, 1/2: b = 8, max(2, 0) = 2, 4. log2 r = 2, -2, 0
// against tau = -1: only the second is pruned.
TEST(PrintedCorrected, GivesRankBitsAndPrunesWhatNobodyReads) {
  Example e("printed_corrected", 0, 1, 1, 192);
  e.options.printed = {2, 8, 1, 1000, -1};
  for (int t = 0; t < 192; ++t) e.score(0, 0, t) = t < 64 ? 4.f : t < 128 ? .25f : 1.f;
  e.Run();
  EXPECT_EQ(e.choice.bits[0], (std::vector<float>{8, 2, 4}));
  EXPECT_EQ(e.choice.live[0][0], ~uint64_t{0});
  EXPECT_EQ(e.choice.live[0][1], 0u);
  EXPECT_EQ(e.choice.live[0][2], ~uint64_t{0});
}

// A gentle one prunes the share that it says: r = 1, lambda = 4, tau = 1/4: sigmoid(1) = .731.
TEST(PrintedCorrected, PrunesTheShareItSays) {
  Example e("printed_corrected", 0, 1, 1, 64 * 64);
  for (size_t b = 0; b < e.words.size(); ++b) e.words[b] = 1000 + b;
  e.options.printed.tau = .25;
  for (float& r : e.scores[0]) r = 1;
  e.Run();
  EXPECT_NEAR(static_cast<double>(e.Kept().size()) / 4096, 1 - .731, .03);
}

}  // namespace
}  // namespace dyna
