// What was acknowledged or deleted stays so, whatever comes after it.
#include <gtest/gtest.h>

#include "daemon/store/store_harness.h"

namespace dyna {
namespace {

using testing::StoreHarness;

void WithoutSpill(StoreHarness& s) {
  s.with_spill = false;
  s.Restart();
  ASSERT_TRUE(s.store->OpenContext(s.caller, s.spec, {}).ok());
}

Status PutFor(StoreHarness& s, uint64_t n, uint32_t ttl_ms, Durability durability,
              QualityClass quality = QualityClass::kBalanced) {
  wire::Put put = s.Request(n, 0, quality);
  put.ttl_ms = ttl_ms;
  put.durability = durability;
  return s.Put(put, StoreHarness::Data(n)).status;
}

TEST(StorePromises, DeletedAfterAReplacementStaysDeleted) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  s.Squeeze();
  ASSERT_EQ(s.spill_disk->blocks.size(), 1u);
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kExact).ok());
  EXPECT_EQ(s.store->Delete(s.caller, {s.context, {StoreHarness::Name(1)}}).count, 1u);
  s.Settle();
  EXPECT_TRUE(s.spill_disk->blocks.empty()) << "the older generation's copy";
  s.Restart();
  EXPECT_EQ(s.Lookup({1}).run, 0u);
}

TEST(StorePromises, DeletedWhileAReplacedBlockWasBankedStaysDeleted) {
  StoreHarness s;
  s.bank->Hold();
  s.PutUnanswered(1);
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kExact).ok());
  s.bank->ReleaseAll();
  s.Settle();
  s.store->Delete(s.caller, {s.context, {StoreHarness::Name(1)}});
  s.Settle();
  EXPECT_TRUE(s.bank_disk->blocks.empty());
}

TEST(StorePromises, DurableCopySurvivesEvictionOfWhatReplacedIt) {
  StoreHarness s;
  WithoutSpill(s);
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kExact).ok());
  s.Squeeze();
  EXPECT_LT(s.ErrorOf(1), 1e-3);
  s.Restart();
  EXPECT_LT(s.ErrorOf(1), 1e-3) << "acknowledged persistent";
}

// A reader gets the bank's copy of what RAM has less of, while a newer one is on its way there.
TEST(StorePromises, DurableCopySurvivesAReaderOfTheOneThatItReplaces) {
  std::vector<float> harder(StoreHarness::kBlock, 1.0f);  // 2e-4 of its energy at 8 bits; Data 3e-5
  wire::PutReply acknowledged;
  StoreHarness s;
  wire::Put put = s.Request(1, 0, QualityClass::kSmall);
  put.durability = Durability::kPersistent;
  ASSERT_TRUE(s.Put(put, StoreHarness::Data(1)).status.ok());
  s.store->SetBudget(16'000);
  s.Settle();  // four bits are left of it in RAM, so that class high replaces it
  s.store->SetBudget(0);
  s.bank->Hold();
  put.quality = QualityClass::kHigh;
  s.store->Put(s.caller, put, StoreHarness::Sources(harder), {},
               [&](wire::PutReply reply) { acknowledged = std::move(reply); });
  s.Settle();
  wire::Lookup look;
  look.context = s.context;
  look.shard = {0, StoreHarness::kLayers, 0, StoreHarness::kHeads};
  look.hashes = {StoreHarness::Name(1)};
  look.min_quality = QualityClass::kSmall;
  look.max_nmse = 1e-4f;
  const auto hit = s.store->Lookup(s.caller, look);
  ASSERT_EQ(hit.hits[0].tier, Tier::kBank);
  s.bank->ReleaseAll();
  s.Settle();
  ASSERT_EQ(acknowledged.segments.size(), size_t{StoreHarness::kLayers});
  EXPECT_EQ(acknowledged.segments[0].status, StatusCode::kOk);
  s.store->ReleaseLease(s.caller, hit.lease);
  s.Settle();
  EXPECT_EQ(s.Lookup({1}, QualityClass::kHigh).run, 1u) << "acknowledged persistent";
  s.Restart();
  const auto after = s.Lookup({1}, QualityClass::kHigh);
  ASSERT_EQ(after.run, 1u);
  std::vector<float> got;
  EXPECT_TRUE(s.Fetch(after.lease, 0, &got).reply.status.ok());
}

TEST(StorePromises, DurableExistsIsOfTheWholeShardThatWasPut) {
  StoreHarness s;
  wire::Put half = s.Request(1, 0);
  half.shard = {0, StoreHarness::kLayers, 0, 1};
  half.durability = Durability::kPersistent;
  ASSERT_TRUE(s.Put(half, StoreHarness::Data(1)).status.ok());
  ASSERT_TRUE(s.PutBlock(1, 0).ok()) << "the whole, in memory";
  s.Squeeze();
  s.spill->Damage({s.caller.tenant, s.context, StoreHarness::Name(1)},
                  {PartId::Kind::kSegment, 0, 0});
  const auto put = [&] {
    return s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent);
  };
  EXPECT_EQ(put().code(), StatusCode::kRetry) << "only the half is left";
  ASSERT_TRUE(put().ok());
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

TEST(StorePromises, LeaseIsNotServedLessThanItPromised) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kExact).ok());
  s.Squeeze();
  s.spill->Damage({s.caller.tenant, s.context, StoreHarness::Name(1)},
                  {PartId::Kind::kSegment, 0, 0});
  const auto hit = s.Lookup({1}, QualityClass::kExact);
  ASSERT_EQ(hit.run, 1u);
  std::vector<float> out;
  EXPECT_EQ(s.Fetch(hit.lease, 0, &out).reply.status.code(), StatusCode::kMiss);
  EXPECT_LT(s.ErrorOf(1), 1e-3) << "who asks for less gets the bank's";
}

