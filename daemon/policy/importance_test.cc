#include "daemon/policy/importance.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "daemon/policy/log2_byte.h"
#include "daemon/policy/policy_testing.h"

namespace dyna {
namespace {

constexpr HedgeOptions kHedge;

TEST(Importance, HistoryNeverStarvesATile) {
  for (double r : {0.0, 1e-6, 1.0, 64.0})
    for (double z : {1e-6, 1.0, 1e6}) EXPECT_GE(HedgedWeight(r, z, kHedge), 1 - kHedge.hedge);
}

TEST(Importance, UniformAttentionWeighsOne) {
  HedgeNormaliser z(testing::SmallSpec());
  std::vector<float> x(256, 5.f);  // the max over a group lifts the mean above 1
  for (int i = 0; i < 10; ++i) z.Update(0, 1, x, 64, kHedge);
  EXPECT_NEAR(z.z(0, 1), 5, 1e-4);
  EXPECT_EQ(z.z(0, 0), 1);
  EXPECT_NEAR(HedgedWeight(5, z.z(0, 1), kHedge), 1, 1e-4);
}

TEST(Importance, MoreAttentionMoreWeight) {
  double last = 0;
  for (double r = 0; r < 20; r += .5) {
    EXPECT_GT(HedgedWeight(r, 3, kHedge), last);
    last = HedgedWeight(r, 3, kHedge);
  }
}

TEST(Importance, ZForgetsAtTheHalfLife) {
  HedgeNormaliser z(testing::SmallSpec());
  std::vector<float> one(64, 1.f), nine(64, 9.f);
  for (int i = 0; i < 1000; ++i) z.Update(0, 0, one, 64, kHedge);
  for (int i = 0; i < 64; ++i) z.Update(0, 0, nine, 64, kHedge);  // one half-life
  EXPECT_NEAR(z.z(0, 0), 5, .1);
}

TEST(Importance, UncoveredTokensDoNotCount) {
  HedgeNormaliser z(testing::SmallSpec());
  std::vector<float> x(64, std::numeric_limits<float>::quiet_NaN());
  z.Update(0, 0, x, 64, kHedge);
  EXPECT_EQ(z.z(0, 0), 1);
  x[5] = 3;
  z.Update(0, 0, x, 64, kHedge);
  EXPECT_NEAR(z.z(0, 0), 3, 1e-5);
}

TEST(Importance, TileWeightFollowsEnergy) {
  const float r[8] = {9, 0, 0, 0, 0, 0, 0, 0};
  const float energy[8] = {1, 0, 0, 0, 0, 0, 0, 0}, none[8] = {};
  EXPECT_DOUBLE_EQ(TileWeight(r, 1, energy, kHedge), HedgedWeight(9, 1, kHedge));
  const double alike = (HedgedWeight(9, 1, kHedge) + 7 * HedgedWeight(0, 1, kHedge)) / 8;
  EXPECT_DOUBLE_EQ(TileWeight(r, 1, {}, kHedge), alike);
  EXPECT_DOUBLE_EQ(TileWeight(r, 1, none, kHedge), alike);
}

TEST(Importance, EnergyIsRelativeToItsCell) {
  EnergyMeans means(testing::SmallSpec());
  record::Cell cell;
  for (int i = 0; i < 100; ++i) means.Fold(0, 0, 10, 1e6, &cell);
  EXPECT_EQ(cell.log2_energy_k, 0);
  means.Fold(0, 0, 40, 1e6 / 4, &cell);
  EXPECT_NEAR(cell.log2_energy_k, 2 * kEighths, 1);
  EXPECT_NEAR(cell.log2_energy_v, -2 * kEighths, 1);
  means.Fold(0, 0, 0, std::numeric_limits<double>::quiet_NaN(), &cell);
  EXPECT_EQ(cell.log2_energy_k, -6 * kEighths);
  EXPECT_EQ(cell.log2_energy_v, 0);
}

TEST(Importance, ReuseHalvesToItsFloor) {
  Reuse h;
  for (int i = 0; i < 7; ++i) h.Hit(0, 600);
  EXPECT_NEAR(h.At(0, 600), 8, 1e-3);
  EXPECT_NEAR(h.At(600'000, 600), 4, 1e-3);
  EXPECT_EQ(h.At(600'000'000, 600), 1);
  EXPECT_EQ(h.At(-5, 600), h.At(0, 600));  // a clock that went back
}

TEST(Importance, ReuseWeighsNoMoreThanItsBound) {
  Reuse h;
  for (int i = 0; i < 2; ++i) h.Hit(0, 600);
  EXPECT_NEAR(h.Weight(0, 600), 3, 1e-3);
  for (int i = 0; i < 1000; ++i) h.Hit(0, 600);
  EXPECT_EQ(h.Weight(0, 600), kMostReuse);
  EXPECT_NEAR(h.At(0, 600), 1003, 1e-2);  // which block leaves memory first still goes by the count
}

TEST(Log2Byte, RoundsAndSaturates) {
  EXPECT_EQ(Log2Byte(1), 0);
  EXPECT_EQ(Log2Byte(2), 8);
  EXPECT_EQ(Log2Byte(1e30), 127);
  EXPECT_EQ(Log2Byte(0), -128);
  EXPECT_EQ(Log2Byte(-1), -128);
  EXPECT_EQ(Log2Byte(std::nan("")), -128);
  for (int e = -100; e <= 100; ++e) EXPECT_EQ(Log2Byte(FromLog2Byte(e)), e);
}

}  // namespace
}  // namespace dyna
