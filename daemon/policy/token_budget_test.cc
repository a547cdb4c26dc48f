#include "daemon/policy/token_budget.h"

#include <gtest/gtest.h>

#include "daemon/policy/policy_testing.h"

namespace dyna {
namespace {

TEST(TokenBudget, FitsForAnyStatistics) {
  auto dice = testing::Dice("token budget");
  for (int round = 0; round < 50; ++round) {
    constexpr int kLayers = 6;
    TokenBudget budget(kLayers);
    int64_t pinned = 0, all = 0;
    for (int i = 0; i < 600; ++i) {
      const int layer = static_cast<int>(dice() % kLayers);
      const int64_t pins = dice() % 16 == 0 ? 4 : 0;
      budget.Add(layer, static_cast<int>(dice() % 900) - 450, 64, pins);
      pinned += pins;
      all += 64;
    }
    const int64_t limit = 1 + static_cast<int64_t>(dice() % static_cast<uint64_t>(all));
    int theta;
    const bool fits = budget.Solve(limit, &theta);
    int64_t kept = 0, more = 0;
    for (int l = 0; l < kLayers; ++l) {
      kept += budget.kept(l, theta);
      more += budget.kept(l, theta - 1);
      EXPECT_GE(budget.kappa(l, theta), 1);
    }
    EXPECT_EQ(fits, pinned <= limit);
    EXPECT_LE(kept, fits ? limit : pinned);
    const bool loosest = !fits || kept == all;
    EXPECT_TRUE(loosest || more > limit) << "a lower theta would have fitted";
  }
}

TEST(TokenBudget, NoLimitKeepsAll) {
  TokenBudget budget(1);
  budget.Add(0, -1000, 64, 4);
  int theta;
  ASSERT_TRUE(budget.Solve(0, &theta));
  EXPECT_EQ(budget.kept(0, theta), 64);
  budget.Remove(0, -1000, 64, 4);
  EXPECT_EQ(budget.kept(0, theta), 0);
}

}  // namespace
}  // namespace dyna
