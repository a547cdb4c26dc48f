// The door: what goes in comes out, what is malformed or out of bounds is refused by name, released
// bytes stay readable, and a put fits beside its payload over UCX.
#include "schemas/wire.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <random>

#include "schemas/wire_samples.h"
#include "tests/support/seed.h"

namespace dyna::wire {
namespace {

constexpr int kTypes = static_cast<int>(std::variant_size_v<Message>);
using Bytes = std::vector<uint8_t>;

TEST(Wire, EveryMessageComesBackAsItWas) {
  std::mt19937_64 rng(testing::TestSeed());
  for (int round = 0; round < 40; ++round)
    for (int t = 1; t <= kTypes; ++t) {
      const Message sent = RandomMessage(static_cast<Type>(t), rng);
      ASSERT_EQ(static_cast<int>(TypeOf(sent)), t);
      const Bytes bytes = Serialize(sent);
      const Result<Message> got = Parse(bytes);
      ASSERT_TRUE(got.ok()) << TypeName(TypeOf(sent)) << ": " << got.status().ToString();
      ASSERT_EQ(got->index(), sent.index());
      // Serialize is a function of the message, so equal bytes are equal messages ...
      ASSERT_EQ(Serialize(*got), bytes) << TypeName(TypeOf(sent));
    }
}

TEST(Wire, FieldsAreNotSwapped) {  // ... unless both directions made the same mistake.
  std::mt19937_64 rng(testing::TestSeed());
  const auto put = std::get<Put>(RandomMessage(Type::kPut, rng));
  const auto got = std::get<Put>(*Parse(Serialize(put)));
  EXPECT_EQ(got.context, put.context);
  EXPECT_EQ(got.shard, put.shard);
  EXPECT_EQ(got.layer_begin, put.layer_begin);
  EXPECT_EQ(got.layer_count, put.layer_count);
  EXPECT_EQ(got.parent, put.parent);
  EXPECT_EQ(got.first_index, put.first_index);
  EXPECT_EQ(got.hashes, put.hashes);
  EXPECT_EQ(got.quality, put.quality);
  EXPECT_EQ(got.durability, put.durability);
  EXPECT_EQ(got.ttl_ms, put.ttl_ms);
  EXPECT_EQ(got.layout.region, put.layout.region);
  EXPECT_EQ(got.layout.k_head_stride, put.layout.k_head_stride);
  EXPECT_EQ(got.layout.v_head_stride, put.layout.v_head_stride);
  EXPECT_EQ(got.layout.k_offsets, put.layout.k_offsets);
  EXPECT_EQ(got.layout.v_offsets, put.layout.v_offsets);
  const auto spec = std::get<OpenContext>(RandomMessage(Type::kOpenContext, rng)).spec;
  const auto spec2 = std::get<OpenContext>(*Parse(Serialize(OpenContext{spec}))).spec;
  EXPECT_EQ(CanonicalBytes(spec2), CanonicalBytes(spec));
  EXPECT_EQ(spec2.layers, spec.layers);
  EXPECT_EQ(spec2.ropes, spec.ropes);
}

TEST(Wire, TruncatedIsRefused) {
  std::mt19937_64 rng(testing::TestSeed());
  for (int t = 1; t <= kTypes; ++t) {
    const Bytes bytes = Serialize(RandomMessage(static_cast<Type>(t), rng));
    const size_t step = std::max<size_t>(1, bytes.size() / 200);
    for (size_t n = 0; n < bytes.size(); n += step) {
      const Bytes cut(bytes.begin(), bytes.begin() + static_cast<long>(n));
      (void)Parse(cut);  // may be a message still when only padding went; must never crash
    }
    EXPECT_FALSE(Parse(std::span(bytes).first(bytes.size() / 2)).ok()) << t;
  }
}

TEST(Wire, DamageNeverCrashesAndWhatPassesIsWithinBounds) {
  std::mt19937_64 rng(testing::TestSeed());
  int passed = 0;
  for (int round = 0; round < 400; ++round)
    for (int t = 1; t <= kTypes; ++t) {
      Bytes bytes = Serialize(RandomMessage(static_cast<Type>(t), rng));
      for (int flips = 1 + static_cast<int>(rng() % 4); flips > 0; --flips)
        bytes[rng() % bytes.size()] ^= static_cast<uint8_t>(1u << (rng() % 8));
      const Result<Message> got = Parse(bytes);
      if (!got.ok()) {
        EXPECT_FALSE(got.status().message().empty());
        continue;
      }
      ++passed;
      // What passed the door is a message within the bounds: it must pass again.
      EXPECT_TRUE(Parse(Serialize(*got)).ok());
    }
  EXPECT_GT(passed, 0);
}

// Parse(Serialize(m)) must fail with `code` and name `field`.
void ExpectRefused(const Message& m, StatusCode code, std::string_view field) {
  const Result<Message> got = Parse(Serialize(m));
  ASSERT_FALSE(got.ok()) << field;
  EXPECT_EQ(got.status().code(), code) << got.status().ToString();
  EXPECT_NE(got.status().message().find(field), std::string_view::npos) << got.status().ToString();
}

template <typename M>
M Sample(uint64_t seed = 7) {
  std::mt19937_64 rng(seed);
  return std::get<M>(RandomMessage(TypeOf(M{}), rng));
}

TEST(Wire, BoundsAreNamed) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto bad = StatusCode::kInvalid, large = StatusCode::kTooLarge;
  auto change = [](auto m, auto f) {
    f(m);
    return m;
  };
  const auto put = change(Sample<Put>(), [](Put& m) {
    m.hashes.resize(1);
    m.shard = {0, 30, 0, 3};
    m.layer_begin = 0;
    m.layer_count = 2;
    m.layout = {1, DType::kBf16, 128, 128, 128, 128, {0, 8}, {0, 8}};
  });
  ASSERT_TRUE(Parse(Serialize(put)).ok()) << Parse(Serialize(put)).status().ToString();
  ExpectRefused(change(put, [](Put& m) { m.hashes.clear(); }), bad, "hashes");
  ExpectRefused(change(put, [](Put& m) { m.hashes.resize(4097, m.hashes[0]); }), large, "hashes");
  ExpectRefused(change(put, [](Put& m) { m.hashes[0] = {}; }), bad, "hashes");
  ExpectRefused(change(put, [](Put& m) { m.context = 0; }), bad, "context");
  ExpectRefused(change(put, [](Put& m) { m.layer_count = 0; }), bad, "layer_count");
  ExpectRefused(change(put, [](Put& m) { m.layer_begin = 29; }), bad, "shard's layers");
  ExpectRefused(change(put, [](Put& m) { m.shard.head_end = 0; }), bad, "head range");
  ExpectRefused(change(put, [](Put& m) { m.shard.layer_end = 65535; }), bad, "layer range");
  ExpectRefused(change(put,
                       [](Put& m) {
                         m.first_index = 0;
                         m.parent = m.hashes[0];
                       }),
                bad, "parent");
  ExpectRefused(change(put,
                       [](Put& m) {
                         m.first_index = 3;
                         m.parent = {};
                       }),
                bad, "parent");
  ExpectRefused(change(put, [](Put& m) { m.quality = QualityClass{9}; }), bad, "quality");
  ExpectRefused(change(put, [](Put& m) { m.durability = Durability{2}; }), bad, "durability");
  ExpectRefused(change(put, [](Put& m) { m.layout.dtype = DType{0}; }), bad, "dtype");
  ExpectRefused(change(put, [](Put& m) { m.layout.k_offsets.pop_back(); }), bad, "offset");
  ExpectRefused(change(put, [](Put& m) { m.layout.v_offsets[1] = 1ull << 63; }), bad, "offset");
  ExpectRefused(change(put, [](Put& m) { m.layout.k_head_stride = INT64_MIN; }), bad, "stride");
  ExpectRefused(change(put, [](Put& m) { m.layout.region = 0; }), bad, "without a region");
  ExpectRefused(change(put,
                       [](Put& m) {
                         m.hashes.resize(600, m.hashes[0]);
                         m.layer_count = 30;
                       }),
                large, "16384");

