#include "daemon/policy/ladder_set.h"

#include <gtest/gtest.h>

#include <vector>

#include "daemon/policy/log2_byte.h"
#include "daemon/policy/policy_testing.h"
#include "kernels/segment.h"

namespace dyna {
namespace {

class LadderSetTest : public ::testing::Test {
 protected:
  LayerModel Model(bool basis, bool omega) {
    LayerModel model;
    model.shape = &spec_.layers[0];
    if (basis) model.basis = testing::FallingBasis(2, 64);
    if (omega) model.omega = {omega_, omega_};
    return model;
  }
  ContextSpec spec_ = testing::SmallSpec();
  std::vector<int16_t> omega_ = {5, -3};
};

void ExpectConvex(const Ladder& ladder) {
  const auto rungs = ladder.rungs();
  for (size_t i = 0; i + 1 < rungs.size(); ++i) {
    EXPECT_GT(rungs[i].bytes, rungs[i + 1].bytes);
    if (i + 2 < rungs.size()) {
      EXPECT_LE(rungs[i].log2_slope, rungs[i + 1].log2_slope);
    }
  }
}

TEST_F(LadderSetTest, HullDropsWhatIsAboveIt) {
  const std::vector<Candidate> candidates = {{1, 0, 100, 0},
                                             {2, 0, 80, .5} /* above the line from 1 to 3 */,
                                             {3, 0, 60, .4},
                                             {4, 0, 50, .4} /* dominates 3 */,
                                             {5, 0, 10, 4}};
  const Ladder ladder(UnitKind::kK, candidates);
  ASSERT_EQ(ladder.rungs().size(), 3u);
  EXPECT_EQ(ladder.rungs()[1].k_kind, 4);
  EXPECT_EQ(ladder.rungs()[2].k_kind, 5);
  ExpectConvex(ladder);
}

TEST_F(LadderSetTest, PairsWithoutOmega) {
  const LayerModel model = Model(true, false);
  const CellLadder cell = CompressingCell(model, 0, QualityClass::kBalanced);
  ASSERT_TRUE(cell.pair);
  const auto rungs = cell.k.rungs();
  const Basis& basis = *model.basis;
  ASSERT_EQ(rungs.size(), 4u);
  EXPECT_EQ(rungs[0].k_kind, kind::kPlain8);
  EXPECT_EQ(rungs[3].v_kind, kind::VBits(2));
  EXPECT_EQ(rungs[2].k_kind, kind::Level(basis.LevelOf(2)));
  EXPECT_EQ(rungs[3].k_kind, rungs[2].k_kind);
  // The step of K from 4 bits to 2 costs 1 a byte.
  EXPECT_NEAR(FromLog2Byte(rungs[1].log2_slope), 1, .06);
  ExpectConvex(cell.k);
  EXPECT_EQ(cell.k.floor(false), 3);

  const CellLadder small = CompressingCell(model, 0, QualityClass::kSmall);
  EXPECT_EQ(small.k.rungs().back().k_kind, kind::Level(basis.LevelOf(1)));
  EXPECT_EQ(small.k.rungs().back().v_kind, kind::VBits(1));
  ExpectConvex(small.k);
}

TEST_F(LadderSetTest, WithoutABasisNothingBelowFourBits) {
  for (QualityClass q : {QualityClass::kSmall, QualityClass::kBalanced}) {
    const CellLadder pair = CompressingCell(Model(false, false), 0, q);
    ASSERT_EQ(pair.k.rungs().size(), 2u);
    EXPECT_EQ(pair.k.rungs()[1].k_kind, kind::kPlain4);
    EXPECT_EQ(pair.k.rungs()[1].v_kind, kind::VBits(4));
    const CellLadder split = CompressingCell(Model(false, true), 0, q);
    EXPECT_EQ(split.k.rungs().back().k_kind, kind::kPlain4);
    EXPECT_EQ(split.v.rungs().back().v_kind, kind::VBits(4));
  }
}

TEST_F(LadderSetTest, SplitWithOmega) {
  const LayerModel model = Model(true, true);
  const Basis& basis = *model.basis;
  const CellLadder balanced = CompressingCell(model, 1, QualityClass::kBalanced);
  ASSERT_FALSE(balanced.pair);
  EXPECT_EQ(balanced.log2_omega_k, -3);
  EXPECT_EQ(balanced.k.rungs().front().k_kind, kind::kPlain8);
  EXPECT_EQ(balanced.k.rungs().back().k_kind, kind::Level(basis.LevelOf(1)));
  EXPECT_EQ(balanced.v.rungs().back().v_kind, kind::VBits(1));
  ExpectConvex(balanced.k);
  ExpectConvex(balanced.v);

  const CellLadder small = CompressingCell(model, 1, QualityClass::kSmall);
  EXPECT_EQ(small.k.rungs().back().k_kind, kind::Level(0));
  EXPECT_EQ(small.v.rungs().back().v_kind, kind::VBits(0));
  ExpectConvex(small.k);
  ExpectConvex(small.v);
  // Never observed: L1 and 1 bit of V or more.
  const Rung& k = small.k.rungs()[static_cast<size_t>(small.k.floor(false))];
  EXPECT_GE(basis.mean_bits(1, k.k_kind - kind::kLevel0), .75);
  EXPECT_GE(k.k_kind, kind::Level(basis.LevelOf(1)));
  EXPECT_EQ(small.v.rungs()[static_cast<size_t>(small.v.floor(false))].v_kind, kind::VBits(1));
  EXPECT_GT(small.k.floor(true), small.k.floor(false));
}

TEST_F(LadderSetTest, FixedClassesHaveOneRung) {
  const CellLadder exact = CompressingCell(Model(true, true), 0, QualityClass::kExact);
  ASSERT_EQ(exact.k.rungs().size(), 1u);
  EXPECT_EQ(exact.k.rungs()[0].k_kind, kind::kRaw);
  const CellLadder high = CompressingCell(Model(true, true), 0, QualityClass::kHigh);
  ASSERT_EQ(high.k.rungs().size(), 1u);
  EXPECT_EQ(high.k.rungs()[0].k_kind, kind::kPlain8);
  EXPECT_EQ(high.k.rungs()[0].v_kind, kind::VBits(8));
}

TEST_F(LadderSetTest, BytesAreThoseOfSegments) {
  const LayerModel model = Model(true, true);
  const CellLadder cell = CompressingCell(model, 0, QualityClass::kSmall);
  for (const Rung& rung : cell.k.rungs())
    EXPECT_EQ(rung.bytes, *KTileBytes(rung.k_kind, 64, model.dtype, model.basis.get(), 0));
  for (const Rung& rung : cell.v.rungs())
    EXPECT_EQ(rung.bytes, *VTileBytes(rung.v_kind, 64, model.dtype));
}

TEST_F(LadderSetTest, KnowsWhereATileStands) {
  const CellLadder cell = CompressingCell(Model(true, false), 0, QualityClass::kBalanced);
  const auto rungs = cell.k.rungs();
  for (size_t i = 0; i < rungs.size(); ++i)
    EXPECT_EQ(cell.RungOf(cell.k, rungs[i].k_kind, rungs[i].v_kind), static_cast<int>(i));
  EXPECT_EQ(cell.RungOf(cell.k, kind::kRaw, kind::kRaw), -1);
  EXPECT_EQ(cell.RungOf(cell.k, rungs[1].k_kind, kind::VBits(2)), 1);  // K still has steps
}

TEST(KindFor, TakesTheNarrowestThatHasTheBits) {
  const auto basis = testing::FallingBasis(2, 64);
  EXPECT_EQ(KKindFor(basis.get(), 0, 2), kind::Level(basis->LevelOf(2)));
  EXPECT_EQ(KKindFor(basis.get(), 0, 2.1), kind::Level(basis->LevelOf(2) + 1));
  EXPECT_EQ(KKindFor(basis.get(), 0, 6), kind::kPlain8);
  EXPECT_EQ(KKindFor(nullptr, 0, 2), kind::kPlain4);
  EXPECT_EQ(KKindFor(nullptr, 0, 4.5), kind::kPlain8);
  EXPECT_EQ(KKindFor(nullptr, 0, 9), kind::kRaw);
  EXPECT_EQ(VKindFor(0), kind::VBits(0));
  EXPECT_EQ(VKindFor(3), kind::VBits(4));
  EXPECT_EQ(VKindFor(8.5), kind::kRaw);
}

}  // namespace
}  // namespace dyna
