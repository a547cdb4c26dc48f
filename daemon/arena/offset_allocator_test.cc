#include "daemon/arena/offset_allocator.h"
#include "tests/support/seed.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace dyna {
namespace {

TEST(OffsetAllocator, HandsOutUnitsInOrder) {
  OffsetAllocator a(1 << 20, 64);
  const auto x = a.Allocate(1), y = a.Allocate(257), z = a.Allocate(512);
  ASSERT_TRUE(x && y && z);
  EXPECT_EQ(a.offset(*x), 0u);
  EXPECT_EQ(a.bytes(*x), 256u);
  EXPECT_EQ(a.offset(*y), 256u);
  EXPECT_EQ(a.bytes(*y), 512u);
  EXPECT_EQ(a.offset(*z), 768u);
  EXPECT_EQ(a.free_bytes(), (1u << 20) - 1280);
}

TEST(OffsetAllocator, WholeCapacityInOnePiece) {
  OffsetAllocator a(1000 * 256 + 255, 8);
  EXPECT_EQ(a.capacity(), 256000u);
  EXPECT_FALSE(a.Allocate(256001));
  const auto all = a.Allocate(256000);
  ASSERT_TRUE(all);
  EXPECT_FALSE(a.Allocate(1));
  EXPECT_EQ(a.Report().largest_free_bytes, 0u);
  EXPECT_EQ(a.Report().fragmentation, 0.0);
  a.Free(*all);
  EXPECT_EQ(a.Report().largest_free_bytes, 256000u);
}

TEST(OffsetAllocator, FreeMergesBothSides) {
  OffsetAllocator a(4 * 256, 8);
  const auto x = a.Allocate(256), y = a.Allocate(256), z = a.Allocate(256), w = a.Allocate(256);
  ASSERT_TRUE(x && y && z && w);
  a.Free(*x);
  a.Free(*z);
  EXPECT_EQ(a.Report().free_ranges, 2u);
  EXPECT_DOUBLE_EQ(a.Report().fragmentation, 0.5);
  a.Free(*y);
  EXPECT_EQ(a.Report().free_ranges, 1u);
  EXPECT_EQ(a.Report().largest_free_bytes, 768u);
  a.Free(*w);
  EXPECT_EQ(a.Report().largest_free_bytes, 1024u);
  EXPECT_EQ(a.Report().allocations, 0u);
}

TEST(OffsetAllocator, NodesAreBounded) {
  OffsetAllocator a(1 << 20, 4);
  std::vector<OffsetAllocator::Node> nodes;
  while (auto n = a.Allocate(256)) nodes.push_back(*n);
  EXPECT_EQ(nodes.size(), 3u);  // the fourth node is the free rest
  for (auto n : nodes) a.Free(n);
  EXPECT_EQ(a.free_bytes(), uint64_t{1} << 20);
}

TEST(OffsetAllocator, BeyondFourGigabytes) {
  const uint64_t tib = uint64_t{1} << 40;
  OffsetAllocator a(tib, 16);
  const auto big = a.Allocate(tib / 2), next = a.Allocate(256);
  ASSERT_TRUE(big && next);
  EXPECT_EQ(a.offset(*next), tib / 2);
}

TEST(OffsetAllocator, ReserveTakesAHole) {
  OffsetAllocator a(3 * 256, 8);
  const auto x = a.Allocate(256), y = a.Allocate(256), z = a.Allocate(256);
  ASSERT_TRUE(x && y && z);
  a.Free(*y);
  ASSERT_TRUE(a.IsFree(a.Next(a.First())));
  a.Reserve(a.Next(a.First()));
  EXPECT_FALSE(a.Allocate(1));
  EXPECT_EQ(a.free_bytes(), 0u);
}

// Against a map of taken ranges: no overlap, exact accounting, full merge at the end, and no
// refusal while a range twice as long is free.
TEST(OffsetAllocator, RandomOperations) {
  std::mt19937 rng(testing::TestSeed());
  const uint64_t capacity = 64 << 20;
  OffsetAllocator a(capacity, 1 << 16);
  std::map<uint64_t, OffsetAllocator::Node> taken;
  uint64_t used = 0;
  for (int step = 0; step < 200'000; ++step) {
    if (rng() % 100 < 55) {
      const uint64_t bytes = 1 + rng() % (1u << (8 + rng() % 13));
      const uint64_t largest = a.Report().largest_free_bytes;
      const auto node = a.Allocate(bytes);
      if (!node) {
        ASSERT_LT(largest, 2 * bytes + 512);
        continue;
      }
      const uint64_t offset = a.offset(*node), size = a.bytes(*node);
      ASSERT_GE(size, bytes);
      ASSERT_LT(size, bytes + 256);
      ASSERT_LE(offset + size, capacity);
      const auto after = taken.lower_bound(offset);
      if (after != taken.end()) {
        ASSERT_LE(offset + size, after->first);
      }
      if (after != taken.begin()) {
        const auto before = std::prev(after);
        ASSERT_LE(before->first + a.bytes(before->second), offset);
      }
      taken[offset] = *node;
      used += size;
    } else if (!taken.empty()) {
      auto it = taken.lower_bound(rng() % capacity);
      if (it == taken.end()) it = taken.begin();
      used -= a.bytes(it->second);
      a.Free(it->second);
      taken.erase(it);
    }
    ASSERT_EQ(a.free_bytes(), capacity - used);
    ASSERT_EQ(a.Report().allocations, taken.size());
  }
  for (const auto& [offset, node] : taken) a.Free(node);
  EXPECT_EQ(a.Report().largest_free_bytes, capacity);
  EXPECT_EQ(a.Report().free_ranges, 1u);
}

}  // namespace
}  // namespace dyna