  const auto fetch = change(Sample<Fetch>(), [](Fetch& m) {
    m.form = Form::kDecoded;
    m.layer_begin = 0;
    m.layer_count = 1;
    m.block_begin = 0;
    m.block_count = 1;
    m.want_masks = false;
    m.layout = {};
  });
  ASSERT_TRUE(Parse(Serialize(fetch)).ok());
  ExpectRefused(change(fetch, [](Fetch& m) { m.lease = 0; }), bad, "lease");
  ExpectRefused(change(fetch, [](Fetch& m) { m.block_count = 0; }), bad, "block_count");
  ExpectRefused(change(fetch,
                       [](Fetch& m) {
                         m.block_count = ~0u;
                         m.block_begin = 2;
                       }),
                bad, "block_count");
  ExpectRefused(change(fetch, [](Fetch& m) { m.form = Form{3}; }), bad, "form");
  ExpectRefused(change(fetch, [](Fetch& m) { m.head_end = m.head_begin; }), bad, "head range");
  ExpectRefused(change(fetch,
                       [](Fetch& m) {
                         m.want_masks = true;
                         m.head_begin = 0;
                         m.head_end = 1024;
                         m.block_count = 100;
                       }),
                large, "masks");
  ExpectRefused(change(fetch,
                       [](Fetch& m) {
                         m.form = Form::kAsStored;
                         m.layout = {1, DType::kBf16, 128, 128, 128, 128, {0}, {0}};
                       }),
                bad, "as stored");