TEST(StorePromises, DurablePutUnderWayIsNotAcknowledgedByAnother) {
  StoreHarness s;
  wire::Put put = s.Request(1, 0);
  put.durability = Durability::kPersistent;
  auto data = StoreHarness::Data(1);
  const auto sources = StoreHarness::Sources(data);
  wire::PutReply first, second;
  s.store->Put(s.caller, put, sources, {}, [&](wire::PutReply reply) { first = reply; });
  s.store->Put(s.caller, put, sources, {}, [&](wire::PutReply reply) { second = reply; });
  s.Settle();
  EXPECT_TRUE(first.status.ok());
  EXPECT_EQ(second.status.code(), StatusCode::kRetry);
}

TEST(StorePromises, RestartTakesTheBankWhereAnOlderSpillCopyIsOfAnotherShard) {
  StoreHarness s;
  wire::Put half = s.Request(1, 0);
  half.shard = {0, StoreHarness::kLayers, 0, 1};
  ASSERT_TRUE(s.Put(half, StoreHarness::Data(1)).status.ok());
  s.Squeeze();
  const MemoryDisk stale = *s.spill_disk;
  s.store->Delete(s.caller, {s.context, {StoreHarness::Name(1)}});
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  *s.spill_disk = stale;  // as if the deletion had failed
  s.Restart();
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

TEST(StorePromises, BanksCopyIsNotTakenForTheClassThatReplacedIt) {
  StoreHarness s;
  WithoutSpill(s);
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kExact).ok());
  s.Squeeze();  // balanced is what is left
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kExact, Durability::kPersistent).ok());
  EXPECT_EQ(s.ErrorOf(1), 0) << "EXISTS would promise what is not there";
}

TEST(StorePromises, DurableShardSurvivesEvictionOfAVolatileOne) {
  StoreHarness s;
  WithoutSpill(s);
  for (uint16_t head = 0; head < 2; ++head) {
    wire::Put part = s.Request(1, 0);
    part.durability = head == 0 ? Durability::kPersistent : Durability::kVolatile;
    part.shard = {0, StoreHarness::kLayers, head, static_cast<uint16_t>(head + 1)};
    ASSERT_TRUE(s.Put(part, StoreHarness::Data(1)).status.ok());
  }
  s.Squeeze();
  wire::Lookup look;
  look.context = s.context;
  look.shard = {0, StoreHarness::kLayers, 0, 1};
  look.hashes = {StoreHarness::Name(1)};
  EXPECT_EQ(s.store->Lookup(s.caller, look).run, 1u);
}

