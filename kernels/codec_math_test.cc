#include "kernels/codec_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace dyna::codec {
namespace {

TEST(F16, EveryValueSurvivesARoundTrip) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float f = F16ToF32(static_cast<uint16_t>(h));
    if (std::isnan(f)) {
      EXPECT_EQ(F32ToF16(f) & 0x7fff, 0x7e00);
    } else {
      EXPECT_EQ(F32ToF16(f), h);
    }
  }
}

TEST(F16, RoundsToNearestEven) {
  for (uint32_t h = 0; h < 0x7bff; ++h) {  // every pair of neighbours
    const float a = F16ToF32(static_cast<uint16_t>(h)), b = F16ToF32(static_cast<uint16_t>(h + 1));
    const float middle = a + (b - a) / 2;  // exact in f32
    EXPECT_EQ(F32ToF16(middle), (h & 1) == 0 ? h : h + 1) << h;
    EXPECT_EQ(F32ToF16(std::nextafter(middle, 0.0f)), h);
    EXPECT_EQ(F32ToF16(std::nextafter(middle, 1e9f)), h + 1);
    EXPECT_EQ(F32ToF16(-middle), ((h & 1) == 0 ? h : h + 1) | 0x8000);
  }
  EXPECT_EQ(F32ToF16(65519.99f), 0x7bff);
  EXPECT_EQ(F32ToF16(65520.0f), 0x7c00);
  EXPECT_EQ(F32ToF16(std::numeric_limits<float>::infinity()), 0x7c00);
}

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(F32ToBf16(1.0f), 0x3f80);
  EXPECT_EQ(F32ToBf16(1.00390625f), 0x3f80);  // a tie, to even
  EXPECT_EQ(F32ToBf16(1.01171875f), 0x3f82);  // a tie, to even
  EXPECT_TRUE(std::isnan(Bf16ToF32(F32ToBf16(std::nanf("")))));
}

TEST(E4m3, EveryValueSurvivesARoundTripAndLargeOnesSaturate) {
  for (uint32_t e = 0; e < 256; ++e) {
    const float f = E4m3ToF32(static_cast<uint8_t>(e));
    if (std::isnan(f)) continue;
    EXPECT_EQ(F32ToE4m3(f), e);
  }
  EXPECT_EQ(E4m3ToF32(F32ToE4m3(449)), 448);
  EXPECT_EQ(E4m3ToF32(F32ToE4m3(-1e9f)), -448);
  EXPECT_EQ(E4m3ToF32(F32ToE4m3(0x1p-10f)), 0);         // a tie, to even
  EXPECT_EQ(E4m3ToF32(F32ToE4m3(0x1.8p-9f)), 0x1p-8f);  // a tie, to even
  EXPECT_EQ(E4m3ToF32(F32ToE4m3(17.0f)), 16.0f);        // a tie, to even
}

TEST(Log8, IsTheNearestSixteenthOfADoubling) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> log(-9.9, 5.9);
  for (int i = 0; i < 20000; ++i) {
    const float g = static_cast<float>(std::exp2(log(random)));
    const int e = Log8Encode(g);
    EXPECT_NEAR(e - kLog8Bias, 16 * std::log2(static_cast<double>(g)), .5001);
    EXPECT_NEAR(std::log2(Log8Decode(e)), (e - kLog8Bias) / 16.0, 1e-6);
  }
  EXPECT_EQ(Log8Encode(1e-6f), 1);
  EXPECT_EQ(Log8Encode(100.0f), kAboveLog8);
  EXPECT_EQ(Log8Decode(0), 0.0f);
  EXPECT_EQ(Log8Decode(160), 1.0f);
}

TEST(Log8e, TheLargestGainIsAtTheTop) {
  for (const float g : {1.0f, .75f, .51f, 3.0f, 1e-6f, 30000.0f}) {
    const int exponent = GainExponent(g);
    EXPECT_EQ(exponent, static_cast<int>(std::ceil(std::log2(g))));
    const int e = Log8eEncode(g, exponent);
    EXPECT_GE(e, 239);
    EXPECT_NEAR(Log8eDecode(e, exponent) / g, 1, .022);
  }
  EXPECT_EQ(GainExponent(0), 0);
  EXPECT_EQ(Log8eEncode(0, 3), 0);
}

TEST(Rounding, ClampsBeforeItConverts) {
  EXPECT_EQ(RoundClamped(2.5f, 0, 255), 2);
  EXPECT_EQ(RoundClamped(3.5f, 0, 255), 4);
  EXPECT_EQ(RoundClamped(1e30f, 0, 255), 255);
  EXPECT_EQ(RoundClamped(-1e30f, 0, 255), 0);
  EXPECT_EQ(FloorClamped(-.25f, -128, 127), -1);
  EXPECT_EQ(FloorClamped(-3.0f, -128, 127), -3);
  EXPECT_EQ(FloorClamped(2.999f, -128, 127), 2);
  EXPECT_EQ(FloorClamped(1e30f, -128, 127), 127);
}

TEST(TreeSum, IsTheTreeOfHalves) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (const int n : {1, 16, 48, 64, 80, 192, 256}) {
    std::vector<float> v(static_cast<size_t>(TreeSize(n)), 0.0f);
    for (int i = 0; i < n; ++i) v[static_cast<size_t>(i)] = normal(random);
    const float tree = TreeSum(n, [&](int i) { return v[static_cast<size_t>(i)]; });
    for (size_t half = v.size() / 2; half > 0; half /= 2)
      for (size_t i = 0; i < half; ++i) v[i] += v[i + half];
    EXPECT_EQ(tree, v[0]) << n;
  }
}

TEST(Packing, EveryElementHasItsOwnBits) {
  for (const int bits : {1, 2, 4, 8}) {
    for (const int d : {16, 80, 256}) {
      std::vector<bool> used(static_cast<size_t>(64 * d * bits), false);
      for (int t = 0; t < 64; ++t) {
        for (int c = 0; c < d; ++c) {
          const int at = 8 * VWordByte(t, c, d, bits) + VWordBit(t, c, bits);
          for (int b = 0; b < bits; ++b) {
            ASSERT_LT(static_cast<size_t>(at + b), used.size());
            EXPECT_FALSE(used[static_cast<size_t>(at + b)]);
            used[static_cast<size_t>(at + b)] = true;
          }
        }
      }
    }
  }
  // The examples of formats 3: eight 4-bit channels of an element, and a run of 8 at 2 bits.
  EXPECT_EQ(PlaneBit(0, 8, 4), 0);
  EXPECT_EQ(PlaneBit(1, 8, 4), 16);
  EXPECT_EQ(PlaneBit(2, 8, 4), 4);
  EXPECT_EQ(PlaneBit(7, 8, 4), 28);
  EXPECT_EQ(PlaneBit(1, 8, 2), 8);
  EXPECT_EQ(PlaneBit(15, 16, 2), 30);
  EXPECT_EQ(PlaneBit(3, 4, 8), 24);
}

TEST(Quantise, OffsetsAreNeverMinusZero) {
  EXPECT_EQ(UniformScale(-0.0f, 0.0f, -0.0f, 8).m_bits, 0);
  EXPECT_EQ(MeanOffset(-0.0f), 0);
}

}  // namespace
}  // namespace dyna::codec
