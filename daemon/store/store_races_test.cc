// What happens to a block while something else is happening to it.
#include <gtest/gtest.h>

#include "daemon/store/store_harness.h"

namespace dyna {
namespace {

using testing::StoreHarness;

TEST(StoreRaces, TwoPersistentShardsBothSurvive) {
  StoreHarness s;
  for (uint16_t head = 0; head < 2; ++head) {
    wire::Put part = s.Request(1, 0);
    part.durability = Durability::kPersistent;
    part.shard = {0, StoreHarness::kLayers, head, static_cast<uint16_t>(head + 1)};
    ASSERT_TRUE(s.Put(part, StoreHarness::Data(1)).status.ok());
  }
  ASSERT_LT(s.ErrorOf(1), 1e-3);
  s.Restart();
  EXPECT_LT(s.ErrorOf(1), 1e-3) << "acknowledged persistent";
}

TEST(StoreRaces, DeletingAHalfWrittenBlockFreesTheSessionsRoom) {
  StoreHarness s;
  wire::Put half = s.Request(1, 0);
  half.layer_count = 1;
  ASSERT_TRUE(s.Put(half, StoreHarness::Data(1)).status.ok());
  s.store->Delete(s.caller, {s.context, {StoreHarness::Name(1)}});
  s.Settle();
  EXPECT_EQ(s.store->stats().writing_blocks, 0u);
  s.clock.Advance(std::chrono::seconds(60));
  s.Settle();
  EXPECT_EQ(s.store->stats().writing_blocks, 0u) << "after the time-out";
  EXPECT_FALSE(s.store->NeedsClock());
}

TEST(StoreRaces, ClearDuringABankWriteStaysCleared) {
  StoreHarness s;
  s.bank->Hold();
  s.PutUnanswered(1);
  EXPECT_EQ(s.store->Clear(s.caller, {s.context}).count, 1u);
  s.bank->ReleaseAll();
  s.Settle();
  s.Restart();
  EXPECT_EQ(s.Lookup({1}).run, 0u) << "cleared blocks came back";
}

// The read that ends was of a copy that is not the block's any more: its miss is not the block's.
TEST(StoreRaces, AMissOfAnOlderCopyIsNotOfWhatTookItsPlace) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  s.Squeeze();
  s.spill->Damage({s.caller.tenant, s.context, StoreHarness::Name(1)},
                  {PartId::Kind::kSegment, 0, 0});
  s.spill->Hold();
  std::vector<float> out(StoreHarness::kBlock);
  const auto hit = s.Lookup({1});
  ASSERT_EQ(hit.run, 1u);
  const wire::Fetch fetch = s.FetchOf(hit.lease, 1);
  Status fetched;
  s.store->Fetch(s.caller, fetch, StoreHarness::Views(out, 0, StoreHarness::kLayers, 0), {},
                 [&](Store::Fetched f) { fetched = f.reply.status; });
  s.Settle();
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kExact, Durability::kPersistent).ok());
  s.store->ReleaseLease(s.caller, hit.lease);
  s.Squeeze();  // it has the bank's copy
  s.spill->ReleaseAll();
  s.Settle();
  EXPECT_EQ(fetched.code(), StatusCode::kRetry);
  EXPECT_LT(s.ErrorOf(1), 1e-3) << "acknowledged persistent";
}

