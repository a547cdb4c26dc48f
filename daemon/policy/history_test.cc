#include "daemon/policy/history.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "daemon/policy/policy_testing.h"

namespace dyna {
namespace {

constexpr Shard kShard{0, 1, 0, 1};
constexpr uint32_t kStep = 64;

BlockReport Uniform(std::vector<float>* x, float value, uint32_t advance) {
  x->assign(kBlockTokens, value);
  return {0, 0, 1, *x, advance};
}

// Mean of r over many blocks: one byte a group is noisy, its mean is not.
class ManyBlocks {
 public:
  explicit ManyBlocks(HistoryGrain grain) {
    for (uint64_t seed = 1; seed <= 400; ++seed) blocks_.emplace_back(kShard, grain, seed);
  }
  void Report(float x, int times, uint32_t advance = kStep) {
    std::vector<float> values;
    for (int i = 0; i < times; ++i)
      for (BlockHistory& b : blocks_) ASSERT_TRUE(b.Fold(Uniform(&values, x, advance), {}).ok());
  }
  double Mean() const {
    double sum = 0;
    for (const BlockHistory& b : blocks_) {
      float r[8];
      b.Groups(0, 0, r);
      for (float v : r) sum += double{v};
    }
    return sum / double(blocks_.size()) / 8;
  }

