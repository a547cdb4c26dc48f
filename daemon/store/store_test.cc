// The store's verbs, driven by hand; the harness is in store_harness.h.
#include "daemon/store/store.h"

#include <gtest/gtest.h>

#include <limits>

#include "daemon/store/store_harness.h"
#include "kernels/testing_device.h"

namespace dyna {
namespace {

using testing::StoreHarness;

TEST(Store, ServesWhatWasPut) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kExact).ok());
  ASSERT_TRUE(s.PutBlock(2, 1).ok());
  EXPECT_EQ(s.ErrorOf(1), 0);
  EXPECT_LT(s.ErrorOf(2), 1e-3);
  EXPECT_EQ(s.Lookup({1, 2, 3}).run, 2u);
  EXPECT_EQ(s.Lookup({3, 1}).run, 0u) << "the run is the leading one";
}

TEST(Store, FirstCommitWinsUnlessMoreIsAsked) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  const auto again = s.Put(s.Request(1, 0), StoreHarness::Data(1));
  EXPECT_TRUE(again.status.ok());
  EXPECT_EQ(again.segments[0].status, StatusCode::kExists);
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kExact).ok());
  EXPECT_EQ(s.ErrorOf(1), 0);
  EXPECT_EQ(s.Lookup({1}, QualityClass::kExact).run, 1u);
}

// What is there satisfies the higher class by chance; EXISTS makes it a promise.
TEST(Store, ExistsHoldsTheClassThatWasAsked) {
  StoreHarness s(2u << 20);
  for (uint64_t n = 1; n <= 8; ++n)
    ASSERT_TRUE(s.PutBlock(n, static_cast<uint32_t>(n - 1)).ok()) << n;
  const auto again = s.Put(s.Request(1, 0, QualityClass::kHigh), StoreHarness::Data(1));
  EXPECT_EQ(again.segments[0].status, StatusCode::kExists);
  wire::PutReply answer;
  EXPECT_FALSE(s.store->WantsPut(s.caller, s.Request(2, 1, QualityClass::kHigh), &answer));
  s.store->SetBudget(s.store->stats().charged_bytes * 7 / 10);
  for (int i = 0; i < 20; ++i) s.Settle();
  EXPECT_GT(s.store->stats().demoted_segments, 0u);
  EXPECT_EQ(s.Lookup({1, 2, 3}, QualityClass::kHigh).run, 2u);
}

TEST(Store, RefusesWhatContradictsTheChain) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  wire::Put wrong_index = s.Request(2, 1);
  wrong_index.first_index = 5;
  EXPECT_EQ(s.Put(wrong_index, StoreHarness::Data(2)).status.code(), StatusCode::kInvalid);
  wire::Put other_parent = s.Request(1, 0);
  other_parent.first_index = 3;
  other_parent.parent = StoreHarness::Name(77);
  EXPECT_EQ(s.Put(other_parent, StoreHarness::Data(1)).status.code(), StatusCode::kInvalid);
  EXPECT_TRUE(s.PutBlock(9, 4).ok()) << "an unknown parent is allowed";
}

TEST(Store, NonFiniteInputIsNamedAndChangesNothing) {
  StoreHarness s;
  auto bad = StoreHarness::Data(1);
  bad[StoreHarness::kTile * 2 + 40] = std::numeric_limits<float>::quiet_NaN();
  const auto reply = s.Put(s.Request(1, 0), bad);
  EXPECT_EQ(reply.status.code(), StatusCode::kInvalid);
  EXPECT_NE(std::string(reply.status.message()).find("layer 0"), std::string::npos)
      << reply.status.ToString();
  EXPECT_EQ(s.Lookup({1}).run, 0u);
  s.store->CloseSession(1);
  s.Settle();
  EXPECT_EQ(s.arena->used_bytes(), 0u);
}

