#include "daemon/policy/scorer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "daemon/policy/policy_testing.h"

namespace dyna {
namespace {

// Every row of the table keeps to the contract of scorer.h.
TEST(Scorers, Conform) {
  auto dice = testing::Dice("scorers");
  constexpr int kHeads = 2;
  constexpr uint32_t kTokens = 256;
  for (const Scorer* scorer : Scorers()) {
    SCOPED_TRACE(std::string(scorer->name()));
    auto found = FindScorer(scorer->name());
    ASSERT_TRUE(found.ok());
    EXPECT_EQ(*found, scorer);
    std::vector<float> values(scorer->ValuesOf(kHeads, kTokens)), x(kHeads * kTokens, -7.f);
    for (float& v : values) v = std::uniform_real_distribution<float>(0, 1)(dice);
    AttentionReport report{3, kHeads, kTokens, 8, values};
    ASSERT_TRUE(scorer->Score(report, x).ok());
    for (float v : x) EXPECT_TRUE(std::isnan(v) || (v >= 0 && v <= kMaxRelative));

    std::fill(x.begin(), x.end(), -7.f);
    const auto refused = [&](const AttentionReport& bad) {
      const Status status = scorer->Score(bad, x);
      EXPECT_EQ(status.code(), StatusCode::kInvalid);
      for (float v : x) EXPECT_EQ(v, -7.f) << "x was touched";
      return std::string(status.message());
    };
    std::vector<float> longer(values.size() + 1);
    EXPECT_NE(refused({3, kHeads, kTokens, 8, longer}).find("layer 3"), std::string::npos);
    for (float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), -1.f, 1e30f}) {
      if (values.empty()) break;
      auto broken = values;
      broken[scorer->name() == "tile_mass" ? 16 : 300] = bad;  // a sum of exponentials there
      const std::string message = refused({3, kHeads, kTokens, 8, broken});
      EXPECT_NE(message.find("layer 3, head"), std::string::npos) << message;
    }
  }
  EXPECT_EQ(FindScorer("nearest").status().code(), StatusCode::kInvalid);
}

TEST(ColumnMass, TakesTheSinksOut) {
  constexpr uint32_t kTokens = 64;
  std::vector<float> mass(kTokens, 0.f), x(kTokens);
  mass[0] = 8 * .9f;  // 8 queries, 90 % on the sink
  for (uint32_t t = 4; t < kTokens; ++t) mass[t] = 8 * .1f / 60;
  const Scorer* scorer = *FindScorer("column_mass");
  ASSERT_TRUE(scorer->Score({0, 1, kTokens, 8, mass}, x).ok());
  EXPECT_EQ(x[0], 0);
  for (uint32_t t = 4; t < kTokens; ++t) EXPECT_NEAR(x[t], 64. / 60, 1e-4);
}

// The same attention over a chain twice as long looks the same (policy 1).
TEST(ColumnMass, DoesNotDependOnLength) {
  const Scorer* scorer = *FindScorer("column_mass");
  std::vector<float> one(128, 1.f / 128), two(256, 1.f / 256), x1(128), x2(256);
  ASSERT_TRUE(scorer->Score({0, 1, 128, 1, one}, x1).ok());
  ASSERT_TRUE(scorer->Score({0, 1, 256, 1, two}, x2).ok());
  EXPECT_NEAR(x1[100], x2[200], .03);
  EXPECT_EQ(scorer->Score({0, 1, 128, 0, one}, x1).code(), StatusCode::kInvalid);
}

TEST(TileMass, LaysATilesShareOverItsTokens) {
  // Three tiles: 50 % (with the sinks), 40 %, 10 %.
  const float lse = 3;
  const std::vector<float> mass = {lse, .5f, lse, lse - 1, .4f * std::exp(1.f), lse, lse, .1f, lse};
  std::vector<float> x(3 * 64);
  ASSERT_TRUE((*FindScorer("tile_mass"))->Score({0, 1, 192, 1, mass}, x).ok());
  EXPECT_TRUE(std::isnan(x[5]));
  EXPECT_NEAR(x[64], .8 * 192 / 64, 1e-3);
  EXPECT_NEAR(x[191], .2 * 192 / 64, 1e-3);
}

}  // namespace
}  // namespace dyna
