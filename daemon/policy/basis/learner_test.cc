#include "daemon/policy/basis/learner.h"

#include <gtest/gtest.h>

#include <vector>

#include "daemon/policy/basis/basis_testing.h"
#include "daemon/policy/policy_testing.h"

namespace dyna {
namespace {

constexpr int kD = 32;

class LearnerTest : public ::testing::Test {
 protected:
  LearnerTest() : dice_(testing::Dice("learner")), spec_(testing::SmallSpec(2, 1, kD)) {
    spec_.ropes = {Rope{}};  // nothing turns: the synthetic rows stay as they are
    for (auto& layer : spec_.layers) layer.q_heads = 1;
  }
  void Keys(BasisLearner* learner, const testing::Source& keys, int tiles) {
    std::vector<float> x(64 * kD);
    for (int tile = 0; tile < tiles; ++tile) {
      for (int t = 0; t < 64; ++t) keys.Row(dice_, x.data() + t * kD);
      const auto sums = testing::SumsOf(x, kD);
      ASSERT_TRUE(learner->AddTile(0, 0, {&sums.count, 1}, sums.sum, sums.scatter).ok());
    }
  }
  void Queries(BasisLearner* learner, const testing::Source& source, int windows) {
    std::vector<float> q(64 * kD);
    for (int w = 0; w < windows; ++w) {
      for (int t = 0; t < 64; ++t) source.Row(dice_, q.data() + t * kD);
      ASSERT_TRUE(learner->AddQueries(0, 0, 1, q, 64, 1, 448).ok());
    }
  }
  std::shared_ptr<const Basis> Learn(BasisLearner* learner) {
    auto due = learner->Due(0);
    if (!due) return nullptr;
    EXPECT_FALSE(learner->Due(0)) << "one at a time";
    auto made = due->Make();
    EXPECT_TRUE(made.ok()) << made.status().ToString();
    learner->Done(0, made);
    return made.ok() ? *made : nullptr;
  }