TEST(Store, BlockIsInvisibleUntilItsShardIsComplete) {
  StoreHarness s;
  wire::Put half = s.Request(1, 0);
  half.layer_count = 1;
  ASSERT_TRUE(s.Put(half, StoreHarness::Data(1)).status.ok());
  EXPECT_EQ(s.Lookup({1}).hits[0].status, StatusCode::kPending);
  half.layer_begin = 1;
  ASSERT_TRUE(s.Put(half, StoreHarness::Data(1)).status.ok());
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

TEST(Store, AnotherSplitCanRead) {
  StoreHarness s;
  for (uint16_t head = 0; head < 2; ++head) {
    wire::Put part = s.Request(1, 0);
    part.shard = {0, StoreHarness::kLayers, head, static_cast<uint16_t>(head + 1)};
    ASSERT_EQ(s.ErrorOf(1), 99) << "half of the heads are no hit";
    ASSERT_TRUE(s.Put(part, StoreHarness::Data(1)).status.ok());
  }
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

TEST(Store, DeadClientLeavesNothing) {
  StoreHarness s;
  wire::Put half = s.Request(1, 0);
  half.layer_count = 1;
  ASSERT_TRUE(s.Put(half, StoreHarness::Data(1)).status.ok());
  EXPECT_GT(s.arena->used_bytes(), 0u);
  s.store->CloseSession(s.caller.session);
  s.Settle();
  EXPECT_EQ(s.arena->used_bytes(), 0u);
  EXPECT_EQ(s.Lookup({1}).hits[0].status, StatusCode::kMiss);
}

TEST(Store, UnfinishedPutTimesOut) {
  StoreHarness s;
  wire::Put half = s.Request(1, 0);
  half.layer_count = 1;
  ASSERT_TRUE(s.Put(half, StoreHarness::Data(1)).status.ok());
  s.clock.Advance(std::chrono::seconds(31));
  s.Settle();
  EXPECT_EQ(s.arena->used_bytes(), 0u);
  EXPECT_FALSE(s.store->NeedsClock());
}

TEST(Store, LeasesExpireAndAreTheirSessionsAlone) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  const auto hit = s.Lookup({1});
  std::vector<float> out;
  const Caller own = s.caller;
  s.caller.session = 2;
  EXPECT_EQ(s.Fetch(hit.lease, 0, &out).reply.status.code(), StatusCode::kLeaseLost) << "forged";
  s.caller = own;
  EXPECT_TRUE(s.Fetch(hit.lease, 0, &out).reply.status.ok());
  s.clock.Advance(std::chrono::minutes(2));
  s.Settle();
  EXPECT_EQ(s.Fetch(hit.lease, 0, &out).reply.status.code(), StatusCode::kLeaseLost);
}

TEST(Store, TenantsDoNotSeeEachOther) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  s.caller = {2, 43};
  EXPECT_EQ(s.Lookup({1}).status.code(), StatusCode::kContextUnknown);
  ASSERT_TRUE(s.store->OpenContext(s.caller, s.spec, {}).ok());
  EXPECT_EQ(s.Lookup({1}).run, 0u);
}

// Nobody ticked while they expired.
TEST(Store, WhatHasExpiredIsNotHeldAgainstAQuota) {
  StoreHarness s;
  wire::Put put = s.Request(1, 0);
  put.ttl_ms = 1000;
  ASSERT_TRUE(s.Put(put, StoreHarness::Data(1)).status.ok());
  s.store->ConfigureTenant(s.caller.tenant, "small", 1);
  s.clock.Advance(std::chrono::seconds(2));
  bool ticks = false;
  s.store->OnBusy([&] { ticks = true; });
  EXPECT_EQ(s.PutBlock(2, 1).code(), StatusCode::kQuota);
  EXPECT_TRUE(ticks);
  EXPECT_EQ(s.store->stats().host.blocks, 0u);
  EXPECT_TRUE(s.PutBlock(2, 1).ok());
}