TEST(StorePromises, VolatileReplacementDoesNotShortenADurableLife) {
  StoreHarness s;
  ASSERT_TRUE(PutFor(s, 1, 0, Durability::kPersistent).ok());
  ASSERT_TRUE(PutFor(s, 1, 1000, Durability::kVolatile, QualityClass::kExact).ok());
  s.clock.Advance(std::chrono::seconds(5));
  for (int i = 0; i < 3; ++i) s.Settle();
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

TEST(StorePromises, PinDoesNotWakeTheExpired) {
  StoreHarness s;
  ASSERT_TRUE(PutFor(s, 1, 1000, Durability::kVolatile).ok());
  s.clock.Advance(std::chrono::seconds(5));
  EXPECT_EQ(s.Pin({s.context, {StoreHarness::Name(1)}, true, 0}).count, 0u);
  EXPECT_EQ(s.Lookup({1}).run, 0u);
}

TEST(StorePromises, PutAgainLivesAsLongAsTheLongerOfBoth) {
  StoreHarness s;
  ASSERT_TRUE(PutFor(s, 1, 1000, Durability::kPersistent).ok());
  ASSERT_TRUE(PutFor(s, 1, 0, Durability::kPersistent).ok());
  ASSERT_TRUE(PutFor(s, 1, 1000, Durability::kPersistent).ok());
  s.clock.Advance(std::chrono::seconds(5));
  for (int i = 0; i < 3; ++i) s.Settle();
  EXPECT_LT(s.ErrorOf(1), 1e-3);
  s.Restart();
  EXPECT_LT(s.ErrorOf(1), 1e-3) << "the bank was told as well";
}

TEST(StorePromises, SessionThatWritesTwoShardsLeavesNeither) {
  StoreHarness s;
  wire::Put half = s.Request(1, 0);
  half.shard = {0, StoreHarness::kLayers, 0, 1};
  half.layer_count = 1;
  ASSERT_TRUE(s.Put(half, StoreHarness::Data(1)).status.ok());
  wire::Put other = s.Request(1, 0);
  other.shard = {0, StoreHarness::kLayers, 1, 2};
  ASSERT_TRUE(s.Put(other, StoreHarness::Data(1)).status.ok());
  s.store->CloseSession(s.caller.session);
  s.Settle();
  EXPECT_EQ(s.store->stats().aborted_puts, 1u);
  ASSERT_TRUE(s.Put(half, StoreHarness::Data(1)).status.ok());
  s.store->Delete(s.caller, {s.context, {StoreHarness::Name(1)}});
  s.Settle();
  EXPECT_EQ(s.arena->used_bytes(), 0u);
}

TEST(StorePromises, BlockIsAsDurableAsTheLastOfItsLayersAsked) {
  StoreHarness s;
  wire::Put part = s.Request(1, 0);
  part.layer_count = 1;
  ASSERT_TRUE(s.Put(part, StoreHarness::Data(1)).status.ok());
  part.layer_begin = 1;
  part.durability = Durability::kPersistent;
  ASSERT_TRUE(s.Put(part, StoreHarness::Data(1)).status.ok());
  s.Restart();
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

TEST(StorePromises, LayersOfOneBlockAreOfOneClass) {
  StoreHarness s;
  wire::Put part = s.Request(1, 0);
  part.layer_count = 1;
  ASSERT_TRUE(s.Put(part, StoreHarness::Data(1)).status.ok());
  part.layer_begin = 1;
  part.quality = QualityClass::kExact;
  EXPECT_EQ(s.Put(part, StoreHarness::Data(1)).status.code(), StatusCode::kRetry);
  const Caller other{2, s.caller.tenant};
  EXPECT_EQ(
      s.Put(s.Request(1, 0, QualityClass::kExact), StoreHarness::Data(1), &other).status.code(),
      StatusCode::kRetry)
      << "EXISTS would promise what is not there";
}

TEST(StorePromises, HigherClassAskedAgainIsKept) {
  StoreHarness s;
  for (uint64_t n = 1; n <= 8; ++n) ASSERT_TRUE(s.PutBlock(n, static_cast<uint32_t>(n - 1)).ok());
  const auto again = s.Put(s.Request(1, 0, QualityClass::kHigh), StoreHarness::Data(1));
  ASSERT_EQ(again.segments[0].status, StatusCode::kExists) << "8 bits are there today";
  s.store->SetBudget(s.store->stats().charged_bytes * 7 / 10);
  for (int i = 0; i < 5; ++i) s.Settle();
  ASSERT_GT(s.store->stats().demoted_segments, 0u);
  EXPECT_EQ(s.Lookup({1}, QualityClass::kHigh).run, 1u);
}

TEST(StorePromises, BetterShardJoinsASpilledBlockWithoutItsHole) {
  StoreHarness s;
  wire::Put part = s.Request(1, 0);
  part.shard = {0, StoreHarness::kLayers, 0, 1};
  ASSERT_TRUE(s.Put(part, StoreHarness::Data(1)).status.ok());
  s.Squeeze();
  part.shard = {0, StoreHarness::kLayers, 1, 2};
  part.quality = QualityClass::kExact;
  EXPECT_EQ(s.Put(part, StoreHarness::Data(1)).status.code(), StatusCode::kRetry)
      << "the other one is being read back";
  ASSERT_TRUE(s.Put(part, StoreHarness::Data(1)).status.ok());
  EXPECT_LT(s.ErrorOf(1), 0.02);
  EXPECT_EQ(s.store->stats().illegal_transitions, 0u);
}

TEST(StorePromises, BlockIsReadBackIntoAnArenaInPieces) {
  StoreHarness s(1u << 20);
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kExact, Durability::kPersistent).ok());
  s.Squeeze();
  ASSERT_EQ(s.arena->used_bytes(), 0u);
  std::vector<BlockHash> names;
  for (uint64_t n = 0; n < 57; ++n) {  // holes half as long as a segment
    names.push_back(StoreHarness::Name(100 + n));
    s.store->PutOpaque(s.caller, {s.context, names.back(), Durability::kVolatile, 0},
                       std::vector<std::byte>(16 << 10),
                       [](const Status& status) { EXPECT_TRUE(status.ok()); });
  }
  wire::Delete odd{s.context, {}};
  for (size_t i = 1; i < names.size(); i += 2) odd.hashes.push_back(names[i]);
  s.store->Delete(s.caller, odd);
  s.Settle();
  EXPECT_EQ(s.ErrorOf(1), 0);
  EXPECT_EQ(s.store->stats().evicted_blocks, 0u);
}

