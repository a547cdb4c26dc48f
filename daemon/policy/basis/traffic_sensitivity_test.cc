#include "daemon/policy/basis/traffic_sensitivity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "daemon/policy/policy_testing.h"

namespace dyna {
namespace {

constexpr int kHeads = 2, kGroup = 3, kDim = 32, kQueries = 16;
constexpr uint32_t kTokens = 6 * kBlockTokens, kFirst = 5 * kBlockTokens;

struct Sample {
  std::vector<float> q, k, v;
  QueryWindow window;

  explicit Sample(std::mt19937_64 dice, uint32_t sliding = 0)
      : q(kQueries * kHeads * kGroup * kDim), k(size_t{kHeads} * kTokens * kDim), v(k.size()) {
    std::normal_distribution<float> normal;
    for (auto* all : {&q, &k, &v})
      for (float& x : *all) x = normal(dice);
    window = {q,    k,       v,      kHeads * kGroup, kHeads,
              kDim, kTokens, kFirst, sliding,         1 / std::sqrt(float{kDim})};
  }
};

// The same, written down as in the header.
WindowSensitivity Plain(const Sample& s) {
  WindowSensitivity out{std::vector<double>(kHeads), std::vector<double>(kHeads),
                        std::vector<double>(kHeads)};
  int count = 0;
  for (uint32_t q = 0; q < kQueries; q += kQueries / 8, ++count)
    for (int h = 0; h < kHeads; ++h)
      for (int g = 0; g < kGroup; ++g) {
        const float* query =
            &s.q[(q * kHeads * kGroup + static_cast<size_t>(h * kGroup + g)) * kDim];
        const auto row = [&](const std::vector<float>& of, uint32_t t) {
          return &of[(static_cast<size_t>(h) * kTokens + t) * kDim];
        };
        const uint32_t position = kFirst + q;
        const auto sees = [&](uint32_t t) {
          return t <= position && (s.window.sliding == 0 || position - t < s.window.sliding);
        };
        std::vector<double> logit(kTokens), a(kTokens), o(kDim);
        double sum = 0;
        for (uint32_t t = 0; t < kTokens; ++t) {
          for (int c = 0; c < kDim; ++c) logit[t] += double{query[c]} * row(s.k, t)[c];
          logit[t] *= s.window.scale;
          sum += a[t] = sees(t) ? std::exp(logit[t]) : 0;
        }
        for (uint32_t t = 0; t < kTokens; ++t)
          for (int c = 0; c < kDim; ++c) o[static_cast<size_t>(c)] += (a[t] / sum) * row(s.v, t)[c];
        double variance = 0;
        int tiles = 0;
        for (uint32_t tile = 1; tile < kFirst / kBlockTokens; ++tile) {
          if (!sees(tile * kBlockTokens)) continue;
          double mean = 0, square = 0;
          for (uint32_t t = tile * kBlockTokens; t < (tile + 1) * kBlockTokens; ++t) {
            mean += logit[t] / kBlockTokens;
            square += logit[t] * logit[t] / kBlockTokens;
          }
          variance += square - mean * mean;
          ++tiles;
        }
        variance /= tiles;
        double value = 0, key = 0, output = 0;
        for (uint32_t t = kPinnedTokens; t < kFirst; ++t) {
          double v2 = 0, away = 0;
          for (int c = 0; c < kDim; ++c) {
            const double x = row(s.v, t)[c];
            v2 += x * x;
            away += (x - o[static_cast<size_t>(c)]) * (x - o[static_cast<size_t>(c)]);
          }
          value += (a[t] / sum) * (a[t] / sum) * v2;
          key += variance * (a[t] / sum) * (a[t] / sum) * away;
        }
        for (double x : o) output += x * x;
        out.value[static_cast<size_t>(h)] += value;
        out.key[static_cast<size_t>(h)] += key;
        out.output[static_cast<size_t>(h)] += output;
      }
  for (auto* all : {&out.key, &out.value, &out.output})
    for (double& x : *all) x /= count;
  return out;
}

TEST(TrafficSensitivity, IsTheFirstOrderErrorOfTheOutput) {
  for (uint32_t sliding : {0u, 160u}) {
    const Sample s(testing::Dice("window"), sliding);
    const auto is = MeasureWindow(s.window);
    ASSERT_TRUE(is.ok()) << is.status().ToString();
    const WindowSensitivity was = Plain(s);
    for (size_t h = 0; h < kHeads; ++h) {
      EXPECT_NEAR(is->key[h], was.key[h], 1e-3 * was.key[h]);
      EXPECT_NEAR(is->value[h], was.value[h], 1e-3 * was.value[h]);
      EXPECT_NEAR(is->output[h], was.output[h], 1e-3 * was.output[h]);
    }
  }
}

TEST(TrafficSensitivity, WhatCannotBeMeasuredIsRefused) {
  Sample s(testing::Dice("refused"));
  s.window.first_position = kBlockTokens;
  EXPECT_FALSE(MeasureWindow(s.window).ok()) << "nothing before it but the pins' tile";
  s.window.first_position = kFirst;
  s.window.sliding = 16;
  EXPECT_FALSE(MeasureWindow(s.window).ok()) << "no whole tile within reach";
  s.window.sliding = 0;
  s.q[0] = std::numeric_limits<float>::infinity();
  EXPECT_FALSE(MeasureWindow(s.window).ok());
}

// Heads whose errors move the output less get less; a layer is measured against its own output.
TEST(TrafficSensitivity, CellsAreDueTwiceAndRelativeToTheirLayer) {
  const ContextSpec spec = testing::SmallSpec(2, kHeads);
  TrafficSensitivity traffic(spec, 8);
  const std::vector<std::shared_ptr<const Basis>> bases(2, testing::FallingBasis(kHeads, 64)),
      none(2);
  const auto add = [&](int layer, int times, double scale) {
    for (int i = 0; i < times; ++i)
      traffic.Add(layer, 0, {{scale, 2 * scale}, {3 * scale, 0}, {scale, scale}});
  };
  EXPECT_TRUE(traffic.Wants(0, 1024));
  EXPECT_FALSE(traffic.Wants(0, 64));
  EXPECT_FALSE(traffic.Wants(0, 1 << 20));
  add(0, 8, 1);
  EXPECT_FALSE(traffic.Wants(0, 1024));
  EXPECT_FALSE(traffic.Due()) << "the other layer has seen nothing";
  add(1, 4, 100);
  ASSERT_TRUE(traffic.Due());
  EXPECT_FALSE(traffic.Take(none));
  ASSERT_TRUE(traffic.Due()) << "once the bases are there";
  const auto cells = traffic.Take(bases);
  ASSERT_TRUE(cells);
  EXPECT_FLOAT_EQ((*cells)[0][0].omega_k, 2 * .5f);
  EXPECT_FLOAT_EQ((*cells)[0][1].omega_k, 2 * 1);
  EXPECT_FLOAT_EQ((*cells)[0][0].omega_v, 1.5f);
  EXPECT_GT((*cells)[0][1].omega_v, 0) << "nothing is free";
  EXPECT_LT((*cells)[0][1].omega_v, 1e-5);
  EXPECT_FLOAT_EQ((*cells)[1][0].omega_k, (*cells)[0][0].omega_k);
  EXPECT_TRUE(Sensitivity::Make(spec, *cells).ok());
  EXPECT_FALSE(traffic.Due());
  add(1, 4, 1);
  ASSERT_TRUE(traffic.Due());
  ASSERT_TRUE(traffic.Take(bases));
  EXPECT_FALSE(traffic.Due()) << "for good";
  EXPECT_FALSE(traffic.Wants(1, 1024));
}

TEST(TrafficSensitivity, NoneWhereALayerCannotBeAsked) {
  ContextSpec spec = testing::SmallSpec(2, kHeads);
  spec.layers[1].q_heads = 0;
  EXPECT_FALSE(TrafficSensitivity(spec, 8).Wants(0, 1024));
  EXPECT_FALSE(TrafficSensitivity(testing::SmallSpec(2, kHeads), 0).Wants(0, 1024));
}

}  // namespace
}  // namespace dyna
