// One test over the table of policies, and what contexts with and without omega have in common.
#include "daemon/policy/policy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "daemon/policy/log2_byte.h"
#include "daemon/policy/policy_testing.h"
#include "daemon/policy/sensitivity.h"
#include "kernels/segment.h"

namespace dyna {
namespace {

TEST(Policies, Conform) {
  const ContextSpec spec = testing::SmallSpec();
  const std::vector<int16_t> omega = {0, 0};
  for (std::string_view name : PolicyNames()) {
    SCOPED_TRACE(std::string(name));
    PolicyOptions options;
    options.name = name;
    auto policy = MakePolicy(options);
    ASSERT_TRUE(policy.ok()) << policy.status().ToString();
    EXPECT_EQ((*policy)->name(), name);
    for (QualityClass quality : {QualityClass::kSmall, QualityClass::kBalanced, QualityClass::kHigh,
                                 QualityClass::kExact}) {
      for (bool with_basis : {false, true}) {
        for (bool with_omega : {false, true}) {
          LayerModel model;
          model.shape = &spec.layers[0];
          if (with_basis) model.basis = testing::FallingBasis(2, 64);
          if (with_omega) model.omega = {omega, omega};
          auto ladders = (*policy)->MakeLadders(model, quality);
          ASSERT_TRUE(ladders.ok()) << ladders.status().ToString();
          ASSERT_EQ((*ladders)->heads(), 2);
          SegmentId id;
          id.kv_heads = 1;
          id.head_dim = 64;
          if (model.basis) {
            id.basis = model.basis->name();
            id.fingerprint = model.basis->info().fingerprint;
          }
          for (const Rung& k : (*ladders)->cell(0).k.rungs()) {
            const bool pair = (*ladders)->cell(0).pair;
            const Ladder& v_ladder = pair ? (*ladders)->cell(0).k : (*ladders)->cell(0).v;
            for (const Rung& v : v_ladder.rungs()) {
              const TilePlan plan{k.k_kind, v.v_kind, ~uint64_t{0}};
              const Status status = CheckPlan(id, {&plan, 1}, model.basis.get());
              EXPECT_TRUE(status.ok()) << status.ToString();
              EXPECT_TRUE(quality != QualityClass::kExact || plan.k_kind == kind::kRaw);
            }
          }
        }
      }
    }
    if (!(*policy)->drops_tokens()) {
      ChainChoice choice;
      EXPECT_EQ((*policy)->SelectLive({}, &choice).code(), StatusCode::kUnsupported);
    }
  }
}

TEST(Policies, UnknownNamesAndBadOptionsAreNamed) {
  PolicyOptions options;
  options.name = "dynacompres";
  auto policy = MakePolicy(options);
  ASSERT_FALSE(policy.ok());
  EXPECT_NE(policy.status().message().find("dynacompress"), std::string::npos);
  options.name = "uniform";
  options.uniform_v_bits = 3;
  EXPECT_NE(MakePolicy(options).status().message().find("uniform_v_bits"), std::string::npos);
}

TEST(Policies, EngineFp8IsStoredAsItIs) {
  const ContextSpec spec = testing::SmallSpec();
  LayerModel model;
  model.shape = &spec.layers[0];
  model.dtype = DType::kE4m3;
  auto ladders = (*MakePolicy({}))->MakeLadders(model, QualityClass::kBalanced);
  ASSERT_TRUE(ladders.ok());
  EXPECT_EQ((*ladders)->cell(0).k.rungs().front().k_kind, kind::kRaw);
  EXPECT_EQ((*ladders)->cell(0).k.rungs().size(), 1u);
}

std::vector<std::vector<CellSensitivity>> Cells(const ContextSpec& spec, float scale) {
  std::vector<std::vector<CellSensitivity>> cells;
  for (const LayerShape& layer : spec.layers)
    for (auto& l = cells.emplace_back(); l.size() < layer.kv_heads;)
      l.push_back({scale * static_cast<float>(1 + l.size()), scale, .01f, .12f});
  return cells;
}

// A client cannot buy the budget: omega times any number gives the same prices, and the mean step
// of K from L4 to L2 costs 1 a byte, as it does without omega.
TEST(Sensitivity, ContextsMeetAtOnePrice) {
  const ContextSpec spec = testing::SmallSpec(3, 2);
  auto one = Sensitivity::Make(spec, Cells(spec, 1e-3f));
  auto many = Sensitivity::Make(spec, Cells(spec, 1e6f));
  ASSERT_TRUE(one.ok() && many.ok());
  double slope = 0;
  for (int l = 0; l < 3; ++l) {
    for (size_t h = 0; h < 2; ++h) {
      EXPECT_EQ(one->layer(l).log2_k[h], many->layer(l).log2_k[h]);
      slope += FromLog2Byte(one->layer(l).log2_k[h]) * (.12 - .01) / (2 * 64 * 64 / 8) / 6;
    }
  }
  EXPECT_NEAR(slope, 1, .05);
  EXPECT_NEAR(one->layer(0).log2_k[1] - one->layer(0).log2_k[0], kEighths, 1);
}

// Heads of 1 and 2: with the grain of a layer both have 1.5, a layer's own.
TEST(Sensitivity, ALayersHeadsMayBeAlike) {
  const ContextSpec spec = testing::SmallSpec(2, 2);
  auto cells = Cells(spec, 1);
  for (auto& c : cells[1]) c.omega_k *= 4;
  auto made = Sensitivity::Make(spec, cells, OmegaGrain::kLayer);
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(made->layer(0).log2_k[0], made->layer(0).log2_k[1]);
  EXPECT_NEAR(made->layer(1).log2_k[0] - made->layer(0).log2_k[0], 2 * kEighths, 1);
}

TEST(Sensitivity, RefusesWhatIsNotASensitivity) {
  const ContextSpec spec = testing::SmallSpec();
  for (float bad : {0.f, -1.f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    auto cells = Cells(spec, 1);
    cells[1][0].omega_v = bad;
    auto made = Sensitivity::Make(spec, cells);
    ASSERT_FALSE(made.ok());
    EXPECT_NE(made.status().message().find("layer 1, head 0"), std::string::npos);
  }
  auto cells = Cells(spec, 1);
  cells[0][1].k_error_l2 = cells[0][1].k_error_l4;
  EXPECT_FALSE(Sensitivity::Make(spec, cells).ok());
  cells.pop_back();
  EXPECT_FALSE(Sensitivity::Make(spec, cells).ok());
}

}  // namespace
}  // namespace dyna
