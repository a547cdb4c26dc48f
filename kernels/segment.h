// Segments: one block's one layer for one writer's heads (formats 6): what is stored, spilled,
// mapped and sent. ParseSegment is the only reader of these bytes, SegmentWriter the only writer.
//
// Thread rule: free functions and views of caller's memory; no state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/basis.h"
#include "schemas/status.h"
#include "schemas/types.h"

namespace dyna {

inline constexpr int kSegmentHeaderBytes = 128;
// 2: V at 1 and 2 bits is trellis-coded.
inline constexpr uint16_t kSegmentVersion = 2;
inline constexpr uint16_t kSegmentCrcValid = 1 << 0;
inline constexpr uint16_t kSegmentErrorIsEstimate = 1 << 1;

// What a segment is of. `basis` is the name in its header: 0 unless a tile has a level.
struct SegmentId {
  Fingerprint fingerprint = 0;
  BasisName basis = 0;
  BlockHash block;
  uint32_t block_index = 0;
  uint16_t layer = 0, head0 = 0, kv_heads = 0, head_dim = 0;
  DType dtype = DType::kBf16;
  bool operator==(const SegmentId&) const = default;
};

// What the allocator decided for one kv head. A token that is not live is dropped: it keeps no
// codes, and decodes to the mean of the live ones.
struct TilePlan {
  uint8_t k_kind = kind::kPlain8;
  uint8_t v_kind = kind::VBits(8);
  uint64_t live = ~uint64_t{0};
  bool operator==(const TilePlan&) const = default;
};

// ---- sizes; each a multiple of 16; nullopt for a kind that does not exist
std::optional<size_t> KTileBytes(uint8_t kind, int head_dim, DType dtype,
                                 std::span<const uint8_t> widths, int run);  // widths: of a level
std::optional<size_t> VTileBytes(uint8_t kind, int head_dim, DType dtype);
// The same for a head of `basis` (null: only kinds without a level exist).
std::optional<size_t> KTileBytes(uint8_t kind, int head_dim, DType dtype, const Basis* basis,
                                 int head);
// Of the whole segment, a multiple of kArenaUnit; 0 for a plan that is not valid (CheckPlan says
// why). Kinds whose bits are equal cost the same whatever the tile holds.
size_t EncodedBytes(const SegmentId& id, std::span<const TilePlan> plan, uint64_t pins,
                    const Basis* basis);
// Kinds exist, levels are of `basis` and of heads it has seen; fp8 dtypes are raw, every token.
Status CheckPlan(const SegmentId& id, std::span<const TilePlan> plan, const Basis* basis);

// K, V of one head: raw bytes of a token-major tile in the context's dtype.
constexpr size_t RawTileBytes(int head_dim, DType dtype) {
  return size_t{kBlockTokens} * static_cast<size_t>(head_dim * DTypeBytes(dtype));
}
// Of K and V of all heads: what ratios divide (formats 6).
constexpr size_t RawSegmentBytes(const SegmentId& id) {
  return 2 * size_t{id.kv_heads} * RawTileBytes(id.head_dim, id.dtype);
}

// ---- reading
struct TileView {
  uint8_t k_kind = kind::kNone, v_kind = kind::kNone;
  int8_t v_exp = 0;
  uint64_t live = 0;  // logical tokens; row r of the tile is the r-th live one
  std::span<const std::byte> k, v;
};

class SegmentView {
 public:
  const SegmentId& id() const { return id_; }
  std::span<const std::byte> bytes() const { return bytes_; }  // exactly the encoded bytes
  uint64_t pins() const { return pins_; }
  uint16_t flags() const { return flags_; }
  // Mean over the tiles of squared error / energy (in which metric: TileMeasure, backend.h).
  float nmse() const { return nmse_; }
  bool error_is_estimate() const { return (flags_ & kSegmentErrorIsEstimate) != 0; }
  // `index` counts from 0 = head0.
  TileView tile(int index) const;
  // The raw row of the `rank`-th pinned token, in the context's dtype, 16-byte aligned.
  const std::byte* pin_row(int rank, int index, bool v) const;

 private:
  friend Result<SegmentView> ParseSegment(std::span<const std::byte>, const Basis*);
  SegmentId id_;
  std::span<const std::byte> bytes_;
  const Basis* basis_ = nullptr;
  uint64_t pins_ = 0;
  uint16_t flags_ = 0;
  float nmse_ = 0;
};

// The header alone: enough to know which basis ParseSegment needs, and how long the segment is.
struct SegmentHeader {
  SegmentId id;
  uint32_t bytes = 0;
  uint64_t pins = 0;
  uint16_t flags = 0;
  float nmse = 0;
};
Result<SegmentHeader> ParseSegmentHeader(std::span<const std::byte> bytes);

// The door. Verifies magic, version, lengths, enums, reserved zeros, every kind, offset, size and
// row count, and padding. `basis` is the object the header names (its name and shape are compared);
// null where the header names none: a level tile is then an error, never a guess. `bytes` may be
// longer than the segment (an arena extent). Does not read tiles: see VerifySegmentChecksum.
Result<SegmentView> ParseSegment(std::span<const std::byte> bytes, const Basis* basis);

// ---- checksum (REQUIRES a parsed segment of exactly its bytes): written when a segment leaves
// its arena, checked when one enters. One without a checksum does not verify.
void SealSegment(std::span<std::byte> segment);
Status VerifySegmentChecksum(std::span<const std::byte> segment);

// ---- writing: used by backends, which fill pins() and the tiles in place.
class SegmentWriter {
 public:
  // REQUIRES CheckPlan. Names the basis only if a tile has a level. Zeroes nothing but header,
  // directory and padding. TOO_LARGE when `out` is shorter than EncodedBytes.
  static Result<SegmentWriter> Create(std::span<std::byte> out, const SegmentId& id,
                                      std::span<const TilePlan> plan, uint64_t pins,
                                      const Basis* basis);
  std::span<std::byte> k(int index) const;
  std::span<std::byte> v(int index) const;
  std::byte* pin_row(int rank, int index, bool v) const;
  void set_v_exp(int index, int8_t v_exp);
  void Finish(float nmse, uint16_t flags);  // flags without kSegmentCrcValid
  uint32_t bytes() const { return bytes_; }

 private:
  struct Tile {
    std::byte* at;
    size_t k, v;
  };
  SegmentWriter() = default;
  std::byte* out_ = nullptr;
  SegmentId id_;
  uint32_t bytes_ = 0;
  std::vector<Tile> tiles_;
};

}  // namespace dyna