  const auto window = change(Sample<Report>(), [](Report& m) {
    m.kind = ReportKind::kQueryWindow;
    m.queries = 64;
  });
  ExpectRefused(change(window, [](Report& m) { m.queries = 0; }), bad, "queries");
  ExpectRefused(change(window, [](Report& m) { m.queries = 65; }), bad, "queries");
  ExpectRefused(change(window, [](Report& m) { m.leaf = {}; }), bad, "leaf");
  ExpectRefused(change(window, [](Report& m) { m.first_query_position = ~0u; }), bad, "position");
  ExpectRefused(change(window,
                       [](Report& m) {
                         m.kind = ReportKind::kTileMass;
                         m.has_lse = true;
                       }),
                bad, "lse");

  const auto lookup = Sample<Lookup>();
  ExpectRefused(change(lookup, [&](Lookup& m) { m.max_nmse = nan; }), bad, "max_nmse");
  ExpectRefused(change(lookup, [&](Lookup& m) { m.max_nmse = -1; }), bad, "max_nmse");
  const auto hits = change(Sample<LookupReply>(), [](LookupReply& m) {
    m.hits.resize(2);
    m.run = 2;
  });
  ExpectRefused(change(hits, [&](LookupReply& m) { m.hits[1].nmse = nan; }), bad, "nmse");
  ExpectRefused(change(hits, [&](LookupReply& m) { m.hits[0].tier = Tier{9}; }), bad, "tier");
  ExpectRefused(change(hits, [&](LookupReply& m) { m.run = 3; }), bad, "run");
  ExpectRefused(change(Sample<FetchReply>(), [](FetchReply& m) { m.tiers.pop_back(); }), bad,
                "tiers");

