#include "kernels/segment.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "kernels/segment_layout.h"
#include "kernels/test_data.h"

namespace dyna {
namespace {

namespace at = segment_layout;
using testing::AlignedBytes;
using testing::MakeId;
using testing::Model;

size_t Pair(uint8_t k, uint8_t v, int d) {
  return *KTileBytes(k, d, DType::kF16, nullptr, 0) + *VTileBytes(v, d, DType::kF16);
}
size_t LevelPair(const std::vector<uint8_t>& widths, int v_bits, int d) {
  return *KTileBytes(kind::Level(3), d, DType::kF16, widths, d / static_cast<int>(widths.size())) +
         *VTileBytes(kind::VBits(v_bits), d, DType::kF16);
}

TEST(Sizes, AreThoseOfTheFormat) {  // formats 8
  EXPECT_EQ(Pair(kind::kRaw, kind::kRaw, 128), 32768u);
  EXPECT_EQ(Pair(kind::kPlain8, kind::VBits(8), 128), 17024u);
  EXPECT_EQ(Pair(kind::kPlain4, kind::VBits(4), 128), 8768u);
  EXPECT_EQ(Pair(kind::kPlain4, kind::VBits(4), 64), 4416u);
  EXPECT_EQ(LevelPair(std::vector<uint8_t>(8, 2), 2, 64), 2304u);
  EXPECT_EQ(LevelPair(std::vector<uint8_t>(8, 2), 2, 128), 4544u);
  EXPECT_EQ(LevelPair({2, 2, 2, 2, 0, 0, 0, 0}, 1, 128), 2432u);
  EXPECT_EQ(Pair(kind::kNone, kind::kNone, 64), 0u);
  EXPECT_EQ(VTileBytes(kind::VBits(3), 64, DType::kF16), std::nullopt);
  EXPECT_EQ(KTileBytes(kind::Level(0), 64, DType::kF16, nullptr, 0), std::nullopt);
  EXPECT_EQ(KTileBytes(kind::VBits(8) + 16, 64, DType::kF16, nullptr, 0), std::nullopt);
}

TEST(Sizes, AreMultiplesOf16ForEveryKindAndWidth) {
  std::mt19937 random(11);
  for (int d = 16; d <= 256; d += 16) {
    for (const uint8_t k : {kind::kRaw, kind::kFp8, kind::kPlain8, kind::kPlain4})
      EXPECT_EQ(*KTileBytes(k, d, DType::kE4m3, nullptr, 0) % 16, 0u);
    for (const int b : {0, 1, 2, 4, 8})
      EXPECT_EQ(*VTileBytes(kind::VBits(b), d, DType::kF16) % 16, 0u);
    const int run = DefaultRun(d);
    for (int i = 0; i < 50; ++i) {
      std::vector<uint8_t> widths;
      for (int r = 0; r < d / run; ++r)
        widths.push_back(std::array<uint8_t, 4>{0, 2, 4, 8}[random() % 4]);
      EXPECT_EQ(*KTileBytes(kind::Level(1), d, DType::kF16, widths, run) % 16, 0u);
    }
  }
}

TEST(Sizes, AWholeSegmentOfSmolLm2) {
  std::mt19937 random(12);
  Model model;
  model.kv_heads = 3;
  model.decay = 1;  // even widths
  const auto basis = model.MakeBasis(random);
  const SegmentId id = MakeId(64, 3, DType::kF16, basis.get());
  const std::vector<TilePlan> plan(3, {kind::Level(basis->LevelOf(2)), kind::VBits(2)});
  EXPECT_EQ(EncodedBytes(id, plan, 0, basis.get()), 7168u);
  EXPECT_EQ(RawSegmentBytes(id), 49152u);
}

class SegmentDoor : public ::testing::Test {
 protected:
  SegmentDoor() : bytes_(0) {
    std::mt19937 random(13);
    model_.kv_heads = 2;
    basis_ = model_.MakeBasis(random);
    id_ = MakeId(64, 2, DType::kBf16, basis_.get(), 5);
    plan_ = {{kind::Level(2), kind::VBits(2)}, {kind::kPlain4, kind::VBits(0), 0x0fff}};
    bytes_ = AlignedBytes(EncodedBytes(id_, plan_, 0x8001, basis_.get()));
    auto writer = SegmentWriter::Create(bytes_.span(), id_, plan_, 0x8001, basis_.get());
    EXPECT_TRUE(writer.ok());
    writer->set_v_exp(0, -3);
    writer->Finish(.25f, kSegmentErrorIsEstimate);
  }
  Status Parse(std::span<const std::byte> bytes) const {
    return ParseSegment(bytes, basis_.get()).status();
  }
  void Refused(size_t where, uint8_t value, std::string_view field) {
    std::vector<std::byte> bad(bytes_.span().begin(), bytes_.span().end());
    ASSERT_NE(bad[where], static_cast<std::byte>(value));
    bad[where] = static_cast<std::byte>(value);
    const Status status = Parse(bad);
    ASSERT_FALSE(status.ok()) << field;
    EXPECT_NE(status.message().find(field), std::string_view::npos) << status.ToString();
  }
  Model model_;
  std::shared_ptr<const Basis> basis_;
  SegmentId id_;
  std::vector<TilePlan> plan_;
  AlignedBytes bytes_;
};

TEST_F(SegmentDoor, ReadsWhatTheWriterWrote) {
  const auto view = ParseSegment(bytes_.span(), basis_.get());
  ASSERT_TRUE(view.ok()) << view.status().ToString();
  EXPECT_EQ(view->id(), id_);
  EXPECT_EQ(view->pins(), 0x8001u);
  EXPECT_EQ(view->nmse(), .25f);
  EXPECT_TRUE(view->error_is_estimate());
  EXPECT_EQ(view->tile(0).k_kind, kind::Level(2));
  EXPECT_EQ(view->tile(0).v_exp, -3);
  EXPECT_EQ(view->tile(1).live, 0x0fffu);
  // Pins: two tokens, two heads, K and V, after the directory; then K and V of head 0, of head 1.
  const std::byte* base = bytes_.span().data();
  EXPECT_EQ(view->pin_row(0, 0, false) - base, 128 + 32);
  EXPECT_EQ(view->pin_row(1, 0, true) - base, 128 + 32 + 5 * 128);
  EXPECT_EQ(view->tile(0).k.data() - base, 128 + 32 + 8 * 128);
  EXPECT_EQ(view->tile(0).v.data(), view->tile(0).k.data() + view->tile(0).k.size());
  EXPECT_EQ(view->tile(1).k.data(), view->tile(0).v.data() + view->tile(0).v.size());
  const auto header = ParseSegmentHeader(bytes_.span().first(128));
  ASSERT_TRUE(header.ok());
  EXPECT_EQ(header->bytes, bytes_.span().size());
}

TEST_F(SegmentDoor, MayLieInALongerExtent) {
  std::vector<std::byte> longer(bytes_.span().begin(), bytes_.span().end());
  longer.resize(longer.size() + 512, std::byte{1});
  EXPECT_TRUE(Parse(longer).ok());
}

TEST_F(SegmentDoor, RefusesEveryTruncation) {
  for (size_t n = 0; n < bytes_.span().size(); ++n)
    EXPECT_FALSE(Parse(bytes_.span().first(n)).ok()) << n;
}

TEST_F(SegmentDoor, NamesTheField) {
  Refused(0, 'X', "magic");
  Refused(at::kVersionAt, 1, "version");
  Refused(at::kVersionAt, 3, "version");
  Refused(at::kHeaderBytesAt, 64, "header bytes");
  Refused(at::kFingerprintAt, 8, "context");
  Refused(at::kBasisAt, 0, "basis");
  Refused(at::kLayerAt, 1, "layer");
  Refused(at::kHeadDimAt, 63, "head_dim");
  Refused(at::kHeadDimAt, 80, "head_dim");
  Refused(at::kKvHeadsAt, 0, "kv_heads");
  Refused(at::kDtypeAt, 9, "dtype");
  Refused(at::kReservedAt, 1, "reserved");
  Refused(at::kReserved2At + 3, 1, "reserved");
  Refused(at::kFlagsAt, 4, "flags");
  Refused(at::kPinsAt, 3 + 128, "offset");
  Refused(at::kBytesAt + 1, 3, "bytes");
  Refused(at::kBytesAt + 3, 3, "truncated");
  Refused(at::kNmseAt + 3, 0xff, "nmse");
  Refused(128 + at::kOffsetAt, 9, "offset");
  Refused(128 + at::kKKindAt, 15 + 16, "K kind");
  Refused(128 + at::kKKindAt, 0, "K kind");
  Refused(128 + at::kKKindAt, kind::Level(3), "offset");
  Refused(128 + at::kVKindAt, 19, "V kind");
  Refused(128 + at::kVExpAt, 100, "v_exp");
  Refused(128 + at::kEntryFlagsAt, 3, "row count");
  Refused(128 + 16 + at::kLiveAt + 2, 0xff, "row count");
  Refused(bytes_.span().size() - 1, 1, "padding");
}

TEST_F(SegmentDoor, NeverGuessesALevel) {
  EXPECT_FALSE(ParseSegment(bytes_.span(), nullptr).ok());
  std::mt19937 random(14);
  Model other;
  other.kv_heads = 2;
  const auto wrong = other.MakeBasis(random, 0, 0, 7);
  EXPECT_FALSE(ParseSegment(bytes_.span(), wrong.get()).ok());
}

TEST_F(SegmentDoor, AnyFlippedHeaderBitIsAnErrorOrHarmless) {
  for (size_t bit = 0; bit < (128 + 32) * 8; ++bit) {
    std::vector<std::byte> bad(bytes_.span().begin(), bytes_.span().end());
    bad[bit / 8] ^= std::byte{1} << (bit % 8);
    const auto view = ParseSegment(bad, basis_.get());
    if (!view.ok()) continue;
    for (int i = 0; i < 2; ++i) {  // what parses stays inside
      const TileView tile = view->tile(i);
      EXPECT_GE(tile.k.data(), bad.data());
      EXPECT_LE(tile.v.data() + tile.v.size(), bad.data() + bad.size());
    }
  }
}

TEST_F(SegmentDoor, TheChecksumSeesEveryByte) {
  const auto span = bytes_.span();
  EXPECT_FALSE(VerifySegmentChecksum(span).ok()) << "not sealed yet";
  SealSegment(span);
  EXPECT_TRUE(VerifySegmentChecksum(span).ok());
  EXPECT_TRUE(Parse(span).ok());
  SealSegment(span);
  EXPECT_TRUE(VerifySegmentChecksum(span).ok());
  for (size_t i = 0; i < span.size(); i += 3) {
    span[i] ^= std::byte{0x10};
    EXPECT_FALSE(VerifySegmentChecksum(span).ok()) << i;
    span[i] ^= std::byte{0x10};
  }
}

TEST(CheckPlan, SaysWhyNot) {
  SegmentId id = MakeId(64, 1, DType::kE4m3, nullptr);
  const std::vector<TilePlan> raw = {{kind::kRaw, kind::kRaw}}, coded = {TilePlan{}};
  EXPECT_TRUE(CheckPlan(id, raw, nullptr).ok());
  EXPECT_FALSE(CheckPlan(id, coded, nullptr).ok());
  id.dtype = DType::kF16;
  EXPECT_TRUE(CheckPlan(id, coded, nullptr).ok());
  const std::vector<TilePlan> level = {{kind::Level(1), kind::VBits(2)}};
  EXPECT_FALSE(CheckPlan(id, level, nullptr).ok());
  const std::vector<TilePlan> three = {{kind::kPlain8, kind::VBits(3)}};
  EXPECT_FALSE(CheckPlan(id, three, nullptr).ok());
  EXPECT_FALSE(CheckPlan(id, {}, nullptr).ok());
}

}  // namespace
}  // namespace dyna