  std::mt19937_64 dice_;
  ContextSpec spec_;
  LearnerOptions options_;
};

TEST_F(LearnerTest, FirstBasisWhenEnoughWasSeen) {
  const testing::Source keys(kD, .85, 1, dice_), queries(kD, .95, 0, dice_);
  BasisLearner learner(spec_, 7, options_);
  EXPECT_TRUE(learner.WantsTile(0, 123));
  Keys(&learner, keys, 31);
  Queries(&learner, queries, 2);
  EXPECT_FALSE(learner.Due(0)) << "1,984 tokens";
  Keys(&learner, keys, 1);
  auto basis = Learn(&learner);
  ASSERT_NE(basis, nullptr);
  EXPECT_EQ(basis->info().tokens, 2048u);
  EXPECT_EQ(basis->info().queries, 128u);
  EXPECT_EQ(basis->info().fingerprint, 7u);
  EXPECT_EQ(basis->info().frame, Frame::kPost);
  EXPECT_EQ(basis->info().run, 8);
  EXPECT_EQ(learner.basis(0), basis);
  EXPECT_FALSE(learner.Due(1));
  // From now on one block in 64.
  int wanted = 0;
  for (uint64_t b = 0; b < 6400; ++b) wanted += learner.WantsTile(0, b);
  EXPECT_NEAR(wanted, 100, 40);
}

TEST_F(LearnerTest, NewBasisOnlyForTenPercentLessError) {
  const testing::Source keys(kD, .85, 1, dice_), other(kD, .85, 1, dice_),
      queries(kD, .95, 0, dice_);
  BasisLearner learner(spec_, 7, options_);
  Keys(&learner, keys, 32);
  Queries(&learner, queries, 2);
  auto first = Learn(&learner);
  ASSERT_NE(first, nullptr);
  Keys(&learner, keys, 128);  // a full window of the same traffic
  Queries(&learner, queries, 2);
  EXPECT_EQ(Learn(&learner), nullptr);
  EXPECT_EQ(learner.basis(0), first);
  EXPECT_LT(learner.tokens_seen(0), options_.window_tokens);
  for (int made = 2; made <= 6; ++made) {  // traffic of another kind, again and again
    const testing::Source kind(kD, .85, 1, dice_);
    Keys(&learner, kind, 256);
    Queries(&learner, queries, 4);
    auto next = Learn(&learner);
    EXPECT_EQ(next != nullptr, made <= 4) << made;
  }
  EXPECT_EQ(learner.bases_made(0), 4u);
  EXPECT_FALSE(learner.WantsTile(0, 0));
}

TEST_F(LearnerTest, KeysAloneUntilQueriesCome) {
  const testing::Source keys(kD, .85, 1, dice_), queries(kD, .8, 0, dice_);
  BasisLearner learner(spec_, 7, options_);
  Keys(&learner, keys, 63);
  EXPECT_FALSE(learner.Due(0));
  Keys(&learner, keys, 1);
  auto provisional = Learn(&learner);
  ASSERT_NE(provisional, nullptr);
  EXPECT_EQ(provisional->info().source, BasisSource::kKeys);
  EXPECT_FALSE(learner.Due(0));
  Queries(&learner, queries, 2);
  auto real = Learn(&learner);
  ASSERT_NE(real, nullptr);
  EXPECT_EQ(real->info().source, BasisSource::kLearned);
}

TEST_F(LearnerTest, ProfileBasisStaysUnlessBeaten) {
  const testing::Source keys(kD, .85, 1, dice_), queries(kD, .95, 0, dice_);
  BasisLearner teacher(spec_, 7, options_), learner(spec_, 7, options_);
  Keys(&teacher, keys, 32);
  Queries(&teacher, queries, 2);
  auto basis = Learn(&teacher);
  ASSERT_NE(basis, nullptr);
  learner.SetProfileBasis(0, basis);
  Keys(&learner, keys, 128);
  Queries(&learner, queries, 2);
  EXPECT_EQ(Learn(&learner), nullptr);
  EXPECT_EQ(learner.basis(0), basis);
}

TEST_F(LearnerTest, StateSurvivesInRows) {
  const testing::Source keys(kD, .85, 1, dice_), queries(kD, .95, 0, dice_);
  BasisLearner learner(spec_, 7, options_);
  Keys(&learner, keys, 15);
  EXPECT_FALSE(learner.RowDue(0));
  Keys(&learner, keys, 5);
  Queries(&learner, queries, 2);
  ASSERT_TRUE(learner.RowDue(0));
  const record::LearnerRow row = learner.Row(0, 1);
  EXPECT_FALSE(learner.RowDue(0));

  BasisLearner again(spec_, 7, options_);
  ASSERT_TRUE(again.Restore(row).ok());
  EXPECT_EQ(again.tokens_seen(0), 1280u);
  EXPECT_EQ(again.queries_seen(0), 128u);
  record::LearnerRow bad = row;
  bad.layer = 1;
  EXPECT_EQ(again.Restore(bad).code(), StatusCode::kInvalid);
  bad = row;
  bad.state.pop_back();
  EXPECT_EQ(again.Restore(bad).code(), StatusCode::kInvalid);
  bad = row;
  bad.version = 9;
  EXPECT_EQ(again.Restore(bad).code(), StatusCode::kUnsupported);
}

TEST_F(LearnerTest, SwitchedOffLearnsNothing) {
  options_.enabled = false;
  BasisLearner learner(spec_, 7, options_);
  const testing::Source keys(kD, .85, 1, dice_);
  Keys(&learner, keys, 100);
  EXPECT_FALSE(learner.WantsTile(0, 0));
  EXPECT_FALSE(learner.Due(0));
  EXPECT_EQ(learner.memory_bytes(), 0u);
}

}  // namespace
}  // namespace dyna
