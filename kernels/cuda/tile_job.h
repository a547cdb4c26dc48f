// What one thread block does: plain data that the host writes and a kernel reads. One job is one
// tile: K or V of one kv head of one block.
//
// Pointers are of device memory unless a name says host. Sizes in bytes, strides in bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "schemas/types.h"

namespace dyna::cuda {

inline constexpr int kThreads = 128;  // of a tile's thread block: 4 warps

// Two floats beside each other, as the device loads them.
struct alignas(8) Turn {
  float cos, sin;
};

// One run of channels in a K tile; offsets from the tile. 8 bytes.
struct RunPlace {
  uint16_t width;     // 0, 2, 4, 8
  uint16_t scale_at;  // of its first channel's scale
  uint32_t code_at;   // of its first plane
};

// One kv head of a basis on the device. a and b are in the order in which a warp feeds its matrix
// instructions (fragment.h): [d / 16][d / 16][32 lanes] of 4 registers.
struct BasisCell {
  const uint32_t* a = nullptr;
  const uint32_t* b = nullptr;
  const float* mu = nullptr;  // [d]
};

// The 64 rows of a tile in full precision: strided, or through a table of pages. Token t is row
// `first + t` of the page pages[(first + t) >> shift], or of `base` itself without a table.
struct Rows {
  std::byte* base = nullptr;
  int64_t token_stride = 0;
  const int32_t* pages = nullptr;
  int64_t page_stride = 0;
  uint32_t first = 0;
  uint32_t shift = 0;
};

enum class TileOp : uint8_t {
  kCodedK,  // plain8, plain4, levels, and arbitrary widths for the quantiser alone
  kCodedV,  // 1, 2, 4 or 8 bits
  kMean,    // V at 0 bits
  kRaw,
  kFp8,
  kNone,
  kCopy,  // `copy_bytes` of `from` as they are
};

// What stands between rows and the coded domain.
enum class Change : uint8_t {
  kIdentity,  // plain K kinds, and y or z given directly
  kBasis,     // K of a level
  kHadamard,  // V
};

// The coded side of a tile.
struct CodedTile {
  std::byte* at = nullptr;         // of the tile; 16-byte aligned
  const RunPlace* runs = nullptr;  // [d / run], of coded K
  const int8_t* v_exp = nullptr;   // in the directory of the segment, of coded V: read
  uint8_t run = 16;                // 8 or 16
  uint8_t bits = 0;                // of coded V
  uint32_t bytes = 0;              // of the tile
};

struct TileJob {
  Rows rows;                       // the source of an encode, the target of a decode
  CodedTile tile;                  // written by an encode, read by a decode
  CodedTile from;                  // of a transcode: read instead of `rows` (at != null)
  uint64_t live = 0;               // logical tokens; row r is the r-th of them
  uint64_t counted = 0;            // rows that are live and not pinned
  uint64_t pinned = 0;             // logical tokens
  uint64_t narrow = ~uint64_t{0};  // of a transcode: which rows of `from` stay
  std::byte* pins = nullptr;       // row of the first pinned token; null: nothing to keep
  int64_t pin_stride = 0;          // to the next pinned token's
  const BasisCell* cell = nullptr;
  const Turn* table = nullptr;  // [64][pairs] of positions 0..63; null: no rope
  const Turn* base = nullptr;   // [pairs] of the block's first position
  uint16_t pairs = 0;
  RopeKind rope = RopeKind::kNone;
  TileOp op = TileOp::kNone;
  Change change = Change::kIdentity;
  DType dtype = DType::kBf16;   // of `rows`
  DType stored = DType::kBf16;  // of raw tiles and pins
  uint8_t is_v = 0;
  uint8_t values = 0;     // rows are y or z: what does not count is not looked at
  uint8_t measure_x = 0;  // K of a level: also the energy of x (TileMeasure)
  uint32_t result = 0;    // index of the TileResult
  uint32_t copy_bytes = 0;
};

// What a block found out. Zeroed before the launch.
enum : uint32_t {
  kBadValue = 1,  // a source element is not finite, or does not fit f16 after the transform
  kBadScale = 2,  // a scale or offset does not fit f16, or the tile decodes to infinity
  kAboveTop = 4,  // a scale is above LOG8's top
};
struct TileResult {
  uint32_t flags = 0;
  uint32_t bad_token = 0;  // 64 - the least logical token with kBadValue
  float energy = 0;        // as ErrorSums of the CPU: of y for K, of z for V
  float error = 0;
  float x_energy = 0;  // of x, where measure_x asked for it
  int32_t v_exp = 0;   // of coded V: the directory gets it at the end
};
static_assert(sizeof(TileResult) == 24, "copied to the host whole: no byte that nobody writes");

// What becomes of a segment when its tiles are written. Its header and directory are made by the
// host; the numbers that only the tiles know are put in here.
struct SegmentJob {
  std::byte* out = nullptr;
  const std::byte* head = nullptr;  // header and directory
  uint32_t head_bytes = 0;
  uint32_t end = 0, bytes = 0;  // of the last tile, and with its padding
  uint32_t first_result = 0;    // K and V of each head
  uint32_t kv_heads = 0;
  float nmse_before = 0;     // of a transcode
  uint32_t is_estimate = 0;  // 0: never, 1: always, 2: where this step lost something
};

}  // namespace dyna::cuda