TEST(Store, LeasesOfOneClientAreBounded) {
  StoreOptions options = testing::NoNursery();
  options.leased_blocks = 3;
  StoreHarness s(4u << 20, options);
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  ASSERT_TRUE(s.PutBlock(2, 1).ok());
  const uint64_t lease = s.Lookup({1, 2}).lease;
  EXPECT_EQ(s.Lookup({1, 2}).status.code(), StatusCode::kRetry);
  EXPECT_TRUE(s.Lookup({1}).status.ok());
  s.store->ReleaseLease(s.caller, lease);
  EXPECT_EQ(s.Lookup({1, 2}).run, 2u);
}

TEST(Store, QuotaIsATypedRefusal) {
  StoreHarness s;
  s.store->ConfigureTenant(s.caller.tenant, "small", 1024);
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  EXPECT_EQ(s.PutBlock(2, 1).code(), StatusCode::kQuota);
}

// A device wants many segments in a call: demotions of a tick go together.
TEST(Store, DemotesByTheBatchOnADevice) {
  StoreHarness s(2u << 20);
  auto owned = std::make_unique<testing::FaultyDevice>(std::move(*MakeCpuBackend("scalar")));
  const testing::FaultyDevice& device = *owned;
  s.Stop();
  s.backend = std::move(owned);
  s.Start();
  ASSERT_TRUE(s.store->OpenContext(s.caller, s.spec, {}).ok());
  for (uint64_t n = 1; n <= 20; ++n)
    ASSERT_TRUE(s.PutBlock(n, static_cast<uint32_t>(n - 1)).ok()) << n;
  const int before = device.calls;
  s.store->SetBudget(s.store->stats().charged_bytes * 7 / 10);
  s.Settle();
  const StoreStats stats = s.store->stats();
  EXPECT_LE(stats.charged_bytes, stats.budget_bytes);
  ASSERT_GT(stats.demoted_segments, 8u);
  EXPECT_LT(static_cast<uint64_t>(device.calls - before), stats.demoted_segments / 2);
  for (uint64_t n = 1; n <= 20; ++n) EXPECT_LT(s.ErrorOf(n), 0.02) << n;
}

TEST(Store, BudgetIsKeptByFewerBitsThenByTheDisk) {
  StoreHarness s(2u << 20);
  for (uint64_t n = 1; n <= 20; ++n)
    ASSERT_TRUE(s.PutBlock(n, static_cast<uint32_t>(n - 1)).ok()) << n;
  const uint64_t full = s.store->stats().charged_bytes;
  s.store->SetBudget(full * 7 / 10);
  s.Settle();
  StoreStats stats = s.store->stats();
  EXPECT_LE(stats.charged_bytes, stats.budget_bytes);
  EXPECT_GT(stats.demoted_segments, 0u);
  for (uint64_t n = 1; n <= 20; ++n) EXPECT_LT(s.ErrorOf(n), 0.02) << n;
  s.store->SetBudget(full / 4);  // below what the floors of the class allow: blocks move
  for (int i = 0; i < 50; ++i) s.Settle();
  stats = s.store->stats();
  EXPECT_LE(stats.charged_bytes, stats.budget_bytes);
  EXPECT_GT(stats.spilled_blocks, 0u);
  EXPECT_EQ(stats.evicted_blocks, 0u);
  for (uint64_t n = 1; n <= 20; ++n) EXPECT_LT(s.ErrorOf(n), 0.02) << "read back: " << n;
}

TEST(Store, PersistentBlocksSurviveByteForByte) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  ASSERT_TRUE(s.PutBlock(2, 1).ok());
  std::vector<float> before, after;
  s.Fetch(s.Lookup({1}).lease, 0, &before);
  s.Restart();
  const auto hit = s.Lookup({1, 2});
  ASSERT_EQ(hit.run, 1u) << "the volatile one is gone";
  EXPECT_EQ(hit.hits[0].tier, Tier::kBank);
  ASSERT_TRUE(s.Fetch(hit.lease, 0, &after).reply.status.ok());
  EXPECT_EQ(std::memcmp(before.data(), after.data(), before.size() * sizeof(float)), 0);
}

