// The library against the smallest peer (test_daemon.h): ways through, bounds, deadlines, restarts.
#include "client/client.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <future>
#include <thread>

#include "client/test_daemon.h"

namespace dyna {
namespace {

using std::chrono::milliseconds;

ContextSpec Spec() {
  ContextSpec s;
  s.model = "test";
  s.dtype = DType::kF16;
  s.ropes.push_back({});
  s.layers.assign(5, {LayerKind::kFull, 3, 9, 64, 0, 0, 8192});
  return s;
}
constexpr uint32_t kBlocks = 6;
constexpr uint16_t kLayers = 5, kHeads = 3, kDim = 64;

std::vector<BlockHash> SomeHashes(uint32_t n, uint8_t first = 1) {
  std::vector<BlockHash> v(n);
  for (uint32_t i = 0; i < n; ++i) {
    v[i].bytes[0] = static_cast<uint8_t>(first + i);
    v[i].bytes[31] = static_cast<uint8_t>(i >> 8);
    v[i].bytes[5] = 9;
  }
  return v;
}

// f16 values in +-2 (a random pattern of bits would have NaN), by position.
void Fill(std::span<std::byte> bytes, uint32_t seed) {
  uint32_t x = seed * 2654435761u + 1;
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    x = x * 1664525u + 1013904223u;
    const auto v = static_cast<uint16_t>(((x >> 16) & 0x83ff) | 0x3c00);
    std::memcpy(&bytes[i], &v, 2);
  }
}

struct ClientTest : testing::Test {
  ClientTest()
      : path("/tmp/dyna_client_test_" + std::to_string(getpid()) + ".sock"), daemon(path) {}
  ClientOptions Options(Bulk bulk = Bulk::kAuto) {
    ClientOptions o;
    o.endpoint = path;
    o.bulk = bulk;
    return o;
  }
  void Open(Bulk bulk = Bulk::kAuto) { Open(Options(bulk)); }
  void Open(ClientOptions options) {
    auto c = Client::Connect(options);
    ASSERT_TRUE(c.ok()) << c.status().ToString();
    client = std::move(*c);
    auto ctx = client->OpenContext(Spec());
    ASSERT_TRUE(ctx.ok()) << ctx.status().ToString();
    context = *ctx;
  }
  // Token-major over all heads: rows of one head are not neighbours.
  static KvMemory TokenMajor(std::byte* base) {
    const int64_t row = kDim * 2, token = 2 * kHeads * row, layer = kBlockTokens * token;
    const KvMemory::Steps steps{kLayers * layer, layer, token, row};
    return KvMemory::Strided(base, base + kHeads * row, DType::kF16, kBlocks, kLayers, steps);
  }
  static KvMemory DenseAll(std::byte* base) {
    return KvMemory::Dense(base, DType::kF16, kBlocks, kLayers, kHeads, kDim);
  }
  static constexpr size_t kBytes = size_t{kBlocks} * kLayers * 2 * kHeads * kBlockTokens * kDim * 2;

  PutRequest PutOf(KvMemory source) {
    PutRequest r;
    r.hashes = SomeHashes(kBlocks);
    r.source = std::move(source);
    return r;
  }
  Lease LookupAll() {
    LookupRequest r;
    r.hashes = SomeHashes(kBlocks);
    auto lease = context->Lookup(r);
    EXPECT_TRUE(lease.ok()) << lease.status().ToString();
    return lease.ok() ? std::move(*lease) : Lease();
  }
  FetchResult FetchTo(const Lease& lease, KvMemory target, wire::Form form = wire::Form::kDecoded) {
    FetchRequest r;
    r.target = std::move(target);
    r.form = form;
    return context->Fetch(lease, std::move(r));
  }

