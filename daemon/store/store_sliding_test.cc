// Lookup and fetch where layers slide (design 5): of such a layer a run needs its last blocks only.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <random>
#include <string>
#include <string_view>

#include "daemon/store/store_harness.h"
#include "tests/support/seed.h"

namespace dyna {
namespace {

using testing::StoreHarness;

constexpr int kHeads = StoreHarness::kHeads, kLayers = StoreHarness::kLayers;

// Layer 0 is full, layer 1 looks back `window` tokens: 65..128 of them are 3 blocks of a run.
struct SlidingHarness : StoreHarness {
  explicit SlidingHarness(uint32_t window = 100, StoreOptions opts = {})
      : StoreHarness(8u << 20, std::move(opts)) {
    Slide(window);
  }
  void Slide(uint32_t window) {
    spec.layers[1].kind = LayerKind::kSliding;
    spec.layers[1].window = window;
    context = store->OpenContext(caller, spec, {})->context;
  }
  Status PutPart(uint64_t n, uint32_t index, const Shard& shard) {
    wire::Put put = Request(n, index);
    put.shard = shard;
    put.layer_begin = shard.layer_begin;
    put.layer_count = static_cast<uint16_t>(shard.layer_end - shard.layer_begin);
    return Put(put, Data(n)).status;
  }
  // One character a block: 'w' whole, 'f' its full layer, 's' its sliding one, '.' nothing.
  void PutChain(std::string_view parts) {
    for (size_t i = 0; i < parts.size(); ++i) {
      const auto index = static_cast<uint32_t>(i);
      Status status;
      if (parts[i] == 'w') status = PutBlock(i + 1, index);
      if (parts[i] == 'f') status = PutPart(i + 1, index, {0, 1, 0, kHeads});
      if (parts[i] == 's') status = PutPart(i + 1, index, {1, 2, 0, kHeads});
      ASSERT_TRUE(status.ok()) << status.ToString();
    }
  }
  wire::LookupReply LookupFirst(uint64_t blocks, Shard shard = {0, kLayers, 0, kHeads}) {
    wire::Lookup look;
    look.context = context;
    look.shard = shard;
    look.lease = true;
    for (uint64_t n = 1; n <= blocks; ++n) look.hashes.push_back(Name(n));
    auto reply = store->Lookup(caller, look);
    store->ReleaseLease(caller, reply.lease);
    return reply;
  }
};

std::string Words(const wire::LookupReply& reply) {
  std::string out;
  for (const wire::LookupHit& hit : reply.hits)
    out += hit.status == StatusCode::kOk ? 'h' : hit.status == StatusCode::kPending ? 'p' : '-';
  return out;
}

TEST(Sliding, ARunNeedsItsWindowOnly) {
  SlidingHarness s;
  s.PutChain("fffwww");
  EXPECT_EQ(s.LookupFirst(6).run, 6u);
  EXPECT_EQ(Words(s.LookupFirst(6)), "hhhhhh");
  // Of 5 blocks the third is within the window, and no shorter run has one that is there.
  EXPECT_EQ(s.LookupFirst(5).run, 0u);
  EXPECT_EQ(Words(s.LookupFirst(5)), "---hh") << "whole ones are hits for whoever begins there";
  EXPECT_EQ(s.LookupFirst(6, {0, 1, 0, kHeads}).run, 6u);
  EXPECT_EQ(s.LookupFirst(6, {1, 2, 0, kHeads}).run, 6u) << "nor need the sliding layer more alone";
}

TEST(Sliding, AHoleEndsTheRunsThatLookBackAtIt) {
  SlidingHarness s;
  s.PutChain("wwfwwww");
  EXPECT_EQ(s.LookupFirst(3).run, 2u);
  EXPECT_EQ(s.LookupFirst(5).run, 2u);
  EXPECT_EQ(s.LookupFirst(6).run, 6u);
  EXPECT_EQ(s.LookupFirst(7).run, 7u);
}

TEST(Sliding, FullLayersAreNeededEverywhere) {
  SlidingHarness s;
  s.PutChain("wswwww");
  EXPECT_EQ(s.LookupFirst(6).run, 1u);
  EXPECT_EQ(Words(s.LookupFirst(6)), "h-hhhh");
}

// What the run holds is served, what it does not is a miss: alive, from disk, after a restart.
TEST(Sliding, FetchedAcrossTiers) {
  SlidingHarness s;
  s.PutChain("ffwww");
  for (int round = 0; round < 3; ++round) {
    SCOPED_TRACE(round);
    const auto hit = s.Lookup({1, 2, 3, 4, 5});
    ASSERT_EQ(hit.run, 5u);
    EXPECT_EQ(hit.hits[0].tier, round == 0 ? Tier::kHost : Tier::kSpill);
    for (uint32_t b = 0; b < 5; ++b) {
      std::vector<float> got;
      const auto reply = s.Fetch(hit.lease, b, &got).reply;
      EXPECT_EQ(reply.segments[0].status, StatusCode::kOk);
      EXPECT_EQ(reply.segments[1].status, b < 2 ? StatusCode::kMiss : StatusCode::kOk);
      const auto want = StoreHarness::Data(b + 1);
      const size_t there = b < 2 ? want.size() / 2 : want.size();
      double error = 0;
      for (size_t i = 0; i < there; ++i) error += std::abs(got[i] - want[i]);
      EXPECT_LT(error / static_cast<double>(there), .2) << "another's would be 1.1 off";
    }
    s.store->ReleaseLease(s.caller, hit.lease);
    if (round == 0) s.Squeeze();
    if (round == 1) {
      s.Drain();
      s.Restart();
      s.context = s.store->OpenContext(s.caller, s.spec, {})->context;
    }
  }
}

TEST(Sliding, WhatIsBeingWrittenIsPending) {
  SlidingHarness s;
  s.PutChain("ww");
  wire::Put half = s.Request(3, 2);
  half.layer_count = 1;
  ASSERT_TRUE(s.Put(half, StoreHarness::Data(3)).status.ok());
  ASSERT_TRUE(s.PutPart(4, 3, {0, 1, 0, kHeads}).ok());
  EXPECT_EQ(Words(s.LookupFirst(4)), "hhp-");
  EXPECT_EQ(s.LookupFirst(4).run, 2u);
}

// Against the definition, for any shards of any blocks, also where a lease may not hold all.
TEST(Sliding, AsDefined) {
  std::mt19937_64 dice(testing::TestSeed());
  for (int round = 0; round < 60; ++round) {
    StoreOptions options = testing::NoNursery();
    if (round % 2 == 1) options.floor_share = .01;
    SlidingHarness s(static_cast<uint32_t>(1 + dice() % 200), options);
    const auto blocks = static_cast<size_t>(1 + dice() % 8);
    std::vector<std::array<bool, kLayers * kHeads>> held(blocks);
    for (size_t b = 0; b < blocks; ++b)
      for (uint16_t at = 0; at < kLayers * kHeads; ++at) {
        const auto layer = static_cast<uint16_t>(at / kHeads);
        const auto head = static_cast<uint16_t>(at % kHeads);
        held[b][at] = dice() % 16 != 0 && (layer == 0 || dice() % 4 != 0);
        const Shard one{layer, static_cast<uint16_t>(layer + 1), head,
                        static_cast<uint16_t>(head + 1)};
        const bool put = !held[b][at] || s.PutPart(b + 1, static_cast<uint32_t>(b), one).ok();
        ASSERT_TRUE(put);
      }
    const auto good = [&](size_t run) {
      for (size_t b = 0; b < run; ++b)
        for (int at = 0; at < kLayers * kHeads; ++at) {
          const size_t needs =
              s.spec.layers[1].window / 64 + (s.spec.layers[1].window % 64 != 0) + 1;
          const bool looked_at = at < kHeads || b + needs >= run;
          if (looked_at && !held[b][static_cast<size_t>(at)]) return false;
        }
      return true;
    };
    size_t longest = 0;
    for (size_t run = 1; run <= blocks; ++run)
      if (good(run)) longest = run;
    const size_t got = s.LookupFirst(blocks).run;
    EXPECT_TRUE(got <= longest && good(got)) << got << " of " << longest;
    EXPECT_TRUE(round % 2 == 1 || got == longest) << got << " of " << longest;
  }
}

}  // namespace
}  // namespace dyna
