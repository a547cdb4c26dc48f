#include "client/transport/frame.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/crc32c.h"
#include "tests/support/seed.h"

namespace dyna {
namespace {

FrameHeader Sample() {
  FrameHeader header;
  header.type = 12;
  header.flags = kFlagChecksum | (3 << kFdCountShift);
  header.request_id = 0x0123456789ABCDEF;
  for (size_t i = 0; i < header.token.size(); ++i) header.token[i] = static_cast<uint8_t>(i + 1);
  header.control_len = 1000;
  header.payload_len = uint64_t{1} << 29;
  header.deadline_ms = 250;
  header.payload_crc32c = 0xDEADBEEF;
  return header;
}

void Reseal(std::array<std::byte, kFrameHeaderBytes>& bytes) {
  const uint32_t crc = Crc32c(std::span(bytes).first(60));
  std::memcpy(bytes.data() + 60, &crc, 4);
}

TEST(FrameTest, RoundTrip) {
  const auto bytes = EncodeFrameHeader(Sample());
  const auto parsed = ParseFrameHeader(bytes, {});
  ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
  EXPECT_EQ(*parsed, Sample());
  EXPECT_EQ(parsed->fd_count(), 3u);
}

// The layout is the protocol: these bytes may never change.
TEST(FrameTest, LayoutIsFixed) {
  const auto bytes = EncodeFrameHeader(Sample());
  const std::vector<uint8_t> expected = {
      'D',  'Y', 'F',  'M',  1,    12,   0x01, 0x30, 0xEF, 0xCD, 0xAB, 0x89, 0x67, 0x45, 0x23,
      0x01, 1,   2,    3,    4,    5,    6,    7,    8,    9,    10,   11,   12,   13,   14,
      15,   16,  0xE8, 0x03, 0,    0,    0,    0,    0,    0x20, 0,    0,    0,    0,    0xFA,
      0,    0,   0,    0xEF, 0xBE, 0xAD, 0xDE, 0,    0,    0,    0,    0,    0,    0,    0};
  ASSERT_EQ(expected.size(), 60u);
  EXPECT_EQ(std::memcmp(bytes.data(), expected.data(), expected.size()), 0);
}

TEST(FrameTest, EveryTruncationIsInvalid) {
  const auto bytes = EncodeFrameHeader(Sample());
  for (size_t n = 0; n < kFrameHeaderBytes; ++n) {
    // A heap copy of exactly n bytes, so that a sanitizer sees a read beyond it.
    const std::vector<std::byte> cut(bytes.begin(), bytes.begin() + static_cast<long>(n));
    EXPECT_EQ(ParseFrameHeader(cut, {}).status().code(), StatusCode::kInvalid) << n;
  }
}

TEST(FrameTest, EveryBitFlipIsRefused) {
  const auto good = EncodeFrameHeader(Sample());
  for (size_t bit = 0; bit < kFrameHeaderBytes * 8; ++bit) {
    auto bad = good;
    bad[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_FALSE(ParseFrameHeader(bad, {}).ok()) << "bit " << bit;
  }
}

TEST(FrameTest, RandomBytesAreRefused) {
  std::mt19937 rng(testing::TestSeed());
  for (int i = 0; i < 20000; ++i) {
    std::array<std::byte, kFrameHeaderBytes> bytes;
    for (auto& b : bytes) b = static_cast<std::byte>(rng());
    if (i % 2) std::memcpy(bytes.data(), "DYFM\x01", 5);  // deep enough to reach the checksum
    EXPECT_FALSE(ParseFrameHeader(bytes, {}).ok());
  }
}

// Well sealed, and still wrong: what a hostile peer can send.
TEST(FrameTest, HostileHeadersAreTyped) {
  const auto code = [](auto mutate) {
    auto bytes = EncodeFrameHeader(FrameHeader{});
    mutate(bytes);
    Reseal(bytes);
    return ParseFrameHeader(bytes, {}).status().code();
  };
  EXPECT_EQ(code([](auto&) {}), StatusCode::kOk);
  EXPECT_EQ(code([](auto& b) { b[0] = std::byte{'X'}; }), StatusCode::kInvalid);
  EXPECT_EQ(code([](auto& b) { b[4] = std::byte{2}; }), StatusCode::kUnsupported);
  EXPECT_EQ(code([](auto& b) { b[59] = std::byte{1}; }), StatusCode::kInvalid);
  EXPECT_EQ(code([](auto& b) { b[48] = std::byte{1}; }), StatusCode::kInvalid);
  for (const uint64_t n : {uint64_t{1} << 31, uint64_t{1} << 32, uint64_t{1} << 63, ~uint64_t{0}}) {
    EXPECT_EQ(code([n](auto& b) { std::memcpy(b.data() + 36, &n, 8); }), StatusCode::kTooLarge);
  }
  for (const uint32_t n : {(1u << 20) + 1, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    EXPECT_EQ(code([n](auto& b) { std::memcpy(b.data() + 32, &n, 4); }), StatusCode::kTooLarge);
  }
}

TEST(FrameTest, PayloadChecksumIgnoresHowItIsCut) {
  std::vector<std::byte> data(1000);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 7);
  const std::span<const std::byte> all(data);
  const std::span<const std::byte> whole[] = {all};
  const std::span<const std::byte> parts[] = {
      all.first(1), {}, all.subspan(1, 500), all.subspan(501)};
  EXPECT_EQ(PayloadCrc32c(whole), PayloadCrc32c(parts));
  EXPECT_EQ(PayloadCrc32c(whole), Crc32c(data));
}

TEST(FrameTest, TokensCompareWhole) {
  SessionToken a{}, b{};
  EXPECT_TRUE(SameToken(a, b));
  b[15] = 1;
  EXPECT_FALSE(SameToken(a, b));
}

}  // namespace
}  // namespace dyna
