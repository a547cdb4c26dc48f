// For tests: a client and the smallest peer (test_daemon.h) behind a socket of its own.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/test_daemon.h"

namespace dyna {

inline ContextSpec Spec() {
  ContextSpec s;
  s.model = "test";
  s.dtype = DType::kF16;
  s.ropes.push_back({});
  s.layers.assign(5, {LayerKind::kFull, 3, 9, 64, 0, 0, 8192});
  return s;
}
inline constexpr uint32_t kBlocks = 6;
inline constexpr uint16_t kLayers = 5, kHeads = 3, kDim = 64;

inline std::vector<BlockHash> SomeHashes(uint32_t n, uint8_t first = 1) {
  std::vector<BlockHash> v(n);
  for (uint32_t i = 0; i < n; ++i) {
    v[i].bytes[0] = static_cast<uint8_t>(first + i);
    v[i].bytes[31] = static_cast<uint8_t>(i >> 8);
    v[i].bytes[5] = 9;
  }
  return v;
}

// f16 values in +-2 (a random pattern of bits would have NaN), by position.
inline void Fill(std::span<std::byte> bytes, uint32_t seed) {
  uint32_t x = seed * 2654435761u + 1;
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    x = x * 1664525u + 1013904223u;
    const auto v = static_cast<uint16_t>(((x >> 16) & 0x83ff) | 0x3c00);
    std::memcpy(&bytes[i], &v, 2);
  }
}

struct ClientTest : ::testing::Test {
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

}  // namespace dyna
