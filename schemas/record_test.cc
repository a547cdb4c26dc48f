#include "schemas/record.h"
#include "tests/support/seed.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <random>

namespace dyna::record {
namespace {

BlockHash Hash(uint8_t seed) {
  BlockHash h;
  for (size_t i = 0; i < h.bytes.size(); ++i) h.bytes[i] = static_cast<uint8_t>(seed + i);
  return h;
}

ContextSpec Spec() {
  ContextSpec spec;
  spec.model = "SmolLM2-135M-Instruct";
  spec.revision = "r1";
  spec.ropes = {{RopeKind::kHalf, 4, {1.0f, 0.01f}}, {RopeKind::kNone, 0, {}}};
  spec.layers = {{LayerKind::kFull, 3, 9, 64, 0, 0, 8192},
                 {LayerKind::kSliding, 3, 9, 64, 1, 512, 8192}};
  return spec;
}

std::vector<float> OmegaOf(const ContextSpec& spec) {
  size_t cells = 0;
  for (const LayerShape& l : spec.layers) cells += l.kv_heads;
  std::vector<float> omega(4 * cells);
  for (size_t i = 0; i < omega.size(); ++i) omega[i] = static_cast<float>(i + 1) / 8;
  return omega;
}

// A block of `layers` layers and `heads` heads, each layer with a basis.
BlockMeta Block(uint16_t layers = 2, uint16_t heads = 3) {
  BlockMeta m;
  m.key = {0x1122334455667788u, 0x99aabbccddeeff00u, Hash(1)};
  m.parent = Hash(2);
  m.index = 7;
  m.generation = 3;
  m.revision = 2;
  m.durability = Durability::kPersistent;
  m.pinned = true;
  m.reuse = 1.5f;
  m.nmse = 0.004f;
  m.mean_bits = 2.25f;
  m.reuse_at_ms = 1'700'000'000'000;
  m.expires_at_ms = 1'700'000'600'000;
  m.history_bytes = 8u * layers * heads;
  m.shards = {{0, layers, 0, heads}};
  for (uint16_t l = 0; l < layers; ++l) {
    m.segments.push_back({l, 0, heads, 0x1000u + l / 2, 7168});
    m.clocks.push_back({l * 64u, l});
    for (uint16_t h = 0; h < heads; ++h)
      m.cells.push_back({kind::Level(7), kind::VBits(2), static_cast<int8_t>(h), -3, 4, -128});
  }
  return m;
}

BlockMeta OpaqueBlock() {
  BlockMeta m;
  m.key = {1, 2, Hash(3)};
  m.opaque = true;
  m.quality = QualityClass::kExact;
  m.segments = {{0, 0, 0, 0, 12345}};
  return m;
}

std::vector<std::pair<std::string, Row>> Samples() {
  BlockMeta raw = Block();
  for (SegmentEntry& s : raw.segments) s.basis = 0;
  raw.cells.clear();
  raw.clocks.clear();
  BlockMeta due = Block();
  due.drop_due = true;
  return {{"block", Block()},
          {"block_due", due},
          {"block_raw", raw},
          {"block_opaque", OpaqueBlock()},
          {"context", ContextRow{5, 6, Spec(), {}}},
          {"context_omega", ContextRow{5, 6, Spec(), OmegaOf(Spec())}},
          {"basis", BasisRow{5, 6, 7, {1, 2, 3, 4, 5}}},
          {"price", PriceRow{0, Tier::kHost, -12.5}},
          {"learner", LearnerRow{5, 6, 29, 4, {9, 8, 7}}}};
}

TEST(Record, RoundTrips) {
  for (const auto& [name, row] : Samples()) {
    SCOPED_TRACE(name);
    const auto parsed = Parse(Serialize(row));
    ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
    EXPECT_EQ(*parsed, row);
  }
}

TEST(Record, ABlockMayLackTokens) {
  BlockMeta m = Block();
  m.dropped = true;
  const auto parsed = Parse(Serialize(m));
  ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
  EXPECT_EQ(*parsed, Row(m));
}

// What an earlier build wrote is read for ever. DYNA_WRITE_GOLDEN=1 writes the files of a new row.
TEST(Record, ReadsGoldenBuffers) {
  for (const auto& [name, row] : Samples()) {
    SCOPED_TRACE(name);
    const std::string path = DYNA_SOURCE_DIR "/schemas/golden/record_" + name + ".bin";
    if (std::getenv("DYNA_WRITE_GOLDEN") != nullptr) {
      const auto bytes = Serialize(row);
      std::ofstream(path, std::ios::binary)
          .write(reinterpret_cast<const char*>(bytes.data()),
                 static_cast<std::streamsize>(bytes.size()));
    }
    std::ifstream in(path, std::ios::binary);
    const std::vector<char> raw((std::istreambuf_iterator<char>(in)), {});
    ASSERT_FALSE(raw.empty()) << path;
    const auto parsed = Parse({reinterpret_cast<const uint8_t*>(raw.data()), raw.size()});
    ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
    EXPECT_EQ(*parsed, row);
  }
}

TEST(Record, RowsAreCompact) {
  // Of SmolLM2-135M: 30 layers of 3 heads. Fixed part and 6 bytes a cell, 12 a segment.
  BlockMeta m = Block(30, 3);
  m.clocks.clear();
  for (SegmentEntry& s : m.segments) s.basis = 0;
  EXPECT_LE(Serialize(m).size(), 96u + 160u + 6u * 90u + 12u * 30u);
}

// Each is one contradiction; the message names the field.
TEST(Record, RefusesContradictions) {
  struct Case {
    const char* field;
    std::function<void(BlockMeta&)> spoil;
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<Case> cases = {
      {"context", [](BlockMeta& m) { m.key.context = 0; }},
      {"hash", [](BlockMeta& m) { m.key.hash = {}; }},
      {"index", [](BlockMeta& m) { m.index = 0xffffffff; }},
      {"quality", [](BlockMeta& m) { m.quality = static_cast<QualityClass>(9); }},
      {"durability", [](BlockMeta& m) { m.durability = static_cast<Durability>(2); }},
      {"reuse", [&](BlockMeta& m) { m.reuse = nan; }},
      {"nmse", [](BlockMeta& m) { m.nmse = -1; }},
      {"mean_bits", [&](BlockMeta& m) { m.mean_bits = nan; }},
      {"time", [](BlockMeta& m) { m.expires_at_ms = -1; }},
      {"history_bytes", [](BlockMeta& m) { m.history_bytes = 0x80000000u; }},
      {"shards", [](BlockMeta& m) { m.shards.clear(); }},
      {"shards", [](BlockMeta& m) { m.shards[0].head_end = 0; }},
      {"segments", [](BlockMeta& m) { m.segments.clear(); }},
      {"segments", [](BlockMeta& m) { std::swap(m.segments[0], m.segments[1]); }},
      {"segments", [](BlockMeta& m) { m.segments[1].layer = 0; }},
      {"layer", [](BlockMeta& m) { m.segments[1].layer = 1024; }},
      {"kv_heads", [](BlockMeta& m) { m.segments[0].kv_heads = 0; }},
      {"bytes", [](BlockMeta& m) { m.segments[0].bytes = 0; }},
      {"bytes", [](BlockMeta& m) { m.segments[0].bytes = 300; }},
      {"cells", [](BlockMeta& m) { m.cells.pop_back(); }},
      {"cells", [](BlockMeta& m) { m.cells[0].k_kind = 9; }},
      {"cells", [](BlockMeta& m) { m.cells[0].v_kind = kind::VBits(3); }},
      {"clocks", [](BlockMeta& m) { m.clocks.pop_back(); }},
      {"opaque", [](BlockMeta& m) { m.opaque = true; }},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    BlockMeta m = Block();
    cases[i].spoil(m);
    const auto parsed = Parse(Serialize(m));
    ASSERT_FALSE(parsed.ok()) << "case " << i;
    EXPECT_EQ(parsed.status().code(), StatusCode::kInvalid) << "case " << i;
    EXPECT_NE(parsed.status().message().find(cases[i].field), std::string::npos)
        << "case " << i << ": " << parsed.status().ToString();
  }
}

TEST(Record, RefusesOtherRowsOutOfBounds) {
  ContextRow shorter{5, 6, Spec(), OmegaOf(Spec())};
  shorter.omega.pop_back();
  EXPECT_EQ(Parse(Serialize(shorter)).status().code(), StatusCode::kInvalid);
  ContextRow context{5, 6, Spec(), {}};
  context.spec.ropes[0].inv_freq[0] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Parse(Serialize(context)).status().code(), StatusCode::kInvalid);
  EXPECT_EQ(Parse(Serialize(BasisRow{5, 6, 0, {1}})).status().code(), StatusCode::kInvalid);
  EXPECT_EQ(Parse(Serialize(BasisRow{5, 6, 7, {}})).status().code(), StatusCode::kInvalid);
  EXPECT_EQ(Parse(Serialize(PriceRow{0, Tier::kNone, 0})).status().code(), StatusCode::kInvalid);
  EXPECT_EQ(Parse(Serialize(PriceRow{0, Tier::kHost, 1e300})).status().code(),
            StatusCode::kInvalid);
  EXPECT_EQ(Parse(Serialize(LearnerRow{5, 6, 1024, 1, {}})).status().code(), StatusCode::kInvalid);
}

TEST(Record, RefusesWhatIsNotARecord) {
  EXPECT_EQ(Parse({}).status().code(), StatusCode::kInvalid);
  const std::vector<uint8_t> zeros(64);
  EXPECT_EQ(Parse(zeros).status().code(), StatusCode::kInvalid);
  const std::vector<uint8_t> huge(kMaxRow + 1);
  EXPECT_EQ(Parse(huge).status().code(), StatusCode::kTooLarge);
}

// The version and the union's type are the last of the root table's scalars: found by changing
// bytes until the door says UNSUPPORTED, for each exactly where a field of that meaning is.
TEST(Record, AVersionFromTheFutureIsUnsupported) {
  const auto bytes = Serialize(PriceRow{0, Tier::kHost, 1});
  bool version = false, body = false;
  for (size_t i = 8; i < bytes.size(); ++i) {
    auto copy = bytes;
    copy[i] = 0x7f;
    const auto parsed = Parse(copy);
    if (parsed.ok() || parsed.status().code() != StatusCode::kUnsupported) continue;
    version |= parsed.status().message().find("version") != std::string::npos;
    body |= parsed.status().message().find("body") != std::string::npos;
  }
  EXPECT_TRUE(version);
  EXPECT_TRUE(body);
}

// Truncated or with flipped bits: refused or a row within bounds, never a read outside (ASan).
TEST(Record, SurvivesDamage) {
  std::mt19937 rng(testing::TestSeed());
  for (const auto& [name, row] : Samples()) {
    const auto bytes = Serialize(row);
    for (size_t n = 0; n < bytes.size(); n += 1 + bytes.size() / 200) {
      const auto parsed = Parse(std::span(bytes).first(n));  // up to 7 bytes at the end are padding
      EXPECT_TRUE(!parsed.ok() || (n + 8 > bytes.size() && *parsed == row))
          << name << " cut at " << n;
    }
    for (int i = 0; i < 2000; ++i) {
      auto copy = bytes;
      for (int k = 0; k < 3; ++k)
        copy[rng() % copy.size()] ^= static_cast<uint8_t>(1u << rng() % 8);
      const auto parsed = Parse(copy);
      if (parsed.ok()) {
        EXPECT_TRUE(Validate(*parsed).ok());
      }
    }
  }
}

}  // namespace
}  // namespace dyna::record
