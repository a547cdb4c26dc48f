// Policies that drop tokens, end to end: put, report, masks, fetch, disk, restart.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>

#include "daemon/store/store_harness.h"

namespace dyna {
namespace {

using std::chrono::milliseconds;
using testing::StoreHarness;

constexpr int kHeads = StoreHarness::kHeads, kLayers = StoreHarness::kLayers,
              kDim = StoreHarness::kDim;

StoreOptions Options(const char* policy, double keep = .25, int window = 16) {
  StoreOptions options = testing::NoNursery();
  options.policy.name = policy;
  options.policy.drop.keep = keep;
  options.policy.drop.window = window;
  return options;
}

struct DropHarness : StoreHarness {
  explicit DropHarness(StoreOptions opts, bool masks = true)
      : StoreHarness(4u << 20, std::move(opts)) {
    spec.masks = masks;
    context = store->OpenContext(caller, spec, {})->context;
  }
  void PutChain(uint64_t blocks, QualityClass quality = QualityClass::kBalanced) {
    for (uint64_t n = 1; n <= blocks; ++n)
      ASSERT_TRUE(PutBlock(n, static_cast<uint32_t>(n - 1), quality).ok());
  }
  // [layer][head] of block n; empty: not served.
  std::vector<uint64_t> Masks(uint64_t n, std::vector<float>* out = nullptr) {
    std::vector<float> data;
    const auto hit = Lookup({n});
    if (hit.run != 1) return {};
    const auto got = Fetch(hit.lease, 0, out != nullptr ? out : &data, true);
    store->ReleaseLease(caller, hit.lease);
    Settle();
    EXPECT_TRUE(got.reply.status.ok()) << got.reply.status.ToString();
    return got.reply.live;
  }
  int Kept(uint64_t blocks) {
    int kept = 0;
    for (uint64_t n = 1; n <= blocks; ++n)
      for (uint64_t mask : Masks(n)) kept += std::popcount(mask);
    return kept;
  }
};

// Rows of one tile as they were put: [token][dim].
const float* TileOf(const std::vector<float>& block, int layer, int head, int v) {
  return block.data() + static_cast<size_t>((layer * kHeads + head) * 2 + v) * StoreHarness::kTile;
}

// 256 tokens, C = 64: 4 pinned, a window of 16 and 44 of the 60 that are attended to.
TEST(Drop, ReportedChainKeepsItsBudget) {
  DropHarness s(Options("snapkv"));
  s.PutChain(4);
  const uint64_t before = s.arena->used_bytes();
  s.Report(4, 80, 140);
  for (uint64_t mask : s.Masks(2)) EXPECT_EQ(mask, ~uint64_t{0}) << "its end is not sure yet";
  s.Wait();
  EXPECT_EQ(s.Kept(4), 64 * kLayers * kHeads);
  for (uint64_t mask : s.Masks(1)) EXPECT_EQ(mask, 15u) << "the pinned ones";
  for (uint64_t mask : s.Masks(4)) EXPECT_EQ(mask, ~uint64_t{0} << 48) << "the window";
  EXPECT_LT(s.arena->used_bytes(), before) << "tiles without a token have no bytes";

  // Live rows are the ones that were put, dropped ones the mean of their tile's live rows.
  std::vector<float> got;
  const auto masks = s.Masks(2, &got);
  const auto put = StoreHarness::Data(2);
  for (int l = 0; l < kLayers; ++l)
    for (int h = 0; h < kHeads; ++h)
      for (int v = 0; v < 2; ++v) {
        const uint64_t mask = masks[static_cast<size_t>(l * kHeads + h)];
        ASSERT_NE(mask, 0u);
        const float *is = TileOf(got, l, h, v), *was = TileOf(put, l, h, v);
        for (int c = 0; c < kDim; ++c) {
          double mean = 0;
          for (int t = 0; t < kBlockTokens; ++t)
            if (mask >> t & 1) mean += double{was[t * kDim + c]} / std::popcount(mask);
          for (int t = 0; t < kBlockTokens; ++t) {
            const double want = (mask >> t & 1) != 0 ? double{was[t * kDim + c]} : mean;
            ASSERT_NEAR(double{is[t * kDim + c]}, want, 1e-5) << l << h << v << " token " << t;
          }
        }
      }
}

// What lacks tokens promises no class, says that it is further from what was put, and nothing of it
// comes back with another report.
TEST(Drop, DroppedBlocksPromiseLess) {
  DropHarness s(Options("snapkv"));
  s.PutChain(2);
  EXPECT_EQ(s.Lookup({1, 2}, QualityClass::kBalanced).run, 2u);
  s.store->CloseSession(s.caller.session);
  s.Report(2, 10, 40);
  s.Wait();
  EXPECT_EQ(s.Lookup({1, 2}, QualityClass::kBalanced).run, 0u);
  const auto hit = s.Lookup({1, 2}, QualityClass::kSmall);
  EXPECT_EQ(hit.run, 2u);
  EXPECT_GT(hit.hits[1].nmse, .5f);
  const auto first = s.Masks(1);
  s.Report(2, 40, 60, .05f);
  s.Wait();
  const auto second = s.Masks(1);
  for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(second[i] & ~first[i], 0u);
  EXPECT_EQ(s.Kept(2), 32 * kLayers * kHeads) << "and nothing more goes";
}

TEST(Drop, MasksSurviveDiskAndRestart) {
  DropHarness s(Options("snapkv"));
  s.PutChain(4);
  s.Report(4, 80, 140);
  s.Wait();
  std::vector<std::vector<uint64_t>> masks;
  std::vector<std::vector<float>> data(4);
  for (uint64_t n = 1; n <= 4; ++n) masks.push_back(s.Masks(n, &data[n - 1]));
  s.Drain();
  s.Restart();
  EXPECT_EQ(s.Lookup({1, 2, 3, 4}, QualityClass::kBalanced).run, 0u) << "before it is read back";
  for (uint64_t n = 1; n <= 4; ++n) {
    std::vector<float> after;
    EXPECT_EQ(s.Masks(n, &after), masks[n - 1]);
    EXPECT_EQ(after, data[n - 1]);
  }
  EXPECT_EQ(s.Lookup({1, 2, 3, 4}, QualityClass::kBalanced).run, 0u);
}

// Another policy after a restart demotes what is left, and brings no token back.
TEST(Drop, DemotionKeepsMasks) {
  DropHarness s(Options("snapkv"));
  s.PutChain(4);
  s.Report(4, 80, 140);
  s.Wait();
  const auto masks = s.Masks(2);
  s.Drain();
  s.options.policy = PolicyOptions{};
  s.Restart();
  ASSERT_EQ(s.Masks(2), masks);
  s.store->SetBudget(s.store->stats().charged_bytes * 6 / 10);
  for (int i = 0; i < 20; ++i) s.Settle();
  EXPECT_GT(s.store->stats().demoted_segments, 0u);
  EXPECT_EQ(s.Masks(2), masks);
}

// Without masks a reader cannot be told that a tile is empty: it keeps a token and no row is zero.
TEST(Drop, ReadersWithoutMasksNeverSeeZeros) {
  DropHarness s(Options("streamingllm", .25), /*masks=*/false);
  s.PutChain(4);
  s.Wait();
  std::vector<float> got;
  for (uint64_t mask : s.Masks(2, &got)) EXPECT_EQ(mask, 1u);
  const auto put = StoreHarness::Data(2);
  const float *is = TileOf(got, 1, 1, 1), *was = TileOf(put, 1, 1, 1);
  for (int c = 0; c < kDim; ++c) EXPECT_EQ(is[63 * kDim + c], was[c]) << "its only token";
  for (uint64_t mask : s.Masks(1, &got)) EXPECT_EQ(mask, 31u) << "pinned rows are no tile's";
}

// Without reports: decided when the chain has stopped growing, over all of it.
TEST(Drop, ChainsAreDecidedAtTheirEnd) {
  for (const char* policy : {"streamingllm", "random", "keydiff"}) {
    SCOPED_TRACE(policy);
    DropHarness s(Options(policy, .5, 0));
    ASSERT_TRUE(s.PutBlock(1, 0).ok());
    s.Wait(700);
    ASSERT_TRUE(s.PutBlock(2, 1).ok());
    s.Wait(700);
    EXPECT_EQ(s.Kept(2), 128 * kLayers * kHeads) << "its parent's time is not its own";
    EXPECT_TRUE(s.store->NeedsClock());
    s.Wait(700);
    EXPECT_EQ(s.Kept(2), 64 * kLayers * kHeads);
    EXPECT_FALSE(s.store->NeedsClock());
    if (std::string_view(policy) == "streamingllm") {
      EXPECT_EQ(s.Masks(1)[0], uint64_t{15});
      EXPECT_EQ(s.Masks(2)[0], ~uint64_t{0} << 4);
    }
    ASSERT_TRUE(s.PutBlock(3, 2).ok());
    ASSERT_TRUE(s.PutBlock(4, 3).ok());
    s.Wait();
    EXPECT_LE(s.Kept(4), 128 * kLayers * kHeads);
  }
}

// A decision that the stop came before is due again once the chain is read back; one that was made
// is not forgotten.
TEST(Drop, WhatIsDueSurvivesARestart) {
  for (const Durability durability : {Durability::kVolatile, Durability::kPersistent}) {
    SCOPED_TRACE(static_cast<int>(durability));
    DropHarness s(Options("streamingllm", .5, 0));
    ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, durability).ok());
    ASSERT_TRUE(s.PutBlock(2, 1, QualityClass::kBalanced, durability).ok());
    if (durability == Durability::kVolatile) s.Drain();
    s.Restart();
    ASSERT_TRUE(s.store->OpenContext(s.caller, s.spec, {}).ok());
    s.Wait();
    EXPECT_FALSE(s.store->NeedsClock()) << "nothing is read back for it";
    EXPECT_EQ(s.Kept(2), 128 * kLayers * kHeads);
    EXPECT_EQ(s.store->stats().dropped_tokens, 0u);
    s.Wait();
    EXPECT_EQ(s.Kept(2), 64 * kLayers * kHeads);
    EXPECT_EQ(s.store->stats().dropped_tokens, uint64_t{64} * kLayers * kHeads);
  }
}

