// Where the fields of a segment lie (formats 6): shared by its reader and its writer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "schemas/types.h"

namespace dyna::segment_layout {

inline constexpr char kMagic[4] = {'D', 'Y', 'N', 'S'};
inline constexpr size_t kVersionAt = 4, kHeaderBytesAt = 6, kFingerprintAt = 8, kBasisAt = 16,
                        kBlockAt = 24, kIndexAt = 56, kLayerAt = 60, kHead0At = 62, kKvHeadsAt = 64,
                        kHeadDimAt = 66, kDtypeAt = 68, kReservedAt = 69, kFlagsAt = 70,
                        kPinsAt = 72, kBytesAt = 80, kNmseAt = 84, kReserved2At = 88, kCrcAt = 124;

// One entry of the directory, 16 bytes.
inline constexpr size_t kEntryBytes = 16;
inline constexpr size_t kOffsetAt = 0, kKKindAt = 4, kVKindAt = 5, kVExpAt = 6, kEntryFlagsAt = 7,
                        kLiveAt = 8;
inline constexpr uint8_t kNotAllLive = 1 << 4;

template <typename T>
T Get(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <typename T>
void Put(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

// Row groups of 16 in the low nibble, and whether a token is missing.
uint8_t EntryFlags(uint64_t live);

inline size_t DirectoryEnd(int kv_heads) {
  return 128 + kEntryBytes * static_cast<size_t>(kv_heads);
}
inline size_t PinRowBytes(int head_dim, DType dtype) {
  return static_cast<size_t>(head_dim * DTypeBytes(dtype));
}
// Bytes of all pins: [token][head][K, V][d].
size_t PinBytes(uint64_t pins, int kv_heads, int head_dim, DType dtype);
// Offset of the row of the rank-th pinned token, from the segment.
size_t PinRowAt(int rank, int index, bool v, int kv_heads, int head_dim, DType dtype);

// Engine formats of one byte are opaque to the codec: raw or nothing, and no token dropped.
bool SuitsDtype(DType dtype, uint8_t k_kind, uint8_t v_kind, uint64_t live);

constexpr size_t RoundUp(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace dyna::segment_layout