  std::string path;
  TestDaemon daemon;
  std::unique_ptr<Client> client;
  std::shared_ptr<Context> context;
};

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

TEST_F(ClientTest, DeadlinesAreKept) {
  Open();
  daemon.Mute(wire::Type::kLookup);
  LookupRequest r;
  r.hashes = SomeHashes(1);
  r.deadline = milliseconds(30);
  EXPECT_EQ(context->Lookup(r).status().code(), StatusCode::kDeadline);
}

TEST_F(ClientTest, NamedMemoryThatIsNotLetGoOfIsInDoubt) {
  Open();
  auto region = client->AllocateRegion(kBytes);
  ASSERT_TRUE(region.ok());
  daemon.Mute(wire::Type::kPut);
  PutRequest r = PutOf(DenseAll((*region)->bytes().data()));
  r.deadline = milliseconds(20);
  EXPECT_EQ(context->Put(r).status.code(), StatusCode::kInDoubt);
  daemon.Unmute();
  r = PutOf(DenseAll((*region)->bytes().data()));
  EXPECT_EQ(context->Put(r).status.code(), StatusCode::kInDoubt) << "the region is retired";
  EXPECT_EQ(client->stats().retired_region_bytes, (*region)->size());
  auto other = client->AllocateRegion(kBytes);
  ASSERT_TRUE(other.ok());
  EXPECT_TRUE(context->Put(PutOf(DenseAll((*other)->bytes().data()))).status.ok());
}

TEST_F(ClientTest, ARestartIsSurvived) {
  Open();
  auto region = client->AllocateRegion(2 * kBytes);
  ASSERT_TRUE(region.ok());
  std::byte* base = (*region)->bytes().data();
  Fill({base, kBytes}, 7);
  ASSERT_TRUE(context->Put(PutOf(DenseAll(base))).status.ok());
  const Lease before = LookupAll();
  daemon.DropConnections();
  while (!before.lost()) std::this_thread::yield();  // a call sent earlier would be cancelled
  const Lease after = LookupAll();                   // waits for the connection
  ASSERT_EQ(after.run(), kBlocks);
  EXPECT_TRUE(before.lost());
  EXPECT_EQ(FetchTo(before, DenseAll(base + kBytes)).status.code(), StatusCode::kLeaseLost);
  EXPECT_TRUE(FetchTo(after, DenseAll(base + kBytes)).status.ok());
  EXPECT_EQ(std::memcmp(base, base + kBytes, kBytes), 0);
  EXPECT_EQ(daemon.opens, 2);
  EXPECT_EQ(daemon.registers, 2);
  EXPECT_EQ(client->info().instance_id, 2u);
  EXPECT_EQ(client->stats().reconnects, 1u);
}

TEST_F(ClientTest, WhatWasInFlightIsCancelled) {
  Open();
  daemon.Mute(wire::Type::kLookup);
  std::promise<StatusCode> code;
  LookupRequest r;
  r.hashes = SomeHashes(1);
  context->LookupAsync(r, [&](Result<Lease> l) { code.set_value(l.status().code()); });
  client->stats();  // the lookup has been sent
  daemon.DropConnections();
  EXPECT_EQ(code.get_future().get(), StatusCode::kCancelled);
}

TEST_F(ClientTest, LeasesAreReleasedAndRevoked) {
  Open();
  std::vector<std::byte> in(kBytes);
  ASSERT_TRUE(context->Put(PutOf(DenseAll(in.data()))).status.ok());
  { const Lease lease = LookupAll(); }
  Lease lease = LookupAll();  // its answer comes after the release's
  EXPECT_EQ(daemon.releases, 1);
  daemon.RevokeLeases();
  (void)client->Query(wire::QueryKind::kStats);  // the push came before this answer
  EXPECT_TRUE(lease.lost());
  EXPECT_EQ(FetchTo(lease, DenseAll(in.data())).status.code(), StatusCode::kLeaseLost);
  Lease moved = std::move(lease);
  moved.Release();
  EXPECT_EQ(moved.run(), 0u);
  EXPECT_EQ(FetchTo(moved, DenseAll(in.data())).status.code(), StatusCode::kInvalid);
}

TEST_F(ClientTest, ARegionIsDeregisteredWithItsLastPointer) {
  Open();
  { auto region = client->AllocateRegion(4096); }
  (void)client->Query(wire::QueryKind::kStats);
  EXPECT_EQ(daemon.deregisters, 1);
  EXPECT_EQ(client->stats().regions, 0u);
}

TEST_F(ClientTest, OpaqueObjects) {
  Open();
  std::vector<std::byte> in(1'000'003);
  Fill(in, 8);
  const BlockHash key = SomeHashes(1)[0];
  OpaquePut put;
  put.key = key;
  put.bytes = in;
  ASSERT_TRUE(context->PutOpaque(put).ok());
  auto got = context->GetOpaque(key);
  ASSERT_TRUE(got.ok());
  EXPECT_EQ(got->bytes, in);
  EXPECT_EQ(context->GetOpaque(SomeHashes(1, 99)[0]).status().code(), StatusCode::kMiss);
}

TEST_F(ClientTest, BadRequestsNameTheirField) {
  Open();
  std::vector<std::byte> in(kBytes);
  auto expect = [&](auto change, std::string_view word) {
    PutRequest r = PutOf(DenseAll(in.data()));
    change(r);
    const Status s = context->Put(r).status;
    EXPECT_EQ(s.code(), StatusCode::kInvalid) << word;
    EXPECT_NE(s.message().find(word), std::string_view::npos) << s.ToString();
  };
  expect([](PutRequest& r) { r.shard = {0, 9, 0, 3}; }, "shard");
  expect(
      [](PutRequest& r) {
        r.layer_begin = 4;
        r.layer_count = 2;
      },
      "layer");
  expect([](PutRequest& r) { r.source.k[0] = nullptr; }, "null");
  expect([](PutRequest& r) { r.hashes.pop_back(); }, "segments");
  expect([](PutRequest& r) { r.hashes.clear(); }, "block");
  ContextSpec bad = Spec();
  bad.layers[2].head_dim = 40;
  EXPECT_EQ(client->OpenContext(bad).status().code(), StatusCode::kInvalid);
}

TEST_F(ClientTest, TooManyCallsAtOnceAreRefused) {
  ClientOptions o = Options();
  o.max_calls = 4;
  Open(o);
  daemon.Mute(wire::Type::kLookup);
  std::atomic<int> retry{0}, other{0};
  std::vector<std::promise<void>> ended(10);
  for (auto& e : ended) {
    LookupRequest r;
    r.hashes = SomeHashes(1);
    r.deadline = milliseconds(50);
    context->LookupAsync(r, [&](Result<Lease> l) {
      (l.status().code() == StatusCode::kRetry ? retry : other)++;
      e.set_value();
    });
  }
  for (auto& e : ended) e.get_future().wait();
  EXPECT_EQ(other, 4);
  EXPECT_EQ(retry, 6);
}

TEST_F(ClientTest, BlockingInsideACallbackIsRefused) {
  Open();
  std::promise<StatusCode> code;
  LookupRequest r;
  r.hashes = SomeHashes(1);
  context->ExistsAsync(r, [&](auto) { code.set_value(context->Exists(r).status().code()); });
  EXPECT_EQ(code.get_future().get(), StatusCode::kInvalid);
}

TEST_F(ClientTest, AForkedChildIsTold) {
  Open();
  const pid_t child = fork();
  if (child == 0) {
    LookupRequest r;
    r.hashes = SomeHashes(1);
    const bool told = context->Exists(r).status().code() == StatusCode::kUnsupported;
    client.reset();
    context.reset();
    _exit(told ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  LookupRequest r;
  r.hashes = SomeHashes(1);
  EXPECT_TRUE(context->Exists(r).ok());  // the parent goes on
}

TEST_F(ClientTest, ClosingEndsEveryCallOnce) {
  Open();
  daemon.Mute(wire::Type::kLookup);
  std::atomic<int> ended{0};
  for (int i = 0; i < 20; ++i) {
    LookupRequest r;
    r.hashes = SomeHashes(1);
    context->LookupAsync(r, [&](Result<Lease> l) {
      EXPECT_EQ(l.status().code(), StatusCode::kCancelled);
      ++ended;
    });
  }
  client.reset();
  EXPECT_EQ(ended, 20);
  EXPECT_EQ(LookupRequest{}.hashes.size(), 0u);
  EXPECT_EQ(context->Clear().status().code(), StatusCode::kCancelled);
}

TEST(ClientConnect, NobodyThere) {
  ClientOptions o;
  o.endpoint = "/tmp/dyna_nobody_listens_here.sock";
  const auto c = Client::Connect(o);
  ASSERT_FALSE(c.ok());
  EXPECT_EQ(c.status().code(), StatusCode::kCancelled);
  EXPECT_NE(c.status().message().find(o.endpoint), std::string_view::npos);
}

}  // namespace
}  // namespace dyna