// A key far from the others' direction is what KeyDiff keeps.
TEST(Drop, KeyDiffReadsTheKeysBack) {
  DropHarness s(Options("keydiff", 6. / 64, 0));
  auto data = StoreHarness::Data(1);
  for (int l = 0; l < kLayers; ++l)
    for (int h = 0; h < kHeads; ++h) {
      float* k = const_cast<float*>(TileOf(data, l, h, 0));
      for (int t = 0; t < kBlockTokens; ++t)
        for (int c = 0; c < kDim; ++c) k[t * kDim + c] = c == (t == 33 ? 1 : 0) ? 2.f : 0.f;
      k[47 * kDim] = -1;
    }
  ASSERT_TRUE(s.Put(s.Request(1, 0), data).status.ok());
  s.Wait();
  for (uint64_t mask : s.Masks(1)) EXPECT_EQ(mask, 15u | uint64_t{1} << 33 | uint64_t{1} << 47);
}

TEST(Drop, LeasesHoldWhatTheyPromised) {
  DropHarness s(Options("streamingllm"));
  s.PutChain(2);
  const auto hit = s.Lookup({1, 2}, QualityClass::kBalanced);
  ASSERT_EQ(hit.run, 2u);
  s.Wait();
  std::vector<float> got;
  for (uint32_t b = 0; b < 2; ++b)
    for (uint64_t mask : s.Fetch(hit.lease, b, &got, true).reply.live)
      EXPECT_EQ(mask, ~uint64_t{0});
  ASSERT_TRUE(s.store->ReleaseLease(s.caller, hit.lease));
  s.Wait();
  EXPECT_EQ(s.Kept(2), 32 * kLayers * kHeads);
}

