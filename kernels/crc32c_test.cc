#include "kernels/crc32c.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace dyna {
namespace {

std::span<const std::byte> Bytes(const char* text) {
  return {reinterpret_cast<const std::byte*>(text), std::strlen(text)};
}

TEST(Crc32c, KnownValues) {  // RFC 3720, B.4
  EXPECT_EQ(Crc32c(Bytes("123456789")), 0xe3069283u);
  const std::vector<std::byte> zeros(32), ones(32, std::byte{0xff});
  EXPECT_EQ(Crc32c(zeros), 0x8a9136aau);
  EXPECT_EQ(Crc32c(ones), 0x62a8ab43u);
  EXPECT_EQ(Crc32c({}), 0u);
}

TEST(Crc32c, EveryPathAgreesAndParts) {
  std::mt19937 random(3);
  std::vector<std::byte> data(20000), copy(data.size());
  for (auto& b : data) b = static_cast<std::byte>(random());
  for (const size_t n : {0u, 1u, 7u, 8u, 63u, 1360u, 4079u, 4080u, 4081u, 8161u, 20000u}) {
    const std::span<const std::byte> all(data.data(), n);
    const uint32_t crc = Crc32c(all);
    EXPECT_EQ(internal::Crc32cTable(all, 0), crc) << n;
    EXPECT_EQ(Crc32c(all.subspan(n / 3), Crc32c(all.first(n / 3))), crc) << n;
    std::fill(copy.begin(), copy.end(), std::byte{0});
    EXPECT_EQ(CopyCrc32c(copy.data(), all), crc) << n;
    EXPECT_EQ(std::memcmp(copy.data(), data.data(), n), 0);
  }
}

TEST(Crc32c, SeesEveryFlippedBit) {
  std::vector<std::byte> data(300, std::byte{0x5a});
  const uint32_t crc = Crc32c(data);
  for (size_t bit = 0; bit < data.size() * 8; bit += 7) {
    data[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_NE(Crc32c(data), crc);
    data[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

}  // namespace
}  // namespace dyna