 private:
  std::vector<BlockHistory> blocks_;
};

class HistoryGrains : public ::testing::TestWithParam<HistoryGrain> {};

TEST_P(HistoryGrains, UnseenTokenHalvesInItsHalfLife) {
  ManyBlocks blocks(GetParam());
  blocks.Report(4, 400);  // a long past: the bias correction is 1
  const double before = blocks.Mean();
  EXPECT_NEAR(before, 4, .1);
  // Half is reached between 90 and 110 % of 4,096 tokens.
  blocks.Report(0, 4096 * 9 / 10 / kStep);
  EXPECT_GT(blocks.Mean(), before / 2);
  blocks.Report(0, 4096 * 2 / 10 / kStep + 1);
  EXPECT_LT(blocks.Mean(), before / 2);
}

TEST_P(HistoryGrains, FourfoldRiseIsReachedInThreeHalfLives) {
  ManyBlocks blocks(GetParam());
  blocks.Report(1, 400);
  const double before = blocks.Mean();
  blocks.Report(4, 3 * 4096 / kStep);
  EXPECT_GE(blocks.Mean(), before + .85 * (4 * before - before));
  EXPECT_LE(blocks.Mean(), 4.2 * before);
}

INSTANTIATE_TEST_SUITE_P(Both, HistoryGrains,
                         ::testing::Values(HistoryGrain::kGroup, HistoryGrain::kToken));

TEST(BlockHistory, DecayIsExactHoweverReportsAreCut) {
  ManyBlocks often(HistoryGrain::kGroup), seldom(HistoryGrain::kGroup);
  often.Report(2, 64, 64);
  seldom.Report(2, 64, 64);
  often.Report(0, 32, 64);
  seldom.Report(0, 4, 512);  // as many tokens
  EXPECT_NEAR(often.Mean() / seldom.Mean(), 1, .05);
}

TEST(BlockHistory, FirstReportCountsInFull) {
  ManyBlocks blocks(HistoryGrain::kGroup);
  blocks.Report(2, 1);
  EXPECT_NEAR(blocks.Mean(), 2, .05);  // not 2 (1 - rho^64)
}

TEST(BlockHistory, OneReportMovesABoundedStep) {
  HistoryOptions options;
  std::vector<float> x;
  BlockHistory block(kShard, HistoryGrain::kToken, 1);
  float r[64];
  ASSERT_TRUE(block.Fold(Uniform(&x, 1e6f, UINT32_MAX), options).ok());
  block.Tokens(0, 0, r);
  for (float v : r) EXPECT_LE(v, std::exp2(options.max_step + .126));
  const float before = r[0];
  ASSERT_TRUE(block.Fold(Uniform(&x, 0, UINT32_MAX), options).ok());
  block.Tokens(0, 0, r);
  EXPECT_GE(r[0], before * std::exp2(-options.max_step - .126));
}

TEST(BlockHistory, TokensThatWereNotCoveredStay) {
  BlockHistory block(kShard, HistoryGrain::kGroup, 1);
  std::vector<float> x(kBlockTokens, std::numeric_limits<float>::quiet_NaN());
  std::fill(x.begin(), x.begin() + 8, 3.f);
  ASSERT_TRUE(block.Fold({0, 0, 1, x, kStep}, {}).ok());
  float r[8];
  block.Groups(0, 0, r);
  EXPECT_NEAR(r[0], 3, .3);
  for (int g = 1; g < 8; ++g) EXPECT_EQ(r[g], 1);
}

TEST(BlockHistory, OnlyHeadsOfBothAreFolded) {
  BlockHistory block({2, 4, 1, 3}, HistoryGrain::kGroup, 1);
  std::vector<float> x(2 * kBlockTokens, 2.f);
  ASSERT_TRUE(block.Fold({3, 2, 2, x, kStep}, {}).ok());  // heads 2 and 3; 3 is another's
  EXPECT_TRUE(block.observed(3));
  EXPECT_FALSE(block.observed(2));
  float r[8];
  block.Groups(3, 1, r);
  EXPECT_EQ(r[0], 1);
  block.Groups(3, 2, r);
  EXPECT_NEAR(r[0], 2, .2);
  EXPECT_EQ(block.Fold({4, 2, 2, x, kStep}, {}).code(), StatusCode::kInvalid);
}

TEST(BlockHistory, BadValuesAreRefusedAndChangeNothing) {
  BlockHistory block(kShard, HistoryGrain::kGroup, 1);
  const auto before = block.Serialize();
  std::vector<float> x(kBlockTokens, 1.f);
  for (float bad : {-1.f, std::numeric_limits<float>::infinity()}) {
    x[17] = bad;
    const Status status = block.Fold({0, 0, 1, x, kStep}, {});
    EXPECT_EQ(status.code(), StatusCode::kInvalid);
    EXPECT_NE(status.message().find("token 17"), std::string::npos) << status.ToString();
  }
  EXPECT_EQ(block.Fold({0, 0, 2, x, kStep}, {}).code(), StatusCode::kInvalid);
  EXPECT_EQ(block.Serialize(), before);
}

TEST(BlockHistory, ComesBackFromItsBytes) {
  BlockHistory block({1, 3, 0, 2}, HistoryGrain::kToken, 9);
  std::vector<float> x(2 * kBlockTokens);
  auto dice = testing::Dice("history bytes");
  for (float& v : x) v = std::exp2(std::normal_distribution<float>(0, 3)(dice));
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(block.Fold({2, 0, 2, x, 100}, {}).ok());
  auto bytes = block.Serialize();
  ASSERT_EQ(bytes.size(), block.serialized_bytes());
  auto back = BlockHistory::Parse(bytes, 9);
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  EXPECT_EQ(back->Serialize(), bytes);
  // What follows is the same too: rounding goes by the seed and the count of reports.
  ASSERT_TRUE(block.Fold({2, 0, 2, x, 7}, {}).ok());
  ASSERT_TRUE(back->Fold({2, 0, 2, x, 7}, {}).ok());
  EXPECT_EQ(back->Serialize(), block.Serialize());
}

TEST(BlockHistory, DoorRefusesDamage) {
  const auto good = BlockHistory({0, 2, 0, 2}, HistoryGrain::kGroup, 1).Serialize();
  ASSERT_TRUE(BlockHistory::Parse(good, 1).ok());
  for (size_t n = 0; n < good.size(); ++n)
    EXPECT_FALSE(BlockHistory::Parse(std::span(good).first(n), 1).ok()) << n;
  for (size_t at : {0u, 1u, 2u, 4u, 6u, 8u, 10u, 12u, 16u}) {
    auto bad = good;
    bad[at] ^= std::byte{0x41};
    EXPECT_FALSE(BlockHistory::Parse(bad, 1).ok()) << at;
  }
}

}  // namespace
}  // namespace dyna