TEST(Drop, HigherClassesAndPinnedBlocksStayWhole) {
  DropHarness s(Options("streamingllm"));
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kHigh).ok());
  ASSERT_TRUE(s.PutBlock(2, 1).ok());
  ASSERT_TRUE(s.PutBlock(3, 2).ok());
  wire::Pin pin;
  pin.context = s.context;
  pin.hashes = {StoreHarness::Name(3)};
  pin.pinned = true;
  ASSERT_EQ(s.Pin(pin).count, 1u);
  s.Wait();
  for (uint64_t mask : s.Masks(1)) EXPECT_EQ(mask, ~uint64_t{0});
  for (uint64_t mask : s.Masks(2)) EXPECT_EQ(mask, 0u);
  for (uint64_t mask : s.Masks(3)) EXPECT_EQ(mask, ~uint64_t{0});
}

// What the bank acknowledged is not touched, and serves whoever asks for the class.
TEST(Drop, TheBanksCopyStaysWhole) {
  DropHarness s(Options("streamingllm", .1, 0));
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  ASSERT_TRUE(s.PutBlock(2, 1, QualityClass::kBalanced, Durability::kPersistent).ok());
  s.Wait();
  for (uint64_t mask : s.Masks(1)) EXPECT_EQ(std::popcount(mask), 4);
  const auto hit = s.Lookup({1, 2}, QualityClass::kBalanced);
  ASSERT_EQ(hit.run, 2u);
  EXPECT_EQ(hit.hits[0].tier, Tier::kBank);
  std::vector<float> got;
  const auto fetched = s.Fetch(hit.lease, 0, &got, true);
  for (uint64_t mask : fetched.reply.live) EXPECT_EQ(mask, ~uint64_t{0});
}

