#include "daemon/store/block.h"

#include <gtest/gtest.h>

namespace dyna {
namespace {

using enum BlockState;

// The states a block goes through to reach one.
std::vector<BlockState> Path(BlockState to) {
  if (to == kWriting) return {};
  return {to};
}

TEST(Block, OnlyTheLegalTableIsPassed) {
  const std::vector<std::pair<BlockState, BlockState>> legal = {
      {kWriting, kResident}, {kWriting, kSpilled}, {kWriting, kGone},    {kResident, kSpilled},
      {kResident, kGone},    {kSpilled, kGone},    {kSpilled, kResident}};
  for (BlockState from : {kWriting, kResident, kSpilled, kGone})
    for (BlockState to : {kWriting, kResident, kSpilled, kGone}) {
      Block block;
      for (BlockState step : Path(from)) ASSERT_TRUE(block.To(step));
      const bool allowed =
          std::find(legal.begin(), legal.end(), std::pair(from, to)) != legal.end();
      EXPECT_EQ(block.To(to), allowed) << BlockStateName(from) << " -> " << BlockStateName(to);
      EXPECT_EQ(block.state(), allowed ? to : from) << "a refused change changes nothing";
    }
}

TEST(Block, FindLooksBackOverShardsThatStartBetween) {
  Block block;
  for (uint16_t head : {0, 2}) {
    Segment s;
    s.layer = 1;
    s.head_begin = head;
    s.kv_heads = 2;
    block.segments.push_back(std::move(s));
  }
  EXPECT_EQ(block.Find(1, 1), &block.segments[0]);
  EXPECT_EQ(block.Find(1, 3), &block.segments[1]);
  EXPECT_EQ(block.Find(1, 4), nullptr);
  EXPECT_EQ(block.Find(0, 0), nullptr);
}

}  // namespace
}  // namespace dyna
