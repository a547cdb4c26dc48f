// The vocabulary: constants and enums that the wire, the disk and every layer share (std only).
// Values are persisted: never renumber, only append.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace dyna {

inline constexpr int kBlockTokens = 64;  // tokens of a block
inline constexpr int kMaxHeadDim = 256;  // head_dim is a multiple of 16, 16..256
inline constexpr int kMaxLayers = 1024;
inline constexpr int kMaxKvHeads = 1024;  // of one layer
inline constexpr int kArenaUnit = 256;    // bytes; extents and segments are multiples of it
inline constexpr int kPinnedTokens = 4;   // first tokens of a sequence, kept raw

// Element type of a context's K and V. The fp8 types are engine formats, stored raw only.
enum class DType : uint8_t { kF32 = 1, kF16 = 2, kBf16 = 3, kE4m3 = 4, kE5m2 = 5 };
constexpr int DTypeBytes(DType t) {
  return t == DType::kF32 ? 4 : (t == DType::kF16 || t == DType::kBf16) ? 2 : 1;
}
std::string_view DTypeName(DType t);

enum class LayerKind : uint8_t { kFull = 1, kSliding = 2, kOpaque = 3 };
enum class RopeKind : uint8_t { kNone = 0, kHalf = 1, kInterleaved = 2 };

// What a put asks for, and what a reader may demand as a floor (design 2). Ordered by quality.
enum class QualityClass : uint8_t { kSmall = 1, kBalanced = 2, kHigh = 3, kExact = 4 };
std::string_view QualityName(QualityClass q);

enum class Durability : uint8_t { kVolatile = 0, kPersistent = 1 };
enum class Tier : uint8_t { kNone = 0, kDevice = 1, kHost = 2, kSpill = 3, kBank = 4 };
std::string_view TierName(Tier t);

enum class Frame : uint8_t { kPre = 0, kPost = 1 };  // of a basis (formats 1)
enum class BasisSource : uint8_t { kProfile = 1, kLearned = 2, kKeys = 3 };

// Tile kinds, as in a segment's directory (formats 6). K: 16 + level of the segment's basis.
// V: 16 + bits, bits in {0, 1, 2, 4, 8}; 0 is the mean.
namespace kind {
inline constexpr uint8_t kRaw = 1, kFp8 = 2, kPlain8 = 3, kPlain4 = 4, kNone = 7, kLevel0 = 16;
constexpr uint8_t Level(int level) { return static_cast<uint8_t>(kLevel0 + level); }
constexpr bool IsLevel(uint8_t k) { return k >= kLevel0 && k < kLevel0 + 16; }
constexpr uint8_t VBits(int bits) { return static_cast<uint8_t>(16 + bits); }
}  // namespace kind

// The bytes that name a block's content: SHA-256 made by client/base/block_hash.h.
struct BlockHash {
  std::array<uint8_t, 32> bytes{};
  bool operator==(const BlockHash&) const = default;
  auto operator<=>(const BlockHash&) const = default;
  bool IsZero() const { return *this == BlockHash{}; }
};
struct BlockHashHasher {
  size_t operator()(const BlockHash& h) const {
    size_t v;
    std::memcpy(&v, h.bytes.data(), sizeof v);
    return v;
  }
};

// First 8 bytes of SHA-256 of a basis object; 0 names none.
using BasisName = uint64_t;
// First 8 bytes of SHA-256 of a context's canonical description.
using Fingerprint = uint64_t;

}  // namespace dyna
