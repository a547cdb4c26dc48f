// The library against the smallest peer (test_daemon.h): ways through.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "client/client_fixture.h"
#include "client/kv_run.h"

namespace dyna {
namespace {

TEST_F(ClientTest, RegionMemoryIsUsedInPlace) {
  Open();
  auto region = client->AllocateRegion(2 * kBytes);
  ASSERT_TRUE(region.ok()) << region.status().ToString();
  std::byte* base = (*region)->bytes().data();
  Fill({base, kBytes}, 1);
  const PutResult put = context->Put(PutOf(TokenMajor(base)));
  ASSERT_TRUE(put.status.ok()) << put.status.ToString();
  EXPECT_EQ(put.segments.size(), kBlocks * kLayers);
  const Lease lease = LookupAll();
  ASSERT_EQ(lease.run(), kBlocks);
  const FetchResult got = FetchTo(lease, TokenMajor(base + kBytes));
  ASSERT_TRUE(got.status.ok()) << got.status.ToString();
  EXPECT_EQ(std::memcmp(base, base + kBytes, kBytes), 0);
  EXPECT_EQ(got.tiers, std::vector<Tier>(kBlocks * kLayers, Tier::kHost));
  const ClientStats s = client->stats();
  EXPECT_EQ(s.bytes_in_place, 2 * kBytes);
  EXPECT_EQ(s.bytes_staged, 0u);
  EXPECT_EQ(daemon.payload_bytes, 0u);
  EXPECT_EQ(daemon.puts, 1);  // one message
}

TEST_F(ClientTest, PlainMemoryCostsOneCopyThroughStaging) {
  ClientOptions o = Options();
  o.staging_bytes = 1 << 20;  // smaller than the call: pieces wait for each other
  Open(o);
  std::vector<std::byte> in(kBytes), out(kBytes);
  Fill(in, 2);
  ASSERT_TRUE(context->Put(PutOf(TokenMajor(in.data()))).status.ok());
  const Lease lease = LookupAll();
  const FetchResult got = FetchTo(lease, DenseAll(out.data()));  // another layout than the put's
  ASSERT_TRUE(got.status.ok()) << got.status.ToString();
  std::vector<std::byte> again(kBytes);
  ASSERT_TRUE(FetchTo(lease, TokenMajor(again.data())).status.ok());
  EXPECT_EQ(in, again);
  EXPECT_NE(in, out);
  EXPECT_EQ(client->stats().bytes_staged, 3 * kBytes);
  EXPECT_EQ(daemon.payload_bytes, 0u);
}

TEST_F(ClientTest, ALongTimeToLiveDoesNotWrap) {
  Open();
  std::vector<std::byte> in(kBytes);
  PutRequest r = PutOf(DenseAll(in.data()));
  r.ttl = std::chrono::milliseconds((int64_t{1} << 32) + 5);
  ASSERT_TRUE(context->Put(std::move(r)).status.ok());
  EXPECT_EQ(daemon.put_ttl_ms, UINT32_MAX);
}

TEST_F(ClientTest, FramesOverTheSocket) {
  daemon.byte_credits = 400'000;  // a frame may take half of them
  daemon.request_credits = 3;
  Open(Bulk::kSocket);
  std::vector<std::byte> in(kBytes), out(kBytes);
  Fill(in, 3);
  ASSERT_TRUE(context->Put(PutOf(DenseAll(in.data()))).status.ok());
  EXPECT_GT(daemon.puts, 4);
  EXPECT_EQ(daemon.payload_bytes, kBytes);
  EXPECT_LE(daemon.max_in_flight, 3);
  const Lease lease = LookupAll();
  const FetchResult got = FetchTo(lease, DenseAll(out.data()));
  ASSERT_TRUE(got.status.ok()) << got.status.ToString();
  EXPECT_EQ(in, out);
  EXPECT_EQ(got.bytes_received, kBytes);
  std::fill(out.begin(), out.end(), std::byte{0});
  ASSERT_TRUE(FetchTo(lease, TokenMajor(out.data())).status.ok());
  std::vector<std::byte> back(kBytes);
  ASSERT_TRUE(context->Put(PutOf(TokenMajor(out.data()))).status.ok());
  ASSERT_TRUE(FetchTo(lease, DenseAll(back.data())).status.ok());
  EXPECT_EQ(in, back);
  EXPECT_LE(daemon.max_in_flight, 3);
}

TEST_F(ClientTest, PartOfARun) {
  Open(Bulk::kSocket);
  std::vector<std::byte> in(kBytes);
  Fill(in, 4);
  ASSERT_TRUE(context->Put(PutOf(DenseAll(in.data()))).status.ok());
  const Lease lease = LookupAll();
  FetchRequest r;
  r.block_begin = 2;
  r.block_count = 3;
  r.layer_begin = 1;
  r.layer_count = 2;
  r.head_begin = 1;
  r.head_end = 3;
  const size_t head = 2 * kBlockTokens * kDim * 2;
  std::vector<std::byte> out(3 * 2 * 2 * head);
  r.target = KvMemory::Dense(out.data(), DType::kF16, 3, 2, 2, kDim);
  ASSERT_TRUE(context->Fetch(lease, r).status.ok());
  for (size_t b = 0; b < 3; ++b)
    for (size_t l = 0; l < 2; ++l)
      EXPECT_EQ(std::memcmp(&out[(b * 2 + l) * 2 * head],
                            &in[(((b + 2) * kLayers + l + 1) * kHeads + 1) * head], 2 * head),
                0);
  r.block_count = 5;
  EXPECT_EQ(context->Fetch(lease, r).status.code(), StatusCode::kInvalid);
  r.block_count = 3;
  r.head_end = 4;
  EXPECT_EQ(context->Fetch(lease, r).status.code(), StatusCode::kInvalid);
  r.head_end = 3;
  r.target.k.pop_back();
  EXPECT_EQ(context->Fetch(lease, r).status.code(), StatusCode::kInvalid);
}

// Layers 1 and 3 look 100 tokens back: of 6 blocks they need the last 3.
TEST_F(ClientTest, OfSlidingLayersOnlyTheWindowIsFetched) {
  for (const Bulk bulk : {Bulk::kRegion, Bulk::kSocket}) {
    for (const wire::Form form : {wire::Form::kDecoded, wire::Form::kAsStored}) {
      Open(bulk);
      ContextSpec spec = Spec();
      for (size_t l : {1, 3}) {
        spec.layers[l].kind = LayerKind::kSliding;
        spec.layers[l].window = 100;
      }
      context = client->OpenContext(spec).value();
      std::vector<std::byte> in(kBytes), all(kBytes), out(kBytes, std::byte{0x55});
      Fill(in, 7);
      ASSERT_TRUE(context->Put(PutOf(DenseAll(in.data()))).status.ok());
      const Lease lease = LookupAll();
      FetchRequest r;
      r.target = DenseAll(all.data());
      r.form = form;
      r.beyond_windows = true;
      ASSERT_TRUE(context->Fetch(lease, r).status.ok());
      const FetchResult got = FetchTo(lease, DenseAll(out.data()), form);
      ASSERT_TRUE(got.status.ok()) << got.status.ToString();
      const size_t segment = kBytes / (kBlocks * kLayers);
      for (size_t s = 0; s < got.segments.size(); ++s) {
        const size_t layer = s % kLayers, block = s / kLayers;
        const bool left_out = (layer == 1 || layer == 3) && block < 3;
        EXPECT_EQ(got.segments[s].status, left_out ? StatusCode::kMiss : StatusCode::kOk) << s;
        EXPECT_EQ(got.tiers[s], left_out ? Tier::kNone : Tier::kHost) << s;
        const std::vector<std::byte> untouched(segment, std::byte{0x55});
        const std::byte* want = left_out ? untouched.data() : &all[s * segment];
        EXPECT_EQ(std::memcmp(&out[s * segment], want, segment), 0) << s;
      }
      FetchRequest early;  // nothing of it is needed
      early.block_count = 2;
      early.layer_begin = 1;
      early.layer_count = 1;
      early.target = KvMemory::Dense(out.data(), DType::kF16, 2, 1, kHeads, kDim);
      const FetchResult none = context->Fetch(lease, early);
      EXPECT_TRUE(none.status.ok());
      EXPECT_EQ(none.segments[1].status, StatusCode::kMiss);
    }
  }
}

// Whatever is skipped, the pieces are the rest: each segment once, within the bounds of a message.
TEST(KvRunSplit, PiecesAreWhatIsWanted) {
  std::mt19937_64 dice(20261201);
  for (int round = 0; round < 500; ++round) {
    ContextSpec spec = Spec();
    const auto layers = static_cast<uint16_t>(1 + dice() % kLayers);
    const auto blocks = static_cast<uint32_t>(1 + dice() % 9);
    for (LayerShape& layer : spec.layers) layer.head_dim = dice() % 4 == 0 ? 128 : 64;
    std::byte byte{};
    KvMemory memory;
    memory.dtype = DType::kF16;
    memory.k.assign(size_t{blocks} * layers, &byte);
    memory.v = memory.k;
    KvRun run = KvRun::Create(spec, 0, layers, blocks, 1, memory, nullptr).value();
    for (uint16_t l = 0; l < layers; ++l)
      if (dice() % 2 == 0) run.SkipBefore(l, static_cast<uint32_t>(dice() % (blocks + 2)));
    const size_t most = 1 + dice() % 12;
    const uint64_t bytes = run.DenseBytes(0) * (1 + dice() % 12);
    std::vector<int> seen(size_t{blocks} * layers);
    for (const Piece& p : run.Split(most, bytes)) {
      ASSERT_GE(p.segments(), 1u);
      EXPECT_LE(p.segments(), most);
      EXPECT_TRUE(p.segments() == 1 || run.DenseBytes(p) <= bytes);
      for (size_t s = 0; s < p.segments(); ++s) ++seen[run.Index(p, s)];
    }
    for (size_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i], run.Skips(i) ? 0 : 1);
  }
}

TEST_F(ClientTest, AsStoredIsDecodedHere) {
  Open();
  std::vector<std::byte> in(kBytes), out(kBytes);
  Fill(in, 5);
  ASSERT_TRUE(context->Put(PutOf(TokenMajor(in.data()))).status.ok());
  const Lease lease = LookupAll();
  FetchRequest r;
  r.target = TokenMajor(out.data());
  r.form = wire::Form::kAsStored;
  r.want_masks = true;
  const FetchResult got = context->Fetch(lease, std::move(r));
  ASSERT_TRUE(got.status.ok()) << got.status.ToString();
  EXPECT_LT(got.bytes_received, kBytes * 6 / 10);  // 8 bits
  EXPECT_EQ(got.live, std::vector<uint64_t>(kBlocks * kLayers * kHeads, ~0ull));
  auto value = [](const std::vector<std::byte>& v, size_t i) {  // f16 of exponent 0x0f or near
    uint16_t h;
    std::memcpy(&h, &v[2 * i], 2);
    const int e = (h >> 10) & 31;
    const float m = e == 0 ? std::ldexp(h & 1023, -24) : std::ldexp((h & 1023) | 1024, e - 25);
    return h & 0x8000 ? -m : m;
  };
  double error = 0, energy = 0;
  for (size_t i = 0; i < kBytes / 2; ++i) {
    const double a = value(in, i), b = value(out, i);
    error += (a - b) * (a - b);
    energy += a * a;
  }
  EXPECT_LT(error / energy, 1e-3);
  EXPECT_GT(error, 0);
}

TEST_F(ClientTest, WhatIsMissingIsSaidPerSegment) {
  Open();
  std::vector<std::byte> in(kBytes), out(kBytes);
  Fill(in, 6);
  ASSERT_TRUE(context->Put(PutOf(DenseAll(in.data()))).status.ok());
  const Lease lease = LookupAll();
  const auto hashes = SomeHashes(kBlocks);
  ASSERT_EQ(context->Delete({hashes[3]}).value(), 1u);  // its layer 0 only, in this peer
  for (const Bulk bulk : {Bulk::kRegion, Bulk::kSocket}) {
    const FetchResult got = FetchTo(lease, TokenMajor(out.data()), wire::Form::kDecoded);
    EXPECT_EQ(got.status.code(), StatusCode::kMiss) << static_cast<int>(bulk);
    for (size_t s = 0; s < got.segments.size(); ++s)
      EXPECT_EQ(got.segments[s].status, s == 3 * kLayers ? StatusCode::kMiss : StatusCode::kOk)
          << s;
  }
}

}  // namespace
}  // namespace dyna