TEST(Store, DamagedRecordIsAMissNotAnError) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  s.Restart();
  s.bank->Damage({s.caller.tenant, s.context, StoreHarness::Name(1)},
                 {PartId::Kind::kSegment, 1, 0});
  EXPECT_EQ(s.ErrorOf(1), 99);
  EXPECT_EQ(s.Lookup({1}).run, 0u);
  EXPECT_TRUE(s.PutBlock(1, 0).ok()) << "and can be put again";
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

TEST(Store, ClearFreesEverything) {
  StoreHarness s;
  for (uint64_t n = 1; n <= 5; ++n)
    ASSERT_TRUE(s.PutBlock(n, static_cast<uint32_t>(n - 1), QualityClass::kBalanced,
                           n % 2 ? Durability::kPersistent : Durability::kVolatile)
                    .ok());
  const auto hit = s.Lookup({1, 2, 3});
  EXPECT_EQ(s.store->Clear(s.caller, {s.context}).count, 5u);
  s.Settle();
  std::vector<float> out;
  EXPECT_EQ(s.Fetch(hit.lease, 0, &out).reply.status.code(), StatusCode::kMiss)
      << "the lease's blocks are gone";
  EXPECT_EQ(s.arena->used_bytes(), 0u);
  EXPECT_TRUE(s.bank_disk->blocks.empty());
}

TEST(Store, OpaqueObjectsAreLossless) {
  StoreHarness s;
  std::vector<std::byte> bytes(1000, std::byte{7});
  Status put = Internal("not answered");
  s.store->PutOpaque(s.caller, {s.context, StoreHarness::Name(5), Durability::kPersistent, 0},
                     bytes, [&](Status status) { put = status; });
  s.Settle();
  ASSERT_TRUE(put.ok()) << put.ToString();
  s.Restart();
  std::vector<std::byte> got;
  s.store->GetOpaque(s.caller, {s.context, StoreHarness::Name(5)},
                     [&](wire::OpaqueReply, std::vector<std::byte> b) { got = std::move(b); });
  s.Settle();
  EXPECT_EQ(got, bytes);
}

TEST(Store, HistoryFoldsOnlyWhenTheChainIsHeldFromItsRoot) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  ASSERT_TRUE(s.PutBlock(2, 1).ok());
  ASSERT_TRUE(s.PutBlock(9, 4).ok());
  auto report = [&](uint64_t leaf, uint32_t tokens) {
    wire::Report r;
    r.context = s.context;
    r.kind = wire::ReportKind::kColumnMass;
    r.leaf = StoreHarness::Name(leaf);
    r.layer_count = StoreHarness::kLayers;
    r.head_end = StoreHarness::kHeads;
    r.queries = 1;
    r.advance = 512;
    std::vector<float> mass(size_t{tokens} * StoreHarness::kHeads * StoreHarness::kLayers,
                            1.0f / static_cast<float>(tokens));
    std::vector<std::byte> bytes(mass.size() * sizeof(float));
    std::memcpy(bytes.data(), mass.data(), bytes.size());
    Status status = Internal("not answered");
    s.store->Report(s.caller, r, bytes, [&](Status x) { status = x; });
    s.Settle();
    return status;
  };
  EXPECT_TRUE(report(2, 128).ok());
  EXPECT_EQ(s.store->stats().reports_folded, 1u);
  EXPECT_TRUE(report(9, 320).ok());
  EXPECT_EQ(s.store->stats().reports_dropped, 1u);
  EXPECT_EQ(report(2, 64).code(), StatusCode::kInvalid) << "a payload of the wrong length";
}

}  // namespace
}  // namespace dyna