// printed_corrected: bits by rank, so kinds go down with the masks and bytes fall.
TEST(Drop, PrintedRulesMoveBits) {
  StoreOptions options = Options("printed_corrected");
  options.policy.printed.tau = -20;  // prunes nobody
  DropHarness s(options);
  s.PutChain(3);
  const uint64_t before = s.arena->used_bytes();
  s.Report(3, 128, 192, .004f);
  s.Wait();
  EXPECT_LT(s.arena->used_bytes(), before);
  EXPECT_EQ(s.Kept(3), 192 * kLayers * kHeads);
  const StoreStats stats = s.store->stats();
  EXPECT_EQ(stats.k_tiles[kind::kPlain8], 1u * kLayers * kHeads) << "the best rank: 8 bits";
  EXPECT_EQ(stats.k_tiles[kind::kPlain4], 2u * kLayers * kHeads);
  EXPECT_LT(s.ErrorOf(3), 1e-3);
}

// Two chains of one prefix: each is decided with all of its own blocks, and what the first one
// dropped of the prefix does not count against the second.
TEST(Drop, ChainsMayShareAPrefix) {
  DropHarness s(Options("random", .25, 0));
  s.PutChain(2);
  s.Wait();
  EXPECT_EQ(s.Kept(2), 32 * kLayers * kHeads);
  const auto prefix = s.Masks(1);
  for (uint64_t n : {7, 8}) {
    wire::Put put = s.Request(n, 2);
    put.parent = StoreHarness::Name(2);
    ASSERT_TRUE(s.Put(put, StoreHarness::Data(n)).status.ok());
    s.Wait();
    for (size_t i = 0; i < prefix.size(); ++i) EXPECT_EQ(s.Masks(1)[i] & ~prefix[i], 0u);
    int kept = s.Kept(2);
    for (uint64_t mask : s.Masks(n)) kept += std::popcount(mask);
    EXPECT_EQ(kept, 48 * kLayers * kHeads);
  }
}

// policy.md 5 under a policy that drops nothing: 150 of 2 x 256 tokens. Each layer keeps the 4
// pinned ones and what was attended to; of those that share a rank the newest.
TEST(Drop, TheTokenBudgetBindsAnyPolicy) {
  StoreOptions options = testing::NoNursery();
  options.token_budget = 150;
  options.policy.history.max_step = 2;  // all that the report did not name falls as far
  options.policy.grain = HistoryGrain::kToken;
  DropHarness s(options);
  s.PutChain(4);
  s.Wait();
  EXPECT_EQ(s.Kept(4), 256 * kLayers * kHeads) << "of what no report covered nothing goes";
  s.Report(4, 80, 140);
  s.Wait();
  EXPECT_EQ(s.Kept(4), 150 * kHeads);
  const StoreStats stats = s.store->stats();
  EXPECT_EQ(stats.token_budget, 150u);
  EXPECT_EQ(stats.kept_tokens, 150u);
  EXPECT_EQ(stats.fitted_chains, 1u);
  EXPECT_EQ(stats.overfull_chains, 0u);
  EXPECT_EQ(stats.dropped_tokens, uint64_t{(512 - 150) * kHeads});
  for (uint64_t mask : s.Masks(1)) EXPECT_EQ(mask, 15u) << "the pinned ones";
  for (uint64_t mask : s.Masks(2)) EXPECT_EQ(mask, ~uint64_t{0} << 16) << "80..127 of 80..139";
  for (uint64_t mask : s.Masks(3)) EXPECT_EQ(mask & 4095, 4095u) << "and 128..139";
  for (uint64_t mask : s.Masks(4))
    EXPECT_EQ(mask, ~uint64_t{0} << 53) << "11 of one rank: the last";
  EXPECT_EQ(s.Lookup({1, 2, 3, 4}, QualityClass::kBalanced).run, 0u) << "and it is said";
}