  ExpectRefused(change(Sample<Hello>(), [](Hello& m) { m.client_name = "a\nb"; }), bad,
                "client_name");
  ExpectRefused(change(Sample<Hello>(), [](Hello& m) { m.client_name.assign(65, 'x'); }), large,
                "client_name");
  ExpectRefused(change(Sample<Hello>(), [](Hello& m) { m.ucx_address.resize(4097); }), large,
                "ucx_address");
  ExpectRefused(RegisterRegion{}, bad, "size");
  ExpectRefused(RegisterRegion{1ull << 63, RegionKind::kHost, {}, {}, 0}, large, "size");
  const RegisterRegion host{4096, RegionKind::kHost, {}, {}, 0};
  ExpectRefused(change(host, [](RegisterRegion& m) { m.kind = RegionKind{2}; }), bad, "kind");
  const RegisterRegion device{4096, RegionKind::kDevice, {1}, std::vector<uint8_t>(64, 7), 256};
  ExpectRefused(change(device, [](RegisterRegion& m) { m.handle.clear(); }), bad, "handle");
  ExpectRefused(change(device, [](RegisterRegion& m) { m.handle.resize(257); }), large, "handle");
  ExpectRefused(change(device, [](RegisterRegion& m) { m.offset = 1ull << 47; }), bad, "offset");
  ExpectRefused(DeregisterRegion{0}, bad, "region");
  ExpectRefused(change(Sample<GetBasis>(), [](GetBasis& m) { m.names.clear(); }), bad, "names");
  ExpectRefused(change(Sample<GetBasis>(), [](GetBasis& m) { m.names.assign(65, 1); }), large,
                "names");
  ExpectRefused(change(Sample<Query>(), [](Query& m) { m.limit = 0; }), bad, "limit");
  ExpectRefused(change(Sample<Query>(), [](Query& m) { m.kind = QueryKind{0}; }), bad, "kind");
  const auto open = Sample<OpenContext>();
  ExpectRefused(change(open, [&](OpenContext& m) { m.spec.ropes[1].inv_freq[0] = nan; }), bad,
                "inv_freq");
  ExpectRefused(change(open, [](OpenContext& m) { m.spec.ropes[1].inv_freq.pop_back(); }), bad,
                "inv_freq");
  ExpectRefused(change(open, [](OpenContext& m) { m.spec.layers[0].head_dim = 40; }), bad,
                "head_dim");
  ExpectRefused(change(open, [](OpenContext& m) { m.spec.layers.clear(); }), bad, "layers");
  ExpectRefused(change(open, [](OpenContext& m) { m.spec.layers.resize(1025); }), large, "layers");
}

TEST(Wire, NotAMessage) {
  EXPECT_EQ(Parse({}).status().code(), StatusCode::kInvalid);
  EXPECT_EQ(Parse(Bytes(kMaxControl + 1)).status().code(), StatusCode::kTooLarge);
  EXPECT_EQ(Parse(Bytes(64)).status().code(), StatusCode::kInvalid);
  Bytes other = Serialize(Clear{1});
  other[4] = 'X';
  EXPECT_EQ(Parse(other).status().code(), StatusCode::kInvalid);
}

// Finds the one byte whose change makes Parse answer UNSUPPORTED: the version, or the union's tag.
TEST(Wire, AnotherVersionOrMemberIsUnsupported) {
  const Bytes bytes = Serialize(Clear{0x1122334455667788});
  std::map<std::string, int> seen;
  for (size_t i = 0; i < bytes.size(); ++i) {
    Bytes changed = bytes;
    changed[i] += 100;
    const Status s = Parse(changed).status();
    if (s.code() != StatusCode::kUnsupported) continue;
    ++seen[std::string(s.message().substr(0, 7))];
  }
  EXPECT_GE(seen["version"], 1);
  EXPECT_GE(seen["message"], 1);
}

TEST(Wire, StatusTextIsMadePrintableAndShort) {
  const Bytes bytes = Serialize(StatusReply{Invalid(std::string(5000, '\n') + "x")});
  const Result<Message> got = Parse(bytes);
  ASSERT_TRUE(got.ok()) << got.status().ToString();
  EXPECT_EQ(std::get<StatusReply>(*got).status.message(), std::string(1024, ' '));
}

// Over UCX the control of a message with payload rides in the AM header (design 7).
TEST(Wire, APutOfSixteenSegmentsFitsBesideItsPayload) {
  Put m = Sample<Put>();
  m.context = ~0ull;
  m.shard = {0, 1024, 0, 1024};
  m.parent = m.hashes[0];
  m.first_index = 1u << 25;
  m.ttl_ms = ~0u;
  m.quality = QualityClass::kExact;
  m.durability = Durability::kPersistent;
  m.layout = {};
  m.hashes.resize(kMaxUcxSegments, m.hashes[0]);
  m.layer_begin = 1000;
  m.layer_count = 1;
  const size_t wide = Serialize(m).size();
  m.hashes.resize(1);
  m.layer_count = kMaxUcxSegments;
  const size_t deep = Serialize(m).size();
  std::printf("control of a put: 16 blocks x 1 layer %zu B, 1 block x 16 layers %zu B\n", wide,
              deep);
  EXPECT_LE(wide, kMaxUcxControl);
  EXPECT_LE(deep, kMaxUcxControl);
  // The other direction: a fetch's reply carries its segments beside the payload.
  FetchReply reply = Sample<FetchReply>();
  reply.status = {};
  reply.segments.resize(kMaxUcxSegments);
  reply.tiers.resize(kMaxUcxSegments);
  reply.bases.assign(kMaxUcxSegments, ~0ull);
  reply.live.clear();
  const size_t answer = Serialize(reply).size();
  std::printf("control of a fetch's reply with 16 segments of 16 bases: %zu B\n", answer);
  EXPECT_LE(answer, kMaxUcxControl);
}

// golden/wire_v1.txt: lines "TYPE HEX", one message of each type, written once
// (DYNA_WRITE_GOLDEN=1) and never again; what came later is a line at its end. Released bytes stay
// readable, and the fields they carry come back from them: a field added later has its default
// there and is not written.
TEST(Wire, ReleasedBytesKeepTheirMeaning) {
  const std::string path = DYNA_SOURCE_DIR "/schemas/golden/wire_v1.txt";
  if (std::getenv("DYNA_WRITE_GOLDEN") != nullptr) {
    std::ofstream out(path);
    for (int t = 1; t <= 31; ++t) {
      std::mt19937_64 rng(static_cast<uint64_t>(t));
      out << t << ' ';
      for (uint8_t b : Serialize(RandomMessage(static_cast<Type>(t), rng)))
        out << "0123456789abcdef"[b >> 4] << "0123456789abcdef"[b & 15];
      out << '\n';
    }
  }
  std::ifstream in(path);
  int type = 0, lines = 0;
  std::string hex;
  while (in >> type >> hex) {
    Bytes bytes;
    for (size_t i = 0; i + 1 < hex.size(); i += 2)
      bytes.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    const Result<Message> got = Parse(bytes);
    ASSERT_TRUE(got.ok()) << type << ": " << got.status().ToString();
    EXPECT_EQ(static_cast<int>(TypeOf(*got)), type);
    EXPECT_EQ(Serialize(*got), bytes) << TypeName(static_cast<Type>(type));
    ++lines;
  }
  EXPECT_EQ(lines, 32);
}

}  // namespace
}  // namespace dyna::wire