// A lease is a promise of the store's, which a client's delete may break for one block: that one is
// a miss, and the lease and its other blocks are as they were.
TEST(StoreRaces, APutIsNotGivenUpWhileTheCodecHasIt) {
  StoreHarness s;
  auto data = StoreHarness::Data(1);
  const auto sources = StoreHarness::Sources(data);
  Status status = Internal("not answered");
  s.store->Put(s.caller, s.Request(1, 0), sources, {},
               [&](const wire::PutReply& reply) { status = reply.status; });
  s.loop.RunAll();
  s.clock.Advance(std::chrono::seconds(40));
  s.store->Tick();
  s.Settle();
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

TEST(StoreRaces, BlockDeletedUnderALeaseIsAMissAndNoMore) {
  StoreHarness s;
  bool told = false;
  s.store->OnLeaseRevoked([&](SessionId, uint64_t) { told = true; });
  for (uint64_t n : {1u, 2u, 3u, 4u}) ASSERT_TRUE(s.PutBlock(n, static_cast<uint32_t>(n - 1)).ok());
  const auto alone = s.Lookup({2});
  const uint64_t of_it = s.store->stats().leased_bytes;
  s.store->ReleaseLease(s.caller, alone.lease);
  const auto lease = s.Lookup({1, 2, 3, 4});
  ASSERT_EQ(lease.run, 4u);
  const uint64_t held = s.store->stats().leased_bytes;
  ASSERT_EQ(s.store->Delete(s.caller, {s.context, {StoreHarness::Name(2)}}).count, 1u);
  EXPECT_EQ(s.store->stats().leased_bytes, held - of_it) << "a block that went holds no room";
  ASSERT_TRUE(s.PutBlock(2, 1).ok());                        // come again: another block
  ASSERT_TRUE(s.PutBlock(3, 2, QualityClass::kExact).ok());  // replaced: another generation

  std::vector<float> out(4 * StoreHarness::kBlock);
  std::vector<MutableKvView> targets;
  for (size_t b = 0; b < 4; ++b) {
    auto views = StoreHarness::Views(out, 0, StoreHarness::kLayers, 0);
    for (MutableKvView& v : views) {
      v.k += b * StoreHarness::kBlock * sizeof(float);
      v.v += b * StoreHarness::kBlock * sizeof(float);
      targets.push_back(v);
    }
  }
  wire::Fetch fetch = s.FetchOf(lease.lease, 4);
  Store::Fetched got;
  s.store->Fetch(s.caller, fetch, targets, {}, [&](Store::Fetched f) { got = std::move(f); });
  s.Settle();
  EXPECT_EQ(got.reply.status.code(), StatusCode::kMiss);
  for (size_t slot = 0; slot < 4 * StoreHarness::kLayers; ++slot) {
    const size_t b = slot / StoreHarness::kLayers;
    EXPECT_EQ(got.reply.segments[slot].status,
              b == 1 || b == 2 ? StatusCode::kMiss : StatusCode::kOk)
        << "block " << b;
  }
  for (size_t b : {0u, 3u}) {
    const auto want = StoreHarness::Data(b + 1);
    EXPECT_NEAR(out[b * StoreHarness::kBlock + 5], want[5], 0.1f);
  }

  // All of it, also while a block is read back: the lease is a valid one till its end.
  s.Drain();
  s.Restart();
  s.spill->Hold();
  const auto next = s.Lookup({1, 4});
  ASSERT_EQ(next.run, 2u);
  fetch.lease = next.lease;
  fetch.block_count = 2;
  targets.resize(2 * StoreHarness::kLayers);
  got = {};
  s.store->Fetch(s.caller, fetch, targets, {}, [&](Store::Fetched f) { got = std::move(f); });
  s.store->Clear(s.caller, {s.context});
  s.spill->ReleaseAll();
  s.Settle();
  EXPECT_EQ(got.reply.status.code(), StatusCode::kMiss);
  EXPECT_EQ(s.store->stats().leased_bytes, 0u);
  std::vector<float> one;
  EXPECT_EQ(s.Fetch(next.lease, 0, &one).reply.status.code(), StatusCode::kMiss);
  EXPECT_TRUE(s.store->ReleaseLease(s.caller, next.lease));
  EXPECT_FALSE(told);
}

TEST(StoreRaces, ExpiredBlockIsNotExists) {
  StoreHarness s;
  wire::Put put = s.Request(1, 0);
  put.ttl_ms = 1000;
  ASSERT_TRUE(s.Put(put, StoreHarness::Data(1)).status.ok());
  s.clock.Advance(std::chrono::seconds(2));
  put.ttl_ms = 0;
  (void)s.Put(put, StoreHarness::Data(1));
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

TEST(StoreRaces, ShardCommittedWhileTheFirstIsOnItsWayToDisk) {
  StoreHarness s;
  wire::Put part = s.Request(1, 0);
  part.shard = {0, StoreHarness::kLayers, 0, 1};
  ASSERT_TRUE(s.Put(part, StoreHarness::Data(1)).status.ok());
  s.spill->Hold();
  s.store->SetBudget(1024);  // everything must go
  s.Settle();
  s.store->SetBudget(0);
  part.shard = {0, StoreHarness::kLayers, 1, 2};
  auto reply = s.Put(part, StoreHarness::Data(1));
  const bool acked = reply.status.ok();
  s.spill->ReleaseAll();
  for (int i = 0; i < 5; ++i) s.Settle();
  ASSERT_TRUE(acked) << reply.status.ToString();
  EXPECT_LT(s.ErrorOf(1), 0.02) << "an acknowledged shard was dropped";
}

TEST(StoreRaces, DamagedSpillCopyFallsBackToTheBank) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  ASSERT_TRUE(s.PutBlock(2, 1).ok());
  s.store->SetBudget(1024);
  for (int i = 0; i < 5; ++i) s.Settle();
  s.store->SetBudget(0);
  const record::BlockKey key{s.caller.tenant, s.context, StoreHarness::Name(1)};
  if (s.spill_disk->blocks.count(key) != 0) s.spill->Damage(key, {PartId::Kind::kSegment, 0, 0});
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

// On both disks, and the spill is the one that is read first.
TEST(StoreRaces, FailingSpillFallsBackToTheBank) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  s.Squeeze();
  ASSERT_EQ(s.spill_disk->blocks.size(), 1u);
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  s.Squeeze();
  ASSERT_EQ(s.Lookup({1}).hits[0].tier, Tier::kSpill);
  s.Squeeze();
  s.spill->FailNext(1, Internal("i/o error"));
  EXPECT_LT(s.ErrorOf(1), .05);
}

TEST(StoreRaces, WhatIsDeletedWhileItIsBankedIsNotAcknowledged) {
  StoreHarness s;
  s.bank->Hold();
  const auto reply = s.PutUnanswered(1);
  s.bank->Release(1);  // the context's row: the block's own is on its way
  s.Settle();
  s.store->Delete(s.caller, {s.context, {StoreHarness::Name(1)}});
  s.bank->ReleaseAll();
  s.Settle();
  ASSERT_TRUE(reply->has_value());
  EXPECT_EQ((*reply)->segments.back().status, StatusCode::kCancelled);
  EXPECT_TRUE(s.bank_disk->blocks.empty());
}

TEST(StoreRaces, RestartTakesTheBankWhereTheSpillHasLess) {
  StoreHarness s;
  for (uint16_t head = 0; head < 2; ++head) {
    wire::Put part = s.Request(1, 0);
    part.durability = Durability::kPersistent;
    part.shard = {0, StoreHarness::kLayers, head, static_cast<uint16_t>(head + 1)};
    ASSERT_TRUE(s.Put(part, StoreHarness::Data(1)).status.ok());
    if (head != 0) continue;
    const record::BlockKey key{s.caller.tenant, s.context, StoreHarness::Name(1)};
    s.spill_disk->blocks[key] = s.bank_disk->blocks[key];  // an older copy of half of it
    s.spill_disk->rows = s.bank_disk->rows;
  }
  s.Restart();
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

TEST(StoreRaces, RefusedPutLeavesNothing) {
  StoreHarness s;
  auto bad = StoreHarness::Data(1);
  bad.back() = INFINITY;
  EXPECT_EQ(s.Put(s.Request(1, 0), bad).status.code(), StatusCode::kInvalid);
  EXPECT_EQ(s.Lookup({1}).hits[0].status, StatusCode::kMiss);
  EXPECT_EQ(s.arena->used_bytes(), 0u);
  EXPECT_EQ(s.store->stats().writing_blocks, 0u);
}

TEST(StoreRaces, WiderShardReplacesAndAnotherSplitIsRefused) {
  StoreHarness s;
  wire::Put part = s.Request(1, 0);
  part.shard = {0, 1, 0, 1};
  part.layer_count = 1;
  ASSERT_TRUE(s.Put(part, StoreHarness::Data(1)).status.ok());
  wire::Put crossing = s.Request(1, 0);
  crossing.shard = {0, 2, 0, 1};
  ASSERT_TRUE(s.Put(crossing, StoreHarness::Data(1)).status.ok()) << "holds all that was there";
  part.shard = {1, 2, 0, 2};
  part.layer_begin = 1;
  EXPECT_EQ(s.Put(part, StoreHarness::Data(1)).status.code(), StatusCode::kInvalid);
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

// A store that ends in the middle of things, as the daemon's does at its deadline, holds nothing
// that outlives it: not the arena's extents, not its callers' memory.
class StoreEnds : public ::testing::Test {
 protected:
  void EndMidway() {
    s.codec.DropAll();
    s.loop.DropAll();
    s.spill.reset();
    s.bank.reset();
    s.store.reset();
    EXPECT_EQ(s.arena->used_bytes(), 0u) << "an extent outlived the store";
  }
  void PutPersistent(uint64_t n, std::shared_ptr<void> memory) {
    wire::Put put = s.Request(n, 0);
    put.durability = Durability::kPersistent;
    auto data = StoreHarness::Data(n);
    const auto from = StoreHarness::Sources(data);
    s.store->Put(s.caller, put, from, {memory, {}}, [memory](wire::PutReply) {});
    s.Settle();
  }

  StoreHarness s;
};

TEST_F(StoreEnds, WhileAPersistWaitsForTheOneUnderWay) {
  s.bank->Hold();
  auto memory = std::make_shared<int>();
  PutPersistent(1, memory);
  PutPersistent(1, memory);
  EndMidway();
  EXPECT_EQ(memory.use_count(), 1);
}

TEST_F(StoreEnds, WhileAFetchWaitsForAReadBack) {
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  s.Restart();
  const auto hit = s.Lookup({1});
  ASSERT_EQ(hit.run, 1u);
  s.bank->Hold();
  auto memory = std::make_shared<std::vector<float>>(StoreHarness::kBlock);
  const wire::Fetch fetch = s.FetchOf(hit.lease, 1);
  s.store->Fetch(s.caller, fetch, StoreHarness::Views(*memory, 0, StoreHarness::kLayers, 0),
                 {memory, {}}, [memory](Store::Fetched) {});
  ASSERT_GT(memory.use_count(), 1);
  EndMidway();
  EXPECT_EQ(memory.use_count(), 1);
}

TEST_F(StoreEnds, WhileADrainWaitsForTheDisk) {
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  s.spill->Hold();
  auto memory = std::make_shared<int>();
  s.store->Drain(s.clock.Now() + std::chrono::seconds(1), [memory] {});
  s.Settle();
  ASSERT_GT(memory.use_count(), 1) << "it has ended";
  EndMidway();
  EXPECT_EQ(memory.use_count(), 1);
}

}  // namespace
}  // namespace dyna