// What must stay whole counts, and where it is more than the budget all else goes.
TEST(Drop, TheTokenBudgetCountsWhatStaysWhole) {
  StoreOptions options = testing::NoNursery();
  options.token_budget = 100;
  DropHarness s(options);
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kHigh).ok());
  ASSERT_TRUE(s.PutBlock(2, 1).ok());
  s.Report(2, 80, 100);
  s.Wait();
  for (uint64_t mask : s.Masks(1)) EXPECT_EQ(mask, ~uint64_t{0});
  for (uint64_t mask : s.Masks(2)) EXPECT_EQ(mask, 0u);
  EXPECT_EQ(s.store->stats().overfull_chains, 1u);
  EXPECT_EQ(s.store->stats().kept_tokens, uint64_t{64} * kLayers);
}

// It comes on top of what a policy chose, lower than that or not at all.
TEST(Drop, TheTokenBudgetNarrowsAPolicysChoice) {
  for (uint64_t budget : {0, 60, 1000}) {
    StoreOptions options = Options("snapkv");
    options.token_budget = budget;
    DropHarness s(options);
    s.PutChain(4);
    s.Report(4, 80, 140);
    s.Wait();
    EXPECT_EQ(s.Kept(4), (budget == 60 ? 60 : 64 * kLayers) * kHeads);
  }
}

// What happens to the chain while it is being decided is seen when the masks are to be applied.
TEST(Drop, ChainChangesWhileItIsDecided) {
  for (const char* policy : {"keydiff", "streamingllm"}) {
    SCOPED_TRACE(policy);
    const auto decide = [&](DropHarness& s) {
      s.PutChain(3);
      s.clock.Advance(milliseconds(1500));
      for (int i = 0; i < 100 && s.codec.waiting() == 0; ++i) s.store->Tick();
      ASSERT_EQ(s.codec.waiting(), 1u) << "the decision waits for its thread";
    };
    {
      DropHarness s(Options(policy));
      decide(s);
      s.store->Clear(s.caller, {s.context});
      s.Settle();
      EXPECT_EQ(s.arena->used_bytes(), 0u);
    }
    {
      DropHarness s(Options(policy));
      decide(s);
      ASSERT_TRUE(s.PutBlock(2, 1, QualityClass::kExact).ok());  // raw as it is
      EXPECT_EQ(s.ErrorOf(2), 0);
      for (uint64_t mask : s.Masks(2)) EXPECT_EQ(mask, ~uint64_t{0});
      for (uint64_t mask : s.Masks(3)) EXPECT_NE(mask, ~uint64_t{0});
    }
    {
      DropHarness s(Options(policy));
      decide(s);
      const auto hit = s.Lookup({1, 2, 3}, QualityClass::kBalanced);
      ASSERT_EQ(hit.run, 3u);
      s.Settle();
      std::vector<float> got;
      for (uint64_t mask : s.Fetch(hit.lease, 1, &got, true).reply.live)
        EXPECT_EQ(mask, ~uint64_t{0});
      s.store->ReleaseLease(s.caller, hit.lease);
      s.Wait();
      EXPECT_EQ(s.Kept(3), 48 * kLayers * kHeads) << "it was tried again";
    }
  }
}

// A window of queries is scored here: the token whose key they all point at stays.
TEST(Drop, QueryWindowsDecideToo) {
  DropHarness s(Options("fastkv", .25, 8));
  s.PutChain(2);
  const auto data = StoreHarness::Data(1);
  wire::Report r;
  r.context = s.context;
  r.kind = wire::ReportKind::kQueryWindow;
  r.leaf = StoreHarness::Name(2);
  r.layer_count = kLayers;
  r.head_end = kHeads;
  r.queries = 8;
  r.advance = 128;
  r.first_query_position = 120;
  r.dtype = DType::kF32;
  constexpr int kTarget = 29, kGroup = 2;
  std::vector<float> queries;  // [layer][query][q_head][dim]
  for (int l = 0; l < kLayers; ++l)
    for (int q = 0; q < 8; ++q)
      for (int h = 0; h < kHeads * kGroup; ++h)
        for (int c = 0; c < kDim; ++c)
          queries.push_back(2 * TileOf(data, l, h / kGroup, 0)[kTarget * kDim + c]);
  std::vector<std::byte> bytes(queries.size() * sizeof(float));
  std::memcpy(bytes.data(), queries.data(), bytes.size());
  Status status = Internal("not answered");
  s.store->Report(s.caller, r, bytes, [&](Status got) { status = got; });
  s.Settle();
  ASSERT_TRUE(status.ok()) << status.ToString();
  s.Wait();
  EXPECT_EQ(s.Kept(2), 32 * kLayers * kHeads);
  for (uint64_t mask : s.Masks(1)) EXPECT_EQ(mask >> (kTarget - 3) & 127, 127u) << "and its like";
}

}  // namespace
}  // namespace dyna
