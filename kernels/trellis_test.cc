#include "kernels/trellis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace dyna::codec {
namespace {

constexpr uint32_t kSeed = 20261128;

std::vector<float> Normal(int d, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> z(static_cast<size_t>(d));
  for (float& v : z) v = normal(random);
  return z;
}

double Error(const std::vector<float>& z, int bits, float rms, const uint8_t* stored) {
  double error = 0;
  TrellisDecode(
      bits, static_cast<int>(z.size()), [&](int c) { return int{stored[c]}; },
      [&](int c, float unit) {
        const double e = z[static_cast<size_t>(c)] - double{unit} * rms;
        error += e * e;
      });
  return error;
}

std::vector<uint8_t> Encode(const std::vector<float>& z, int bits, float rms) {
  const int d = static_cast<int>(z.size());
  float scaled[4],
      cost[kTrellisStates] = {0, kTrellisUnreached, kTrellisUnreached, kTrellisUnreached};
  for (int i = 0; i < TrellisMagnitudes(bits); ++i) scaled[i] = TrellisMagnitude(bits, i) * rms;
  std::vector<uint8_t> from(z.size()), upper(z.size()), stored(z.size());
  for (int c = 0; c < d; ++c) {
    int best, high;
    TrellisStep(bits, z[static_cast<size_t>(c)], scaled, cost, &best, &high);
    from[static_cast<size_t>(c)] = static_cast<uint8_t>(best);
    upper[static_cast<size_t>(c)] = static_cast<uint8_t>(high);
  }
  TrellisTrace(bits, d, cost, from.data(), upper.data(), stored.data());
  return stored;
}

TEST(Trellis, FindsThePathOfLeastErrorAmongAll) {
  std::printf("seed %u\n", kSeed);
  for (const int bits : {1, 2}) {
    const int d = bits == 1 ? 12 : 7;
    for (uint32_t seed = kSeed; seed < kSeed + 20; ++seed) {
      const std::vector<float> z = Normal(d, seed);
      const auto found = Encode(z, bits, 1.1f);
      double best = 1e30;
      std::vector<uint8_t> codes(z.size());
      for (uint32_t all = 0; all < 1u << (bits * d); ++all) {
        for (size_t c = 0; c < codes.size(); ++c)
          codes[c] = all >> (static_cast<size_t>(bits) * c) & ((1u << bits) - 1);
        best = std::min(best, Error(z, bits, 1.1f, codes.data()));
      }
      EXPECT_NEAR(Error(z, bits, 1.1f, found.data()), best, 1e-5) << bits << " bits, " << seed;
    }
  }
}

TEST(Trellis, LevelsAscendAndMirror) {
  for (const int bits : {1, 2}) {
    const int levels = 2 << bits;
    for (int i = 0; i < levels; ++i) {
      EXPECT_EQ(TrellisUnit(bits, i), -TrellisUnit(bits, levels - 1 - i));
      EXPECT_LE(std::abs(TrellisUnit(bits, i)), kTrellisTop);
    }
    for (int i = 1; i < levels; ++i) EXPECT_GT(TrellisUnit(bits, i), TrellisUnit(bits, i - 1));
  }
}

// Why it is there: the error, with unbiased gains, on Gaussian rows.
TEST(Trellis, BeatsPlainCodesOnGaussianRows) {
  std::printf("seed %u\n", kSeed);
  const std::array<double, 2> plain = {.57, .132};
  for (const int bits : {1, 2}) {
    double error = 0;
    constexpr int kRows = 400;
    for (uint32_t r = 0; r < kRows; ++r) {
      const std::vector<float> z = Normal(64, kSeed + r);
      double zz = 0, zu = 0, uu = 0;
      for (const float v : z) zz += double{v} * v;
      const auto stored = Encode(z, bits, TrellisRms(static_cast<float>(zz), 64));
      TrellisDecode(
          bits, 64, [&](int c) { return int{stored[static_cast<size_t>(c)]}; },
          [&](int c, float unit) {
            zu += double{z[static_cast<size_t>(c)]} * unit;
            uu += double{unit} * unit;
          });
      const double gain = zz / zu;
      error += (zz - 2 * gain * zu + gain * gain * uu) / zz / kRows;
    }
    EXPECT_LT(error, (bits == 1 ? .84 : .75) * plain[static_cast<size_t>(bits - 1)]) << bits;
  }
}

}  // namespace
}  // namespace dyna::codec
