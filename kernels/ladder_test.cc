#include "kernels/ladder.h"
#include "tests/support/seed.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace dyna {
namespace {

std::vector<float> Falling(int d, double decay) {
  std::vector<float> v;
  for (int c = 0; c < d; ++c) v.push_back(static_cast<float>(std::pow(decay, c)));
  return v;
}

TEST(Ladder, ALevelIsWithinItsTargetAndNeverNarrowerThanTheOneBelow) {
  std::mt19937 random(testing::TestSeed());
  for (const int d : {16, 48, 64, 80, 128, 256}) {
    std::vector<float> variances;
    std::lognormal_distribution<float> any(0, 3);
    for (int c = 0; c < d; ++c) variances.push_back(any(random));
    const auto levels = LadderOf(variances, DefaultRun(d));
    ASSERT_EQ(levels.size(), kLevelTargets.size());
    double error = 1.0001;
    for (size_t i = 0; i < levels.size(); ++i) {
      EXPECT_LE(MeanBits(levels[i]), kLevelTargets[i]);
      EXPECT_LE(PredictedError(levels[i], variances), error);
      error = PredictedError(levels[i], variances);
      for (size_t r = 0; i > 0 && r < levels[i].size(); ++r)
        EXPECT_GE(levels[i][r], levels[i - 1][r]);
    }
  }
}

TEST(Ladder, SpendsBitsWhereTheVarianceIs) {
  const auto levels = LadderOf(Falling(64, .9), 8);
  for (const Widths& widths : levels)
    for (size_t r = 1; r < widths.size(); ++r) EXPECT_LE(widths[r], widths[r - 1]);
  EXPECT_EQ(levels[0], Widths(8, 0));
  EXPECT_EQ(levels[1], (Widths{2, 2, 0, 0, 0, 0, 0, 0}));  // .5: two steps of .25
}

// Worked by hand: variances 8, 1 in two runs. Gains per bit: run 0: 3.5, .466, .0169;
// run 1: .4375, .058, .0021. So: 0->2, 2->4 of run 0, then 0->2 of run 1, and so on.
TEST(Ladder, FollowsGainPerBit) {
  std::vector<float> variances(32, 1.0f);
  for (size_t c = 0; c < 16; ++c) variances[c] = 8.0f;
  const auto levels = LadderOf(variances, 16);
  EXPECT_EQ(levels[3], (Widths{2, 0}));   // 1 bit
  EXPECT_EQ(levels[7], (Widths{4, 0}));   // 2 bits
  EXPECT_EQ(levels[9], (Widths{4, 2}));   // 3 bits
  EXPECT_EQ(levels[10], (Widths{4, 4}));  // 4 bits: run 1's second step is worth .058, run 0's
  EXPECT_EQ(levels[11], (Widths{4, 4}));  // third .0169, but does not fit into 5 bits
}

TEST(Ladder, TiesGoToTheLowerChannel) {
  const auto levels = LadderOf(std::vector<float>(64, 1.0f), 8);
  EXPECT_EQ(levels[1], (Widths{2, 2, 0, 0, 0, 0, 0, 0}));
}

TEST(Ladder, ALayerDropsTargetsThatChangeNothing) {
  const std::vector<float> a = Falling(16, .5), b = Falling(16, .99);
  const std::vector<std::span<const float>> both = {a, b};
  const auto levels = LayerLadder(both, 8);  // two runs: steps of one mean bit
  for (size_t i = 1; i < levels.size(); ++i) EXPECT_NE(levels[i], levels[i - 1]);
  EXPECT_LT(levels.size(), kLevelTargets.size());
  EXPECT_EQ(levels[0], (std::vector<Widths>{{0, 0}, {0, 0}}));
}

TEST(Ladder, AnUnseenHeadHasNoWidths) {
  for (const Widths& widths : LadderOf(std::vector<float>(64, 0.0f), 8))
    EXPECT_EQ(widths, Widths(8, 0));
}

}  // namespace
}  // namespace dyna
