// What policies that drop tokens have in common: pooling, budgets, and one test over the table.
#include "daemon/policy/token_policy.h"

#include <gtest/gtest.h>

#include <bit>
#include <vector>

#include "daemon/policy/policy_testing.h"

namespace dyna {
namespace {

TEST(Pool, IsTorchsWithZeroPadding) {
  // Kernel 3: mean (0+1+4)/3, (1+4+1)/3, (4+1+0)/3; max 4, 4, 4.
  const std::vector<float> x = {1, 4, 1};
  EXPECT_EQ(Pool(x, Pooling::kMean, 3), (std::vector<float>{5.f / 3, 2, 5.f / 3}));
  EXPECT_EQ(Pool(x, Pooling::kMax, 3), (std::vector<float>{4, 4, 4}));
  EXPECT_EQ(Pool(x, Pooling::kMax, 1), x);
  EXPECT_EQ(Pool(x, Pooling::kNone, 5), x);
}

TEST(Uniform, IsUniformAndTheSameAgain) {
  double sum = 0;
  for (uint32_t t = 0; t < 4096; ++t) {
    const double u = UniformOf(77, 3, 1, t);
    EXPECT_EQ(u, UniformOf(77, 3, 1, t));
    EXPECT_TRUE(u >= 0 && u < 1);
    sum += u;
  }
  EXPECT_NEAR(sum / 4096, .5, .02);
  EXPECT_NE(UniformOf(77, 3, 1, 5), UniformOf(77, 1, 3, 5));
}

struct Chain {
  Chain(const ContextSpec& spec, uint32_t blocks, std::mt19937_64* dice) {
    view.spec = &spec;
    view.tokens = blocks * kBlockTokens;
    std::uniform_real_distribution<float> score(0, 8);
    for (uint32_t b = 0; b < blocks; ++b) words.push_back((*dice)());
    view.blocks = words;
    for (const LayerShape& layer : spec.layers) {
      auto& x = scores.emplace_back(size_t{layer.kv_heads} * view.tokens);
      for (float& s : x) s = score(*dice);
    }
    for (const auto& x : scores) view.importance.emplace_back(x);
  }
  // The masks become today's.
  void Apply(const ChainChoice& choice) {
    live = choice.live;
    view.live.clear();
    for (const auto& layer : live) view.live.emplace_back(layer);
  }
  std::vector<uint64_t> words;
  std::vector<std::vector<float>> scores;
  LiveMasks live;
  ChainView view;
};

int Kept(std::span<const uint64_t> masks) {
  int n = 0;
  for (uint64_t m : masks) n += std::popcount(m);
  return n;
}

// Every policy of the table that drops tokens: the budget, the pinned, nothing comes back, and a
// chain that is decided again with the same scores stays as it is.
TEST(DroppingPolicies, Conform) {
  auto dice = testing::Dice("dropping policies");
  ContextSpec spec = testing::SmallSpec(5, 2);
  spec.layers[4].kind = LayerKind::kSliding;
  spec.layers[4].window = 64;
  int dropping = 0;
  for (std::string_view name : PolicyNames()) {
    SCOPED_TRACE(std::string(name));
    PolicyOptions options;
    options.name = name;
    auto policy = MakePolicy(options);
    ASSERT_TRUE(policy.ok());
    if (!(*policy)->drops_tokens()) continue;
    ++dropping;
    const bool printed = name.starts_with("printed");  // these know no budget
    Chain chain(spec, 6, &dice);
    ChainChoice choice;
    ASSERT_TRUE((*policy)->SelectLive(chain.view, &choice).ok());
    ASSERT_EQ(choice.live.size(), 5u);
    int kept = 0;
    for (size_t l = 0; l < 4; ++l) {
      ASSERT_EQ(choice.live[l].size(), 2u * 6);
      for (size_t h = 0; h < 2; ++h) EXPECT_EQ(choice.live[l][h * 6] & 15, 15u) << "pinned";
      kept += Kept(choice.live[l]);
    }
    EXPECT_EQ(Kept(choice.live[4]), 2 * 6 * 64) << "a sliding layer stays whole";
    if (printed)
      EXPECT_LT(kept, 8 * 6 * 64);
    else
      EXPECT_NEAR(kept, 8 * 96, name == "dynamickv" ? 8 : 0);  // a quarter of 384, whole tokens

    const LiveMasks first = choice.live;
    chain.Apply(choice);
    ASSERT_TRUE((*policy)->SelectLive(chain.view, &choice).ok());
    for (size_t l = 0; l < 4; ++l)
      for (size_t i = 0; i < first[l].size(); ++i)
        EXPECT_EQ(choice.live[l][i] & first[l][i], first[l][i]) << "decided again";

    if ((*policy)->scores() == ScoreSource::kNone) continue;
    chain.view.importance[1] = {};  // nothing is known of it
    ASSERT_TRUE((*policy)->SelectLive(chain.view, &choice).ok());
    EXPECT_EQ(Kept(choice.live[1]), 2 * 6 * 64);
  }
  EXPECT_EQ(dropping, 11);
}

TEST(DroppingPolicies, RefuseWhatIsNoChain) {
  const ContextSpec spec = testing::SmallSpec();
  for (std::string_view name : PolicyNames()) {
    PolicyOptions options;
    options.name = name;
    auto policy = MakePolicy(options);
    if (!(*policy)->drops_tokens()) continue;
    ChainChoice choice;
    EXPECT_EQ((*policy)->SelectLive({}, &choice).code(), StatusCode::kInvalid) << name;
    ChainView view;
    const std::vector<uint64_t> words(2);
    const std::vector<float> short_scores(3);
    view.spec = &spec;
    view.tokens = 128;
    view.blocks = words;
    view.importance = {short_scores, short_scores};
    const Status status = (*policy)->SelectLive(view, &choice);
    EXPECT_NE(status.message().find("importance of layer 0"), std::string::npos) << name;
  }
}

TEST(DroppingPolicies, NeedAByteAToken) {
  PolicyOptions options;
  options.name = "snapkv";
  auto policy = MakePolicy(options);
  ASSERT_TRUE(policy.ok());
  (*policy)->Imply(&options);
  EXPECT_EQ(options.grain, HistoryGrain::kToken);
  PolicyOptions others;
  (*MakePolicy(others))->Imply(&others);
  EXPECT_EQ(others.grain, HistoryGrain::kGroup);
}

TEST(DroppingPolicies, BadOptionsAreNamed) {
  PolicyOptions options;
  options.name = "fastkv";
  options.drop.keep = 1.5;
  EXPECT_NE(MakePolicy(options).status().message().find("policy.keep"), std::string::npos);
  options.drop.keep = .5;
  options.drop.pool = 4;
  EXPECT_NE(MakePolicy(options).status().message().find("policy.pool"), std::string::npos);
  options.name = "printed";
  options.printed.b_min = 9;
  EXPECT_NE(MakePolicy(options).status().message().find("printed_b_min"), std::string::npos);
}

}  // namespace
}  // namespace dyna
