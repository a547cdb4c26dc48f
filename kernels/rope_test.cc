#include "kernels/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "kernels/cpu/tile_ops.h"
#include "kernels/test_data.h"

namespace dyna {
namespace {

TEST(Rope, TablesAreWithinF32OfDouble) {
  const Rope rope = testing::MakeRope(64);
  const RopeTable table(rope);
  auto block = std::make_unique<RopeBlock>();
  for (const uint32_t index : {0u, 1u, 47u, 16383u}) {  // up to a million tokens
    table.FillBlock(index, block.get());
    for (int p = 0; p < 32; ++p) {
      for (int t = 0; t < kBlockTokens; ++t) {
        const double angle =
            (index * 64.0 + t) * static_cast<double>(rope.inv_freq[static_cast<size_t>(p)]);
        EXPECT_NEAR(block->cos[p][t], std::cos(angle), 3e-7);
        EXPECT_NEAR(block->sin[p][t], std::sin(angle), 3e-7);
      }
    }
  }
}

// Every digit of a position, and positions beyond the tables.
TEST(Rope, FirstAnglesAreThoseOfDouble) {
  const Rope rope = testing::MakeRope(64);
  const RopeTable table(rope);
  std::vector<RopeTable::Angle> at(32);
  for (const uint64_t first :
       {uint64_t{0}, uint64_t{1}, uint64_t{63}, uint64_t{64}, uint64_t{4097}, uint64_t{102399},
        uint64_t{0xffffff}, uint64_t{0x1000000}, uint64_t{64} * 0x12345678}) {
    table.FirstAngles(first, at);
    for (size_t p = 0; p < at.size(); ++p) {
      const double angle = static_cast<double>(first) * static_cast<double>(rope.inv_freq[p]);
      ASSERT_NEAR(at[p].cos, std::cos(angle), 6e-8) << first << " pair " << p;
      ASSERT_NEAR(at[p].sin, std::sin(angle), 6e-8) << first << " pair " << p;
    }
  }
}

TEST(Rope, RotateTurnsPairsAndUndoes) {
  for (const RopeKind rope_kind : {RopeKind::kHalf, RopeKind::kInterleaved}) {
    Rope rope = testing::MakeRope(32, rope_kind);  // of 48 channels: the last 16 do not turn
    const RopeTable table(rope);
    auto block = std::make_unique<RopeBlock>();
    table.FillBlock(3, block.get());
    std::mt19937 random(4);
    std::normal_distribution<double> normal;
    alignas(64) float planes[48 * kLanes];
    std::vector<double> rows(64 * 48);
    for (double& v : rows) v = static_cast<float>(normal(random));
    for (int t = 0; t < 64; ++t)
      for (int c = 0; c < 48; ++c)
        planes[c * kLanes + t] = static_cast<float>(rows[static_cast<size_t>(t * 48 + c)]);
    ScalarTileOps().rotate(planes, *block, false);
    for (int t = 0; t < 64; ++t) {
      double* row = &rows[static_cast<size_t>(t * 48)];
      testing::TurnRow(rope, 3 * 64 + t, row);
      for (int c = 0; c < 48; ++c) EXPECT_NEAR(planes[c * kLanes + t], row[c], 2e-6);
      testing::TurnRow(rope, 3 * 64 + t, row, -1);
    }
    ScalarTileOps().rotate(planes, *block, true);
    for (int t = 0; t < 64; ++t)
      for (int c = 0; c < 48; ++c)
        EXPECT_NEAR(planes[c * kLanes + t], rows[static_cast<size_t>(t * 48 + c)], 2e-6);
  }
}

}  // namespace
}  // namespace dyna
