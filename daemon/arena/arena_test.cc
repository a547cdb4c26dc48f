#include "daemon/arena/arena.h"
#include "tests/support/seed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>

namespace dyna {
namespace {

std::unique_ptr<Arena> MakeArena(uint64_t bytes, uint32_t ranges = 0, bool prefault = false) {
  auto arena = Arena::Create({.bytes = bytes, .max_ranges = ranges, .prefault = prefault});
  EXPECT_TRUE(arena.ok()) << arena.status().ToString();
  return std::move(*arena);
}

TEST(Arena, RefusesSizesItCannotHave) {
  EXPECT_EQ(Arena::Create({.bytes = 255}).status().code(), StatusCode::kInvalid);
  EXPECT_EQ(Arena::Create({.bytes = uint64_t{1} << 41}).status().code(), StatusCode::kTooLarge);
}

TEST(Arena, ExtentsAreWritableAndFreedByScope) {
  auto arena = MakeArena(1 << 20, 0, true);
  {
    auto e = arena->Allocate(1000, 7);
    ASSERT_TRUE(e.ok());
    EXPECT_EQ(e->size(), 1024u);
    EXPECT_EQ(e->owner(), 7u);
    std::memset(e->bytes().data(), 0xab, e->size());
    Extent moved = std::move(*e);
    EXPECT_FALSE(*e);
    EXPECT_EQ(arena->stats().extents, 1u);
    EXPECT_EQ(arena->used_bytes(), 1024u);
  }
  EXPECT_EQ(arena->used_bytes(), 0u);
  EXPECT_EQ(arena->stats().extents, 0u);
}

TEST(Arena, FullAnswersRetry) {
  auto arena = MakeArena(1024);
  auto e = arena->Allocate(1024);
  ASSERT_TRUE(e.ok());
  EXPECT_EQ(arena->Allocate(1).status().code(), StatusCode::kRetry);
  EXPECT_EQ(arena->Allocate(0).status().code(), StatusCode::kInvalid);
  EXPECT_EQ(arena->stats().failed_allocations, 1u);
}

TEST(Arena, RetiredWhileReadIsFreedAfterTheLastReader) {
  auto arena = MakeArena(4096);
  auto e = arena->Allocate(4096);
  ASSERT_TRUE(e.ok());
  std::memset(e->bytes().data(), 0x5a, 4096);
  ReadRef a = e->Read();
  ReadRef b = a;
  EXPECT_TRUE(e->being_read());
  e->Retire();
  EXPECT_EQ(arena->stats().live_bytes, 0u);
  EXPECT_EQ(arena->stats().retired_bytes, 4096u);
  EXPECT_EQ(arena->used_bytes(), 4096u);
  EXPECT_FALSE(arena->Allocate(256).ok());
  a.Release();
  EXPECT_EQ(b.bytes()[4095], std::byte{0x5a});
  EXPECT_FALSE(arena->Allocate(256).ok());
  b = ReadRef();
  EXPECT_EQ(arena->stats().retired_bytes, 0u);
  EXPECT_TRUE(arena->Allocate(4096).ok());
}

// Owners of a compaction test: extents by owner number, each filled with its number.
struct Owners {
  std::map<uint64_t, Extent> held;