TEST(StorePromises, OpaqueObjectsExpireAndCountAgainstTheQuota) {
  StoreHarness s;
  auto put = [&](uint64_t n, uint32_t ttl_ms, uint8_t value) {
    Status status = Internal("not answered");
    s.store->PutOpaque(s.caller, {s.context, StoreHarness::Name(n), Durability::kVolatile, ttl_ms},
                       std::vector<std::byte>(1000, std::byte{value}),
                       [&](Status answer) { status = answer; });
    s.Settle();
    return status;
  };
  ASSERT_TRUE(put(5, 1000, 1).ok());
  s.clock.Advance(std::chrono::seconds(2));
  EXPECT_TRUE(put(5, 0, 2).ok()) << "an expired object is none";
  std::vector<std::byte> got;
  s.store->GetOpaque(s.caller, {s.context, StoreHarness::Name(5)},
                     [&](wire::OpaqueReply, std::vector<std::byte> b) { got = std::move(b); });
  s.Settle();
  EXPECT_EQ(got, std::vector<std::byte>(1000, std::byte{2}));
  s.store->ConfigureTenant(s.caller.tenant, "small", 500);
  EXPECT_EQ(put(6, 0, 3).code(), StatusCode::kQuota);
}

TEST(StorePromises, OpaqueObjectPutAgainLivesAsLongAsTheLongerOfBoth) {
  StoreHarness s;
  for (const Durability durability : {Durability::kVolatile, Durability::kPersistent}) {
    const BlockHash name = StoreHarness::Name(static_cast<uint64_t>(durability) + 5);
    for (const uint32_t ttl_ms : {1000u, 0u}) {
      s.store->PutOpaque(s.caller, {s.context, name, durability, ttl_ms},
                         std::vector<std::byte>(1000, std::byte{1}), [](const Status&) {});
      s.Settle();
    }
    s.clock.Advance(std::chrono::seconds(2));
    if (durability == Durability::kPersistent) {
      s.Crash();
      ASSERT_TRUE(s.store->OpenContext(s.caller, s.spec, {}).ok());
    }
    Status status = Internal("not answered");
    s.store->GetOpaque(s.caller, {s.context, name},
                       [&](const wire::OpaqueReply& reply, const std::vector<std::byte>&) {
                         status = reply.status;
                       });
    s.Settle();
    EXPECT_TRUE(status.ok()) << status.ToString();
  }
}

