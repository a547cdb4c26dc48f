#include "kernels/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace dyna {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

using Table = std::array<std::array<uint32_t, 256>, 8>;
constexpr Table MakeSlices() {
  Table table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int k = 0; k < 8; ++k) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    table[0][i] = crc;
  }
  for (uint32_t i = 0; i < 256; ++i)
    for (size_t s = 1; s < 8; ++s)
      table[s][i] = (table[s - 1][i] >> 8) ^ table[0][table[s - 1][i] & 0xff];
  return table;
}
constexpr Table kSlices = MakeSlices();

uint32_t ByTable(const std::byte* p, size_t n, uint32_t crc) {
  for (; n >= 8; n -= 8, p += 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    word ^= crc;
    crc = 0;
    for (size_t s = 0; s < 8; ++s) crc ^= kSlices[7 - s][word >> (8 * s) & 0xff];
  }
  for (; n > 0; --n, ++p) crc = (crc >> 8) ^ kSlices[0][(crc ^ static_cast<uint8_t>(*p)) & 0xff];
  return crc;
}

#if defined(__x86_64__)

// Three streams hide the instruction's latency; their checksums are joined by shifting the earlier
// ones over kStream zero bytes, a linear map kept as four byte tables.
constexpr size_t kStream = 1360;  // bytes, a multiple of 8: three are about a page
using ShiftTable = std::array<std::array<uint32_t, 256>, 4>;
constexpr uint32_t ZeroByte(uint32_t crc) { return (crc >> 8) ^ kSlices[0][crc & 0xff]; }
ShiftTable MakeShift() {
  ShiftTable table{};
  for (uint32_t byte = 0; byte < 4; ++byte) {
    for (uint32_t bit = 0; bit < 8; ++bit) {
      uint32_t crc = 1u << (8 * byte + bit);
      for (size_t i = 0; i < kStream; ++i) crc = ZeroByte(crc);
      table[byte][size_t{1} << bit] = crc;
    }
    for (uint32_t i = 1; i < 256; ++i)
      table[byte][i] = table[byte][i & (i - 1)] ^ table[byte][i & (0u - i)];
  }
  return table;
}
uint32_t Shift(uint32_t crc) {
  static const ShiftTable table = MakeShift();
  return table[0][crc & 0xff] ^ table[1][crc >> 8 & 0xff] ^ table[2][crc >> 16 & 0xff] ^
         table[3][crc >> 24];
}

template <bool kCopy>
__attribute__((target("sse4.2"))) inline uint64_t Step(uint64_t crc, const std::byte* from,
                                                       std::byte* to, size_t at) {
  uint64_t word;
  std::memcpy(&word, from + at, 8);
  if constexpr (kCopy) std::memcpy(to + at, &word, 8);  // without a copy `to` is null
  return _mm_crc32_u64(crc, word);
}

template <bool kCopy>
__attribute__((target("sse4.2"))) uint32_t ByInstruction(const std::byte* p, std::byte* to,
                                                         size_t n, uint32_t crc) {
  size_t at = 0;
  while (n - at >= 3 * kStream) {
    uint64_t a = crc, b = 0, c = 0;
    for (size_t end = at + kStream; at < end; at += 8) {
      a = Step<kCopy>(a, p, to, at);
      b = Step<kCopy>(b, p, to, at + kStream);
      c = Step<kCopy>(c, p, to, at + 2 * kStream);
    }
    at += 2 * kStream;
    crc = Shift(Shift(static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b)) ^
          static_cast<uint32_t>(c);
  }
  uint64_t tail = crc;
  for (; n - at >= 8; at += 8) tail = Step<kCopy>(tail, p, to, at);
  crc = static_cast<uint32_t>(tail);
  for (; at < n; ++at) {
    const std::byte byte = p[at];
    if constexpr (kCopy) to[at] = byte;
    crc = _mm_crc32_u8(crc, static_cast<uint8_t>(byte));
  }
  return crc;
}

bool HasInstruction() {
  static const bool has = __builtin_cpu_supports("sse4.2") != 0;
  return has;
}

#endif

}  // namespace

uint32_t internal::Crc32cTable(std::span<const std::byte> bytes, uint32_t crc) {
  return ~ByTable(bytes.data(), bytes.size(), ~crc);
}

uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t crc) {
#if defined(__x86_64__)
  if (HasInstruction()) return ~ByInstruction<false>(bytes.data(), nullptr, bytes.size(), ~crc);
#endif
  return internal::Crc32cTable(bytes, crc);
}

uint32_t CopyCrc32c(std::byte* to, std::span<const std::byte> from, uint32_t crc) {
#if defined(__x86_64__)
  if (HasInstruction()) return ~ByInstruction<true>(from.data(), to, from.size(), ~crc);
#endif
  if (!from.empty()) std::memcpy(to, from.data(), from.size());
  return internal::Crc32cTable({to, from.size()}, crc);
}

}  // namespace dyna