  bool Add(Arena& arena, uint64_t owner, uint64_t bytes) {
    auto e = arena.Allocate(bytes, owner);
    if (!e.ok()) return false;
    std::memset(e->bytes().data(), static_cast<int>(owner & 0xff), e->size());
    held[owner] = std::move(*e);
    return true;
  }
  Arena::Mover mover() {
    return [this](uint64_t owner, uint64_t offset, Extent& fresh) {
      Extent& old = held.at(owner);
      EXPECT_EQ(old.offset(), offset);
      std::memcpy(fresh.bytes().data(), old.bytes().data(), old.size());
      std::swap(old, fresh);
      return true;
    };
  }
  void Check() const {
    for (const auto& [owner, e] : held)
      for (std::byte b : e.bytes()) ASSERT_EQ(b, static_cast<std::byte>(owner & 0xff));
  }
};

TEST(Arena, CompactionMakesRoom) {
  auto arena = MakeArena(64 * 256);
  Owners owners;
  for (uint64_t i = 0; i < 64; ++i) ASSERT_TRUE(owners.Add(*arena, i, 256));
  for (uint64_t i = 0; i < 64; i += 2) owners.held.erase(i);
  EXPECT_FALSE(arena->Allocate(8 * 256).ok());
  EXPECT_GT(arena->stats().storage.fragmentation, 0.9);

  auto plan = arena->PlanCompaction(8 * 256);
  ASSERT_FALSE(plan.empty());
  EXPECT_LE(plan.bytes(), 4 * 256u);
  while (!arena->CompactStep(plan, 256, owners.mover())) {
  }
  EXPECT_TRUE(arena->Allocate(8 * 256).ok());
  EXPECT_GE(arena->stats().moved_extents, 3u);
  owners.Check();
}

TEST(Arena, CompactionLeavesReadersAlone) {
  auto arena = MakeArena(4 * 256);
  Owners owners;
  for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(owners.Add(*arena, i, 256));
  ReadRef one = owners.held.at(1).Read();
  ReadRef three = owners.held.at(3).Read();
  owners.held.erase(0);
  owners.held.erase(2);
  EXPECT_TRUE(arena->PlanCompaction(512).empty());
  three.Release();
  auto plan = arena->PlanCompaction(512);
  ASSERT_EQ(plan.size(), 1u);
  // Read between the plan and the step: it stays.
  three = owners.held.at(3).Read();
  EXPECT_TRUE(arena->CompactStep(plan, 1 << 20, owners.mover()));
  EXPECT_EQ(arena->stats().moved_extents, 0u);
  EXPECT_EQ(arena->stats().storage.free_bytes, 512u);
}

TEST(Arena, NothingToPlanWhenThereIsRoomOrNone) {
  auto arena = MakeArena(4 * 256);
  Owners owners;
  EXPECT_TRUE(arena->PlanCompaction(1024).empty());
  for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(owners.Add(*arena, i, 256));
  EXPECT_TRUE(arena->PlanCompaction(256).empty());
}

TEST(Arena, AnAbandonedPlanGivesItsHolesBack) {
  auto arena = MakeArena(8 * 256);
  Owners owners;
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(owners.Add(*arena, i, 256));
  for (uint64_t i = 0; i < 8; i += 2) owners.held.erase(i);
  {
    auto plan = arena->PlanCompaction(2 * 256);
    ASSERT_FALSE(plan.empty());
    EXPECT_LT(arena->stats().storage.free_bytes, 4 * 256u);
  }
  EXPECT_EQ(arena->stats().storage.free_bytes, 4 * 256u);
}

// Ranges of one bin, the longest behind shorter ones: it is found, or withheld from nobody.
TEST(Arena, ALongRangeBehindShorterOnesIsNotLost) {
  for (const uint64_t shorter : {1, 100}) {  // few enough to look at, and not
    auto arena = MakeArena((70 + 1 + 66 * 100) * 256);
    Owners owners;
    ASSERT_TRUE(owners.Add(*arena, 0, 70 * 256));
    for (uint64_t i = 1; i <= 100; ++i) {
      ASSERT_TRUE(owners.Add(*arena, 1000 + i, 256));
      ASSERT_TRUE(owners.Add(*arena, i, 65 * 256));
    }
    ASSERT_TRUE(owners.Add(*arena, 2000, 256));
    owners.held.erase(0);
    for (uint64_t i = 1; i <= shorter; ++i) owners.held.erase(i);
    const uint64_t free_bytes = arena->stats().storage.free_bytes;
    {
      const auto plan = arena->PlanCompaction(70 * 256);
      if (plan.empty()) {
        EXPECT_EQ(arena->stats().storage.free_bytes, free_bytes) << shorter;
      }
    }
    if (shorter == 1) {
      EXPECT_TRUE(owners.Add(*arena, 3000, 70 * 256));
    }
  }
}

// Random life with readers and compaction: bytes never change under their owner, and a finished
// plan yields the range it promised when nobody interfered.
TEST(Arena, RandomLife) {
  std::mt19937 rng(testing::TestSeed());
  auto arena = MakeArena(1 << 20, 8192);
  Owners owners;
  std::vector<ReadRef> readers;
  uint64_t next = 1, planned = 0;
  for (int step = 0; step < 20'000; ++step) {
    const auto pick = [&] {
      auto it = owners.held.lower_bound(rng() % next);
      return it == owners.held.end() ? owners.held.begin() : it;
    };
    switch (rng() % 8) {
      case 0:
      case 1:
      case 2:
        if (owners.Add(*arena, next, 1 + rng() % 8000)) ++next;
        break;
      case 3:
      case 4:
        if (!owners.held.empty()) owners.held.erase(pick());
        break;
      case 5:
        if (!owners.held.empty() && readers.size() < 3) readers.push_back(pick()->second.Read());
        break;
      case 6:
        if (!readers.empty()) readers.erase(readers.begin());
        break;
      default: {
        const uint64_t want = 256 * (1 + rng() % 128);
        auto plan = arena->PlanCompaction(want);
        if (plan.empty()) break;
        const size_t moves = plan.size();
        const uint64_t before = arena->stats().moved_extents;
        while (!arena->CompactStep(plan, 4096, owners.mover())) {
        }
        if (arena->stats().moved_extents - before == moves) {
          ++planned;
          ASSERT_GE(arena->stats().storage.free_bytes, want);
        }
      }
    }
  }
  owners.Check();
  EXPECT_GT(planned, 0u);
  readers.clear();
  owners.held.clear();
  EXPECT_EQ(arena->stats().storage.largest_free_bytes, arena->capacity());
}

}  // namespace
}  // namespace dyna