TEST(StorePromises, ALeaseThatEndsByItselfIsTold) {
  StoreHarness s;
  std::vector<std::pair<SessionId, uint64_t>> told;
  s.store->OnLeaseRevoked([&](SessionId session, uint64_t lease) {
    told.emplace_back(session, lease);
    s.store->CloseSession(session);  // as where it cannot be told any more
  });
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  const auto kept = s.Lookup({1}), let_go = s.Lookup({1});
  ASSERT_NE(kept.lease, 0u);
  s.store->ReleaseLease(s.caller, let_go.lease);
  s.clock.Advance(std::chrono::milliseconds(kept.ttl_ms + 1));
  s.Settle();
  EXPECT_EQ(told, (std::vector{std::pair(s.caller.session, kept.lease)}));
  EXPECT_EQ(s.store->stats().leases, 0u);
}

// A batch that is large against the budget is coded at the price at which it fits, whole: it does
// not fill the budget at 8 bits, to be refused for the rest and pressed below what the rest gets.
TEST(Promises, ABatchIsCodedAtThePriceAtWhichItFits) {
  constexpr uint64_t kBlocks = 8;
  StoreHarness s(4u << 20);
  ASSERT_TRUE(s.PutBlock(100, 0).ok());
  const uint64_t one = s.store->stats().charged_bytes;
  s.store->SetBudget(one + one * kBlocks * 7 / 10);

  wire::Put put = s.Request(1, 0);
  put.hashes.clear();
  std::vector<std::vector<float>> data;
  std::vector<KvView> sources;
  for (uint64_t n = 1; n <= kBlocks; ++n) {
    put.hashes.push_back(StoreHarness::Name(n));
    data.push_back(StoreHarness::Data(n));
    for (const KvView& v : StoreHarness::Sources(data.back())) sources.push_back(v);
  }
  wire::PutReply reply;
  s.store->Put(s.caller, put, sources, {}, [&](wire::PutReply r) { reply = std::move(r); });
  s.Settle();
  EXPECT_TRUE(reply.status.ok()) << reply.status.ToString();
  const StoreStats stats = s.store->stats();
  EXPECT_EQ(stats.retries, 0u);
  EXPECT_EQ(stats.spilled_blocks, 0u);
  EXPECT_LE(stats.charged_bytes, stats.budget_bytes);
  EXPECT_GT(stats.charged_bytes, stats.budget_bytes * 65 / 100) << "coded narrower than need be";
}

// Where there is room for little more than the floors, bits go and blocks stay: none is moved to
// disk beside. (They went by the dozen: the price rose without end in one step.)
TEST(Promises, FloorsThatFitAreReachedBeforeAnythingIsMoved) {
  constexpr uint32_t kBlocks = 64;
  StoreOptions options = testing::NoNursery();
  options.demotions_in_flight = 2;  // bits go in many ticks
  const auto fill = [&](StoreHarness& s) {
    for (uint32_t n = 1; n <= kBlocks; ++n) EXPECT_TRUE(s.PutBlock(n, n - 1).ok());
    return s.store->stats().charged_bytes;
  };
  const auto bytes = [](uint8_t k, uint8_t v) {  // of all segments
    SegmentId id;
    id.kv_heads = StoreHarness::kHeads;
    id.head_dim = StoreHarness::kDim;
    id.dtype = DType::kF32;
    const std::vector<TilePlan> plan(StoreHarness::kHeads, TilePlan{k, v});
    const uint64_t pins = (uint64_t{1} << kPinnedTokens) - 1;
    return StoreHarness::kLayers * (EncodedBytes(id, plan, pins, nullptr) +
                                    (kBlocks - 1) * EncodedBytes(id, plan, 0, nullptr));
  };
  uint64_t floors = 0;
  {
    StoreHarness s(4u << 20, options);
    floors = fill(s) - bytes(kind::kPlain8, kind::VBits(8)) + bytes(kind::kPlain4, kind::VBits(4));
  }
  for (uint64_t more = 256; more < 8192; more += 256) {
    StoreHarness s(4u << 20, options);
    ASSERT_GT(fill(s), floors * 14 / 10);
    s.store->SetBudget(floors * 128 / 127 + more);  // it is kept to within 1/128
    s.Settle();
    const StoreStats stats = s.store->stats();
    EXPECT_LE(stats.charged_bytes, stats.budget_bytes);
    EXPECT_EQ(stats.spilled_blocks, 0u) << more;
  }
}

}  // namespace
}  // namespace dyna
