// The seam to the hardware: batches of segments in, segments out. Two implementations, cpu/ and
// cuda/; both use the quantiser of codec_math.h and nothing else.
//
// A backend keeps no state between batches and owns no thread: calls are synchronous and may come
// from several codec threads at once. Every job carries its own Status; one bad job never fails
// its batch. A source element is loaded once (design 5): later passes run on the private copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/basis.h"
#include "kernels/rope.h"
#include "kernels/segment.h"
#include "schemas/status.h"
#include "schemas/types.h"

namespace dyna {

// K and V of `kv_heads` heads of one block's one layer, in memory that may belong to a client.
// Strides are in bytes; the head_dim elements of a row are contiguous. Token-major, head-major and
// paged layouts are all strides.
struct KvView {
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  int64_t k_token_stride = 0, k_head_stride = 0;
  int64_t v_token_stride = 0, v_head_stride = 0;
  DType dtype = DType::kBf16;
  bool on_device = false;  // of the backend's device (shared_device.h): the CPU must not touch it
};
struct MutableKvView {
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  int64_t k_token_stride = 0, k_head_stride = 0;
  int64_t v_token_stride = 0, v_head_stride = 0;
  DType dtype = DType::kBf16;
  bool on_device = false;  // of the backend's device (shared_device.h): the CPU must not touch it
};

// What was measured while coding one kv head; sums over live, unpinned tokens. The relative error
// (error / energy) of K is in the metric of its kind: of x for raw, fp8 and plain kinds, of y for
// levels, where an error costs attention the same in every channel (formats 1). There the
// channels that keep a width are measured exactly, and what the others lose is estimated without
// bias from the tile itself (Basis::probes). Raw tiles report zeros. Transcode within a basis
// measures both K numbers in y, against what was stored before.
struct TileMeasure {
  float k_energy = 0;  // variance of x within the tile, summed over tokens and channels
  float k_error = 0;   // k_energy times the relative error of decoded K
  float v_energy = 0;  // sum of v^2 (= z^2)
  float v_error = 0;   // squared error of decoded V
};

struct EncodeJob {
  SegmentId id;                     // what the header says (segment.h)
  KvView source;                    // [kv_heads][64][head_dim] by strides
  const Basis* basis = nullptr;     // REQUIRED for level kinds; outlives the call
  const RopeTable* rope = nullptr;  // REQUIRED with a `pre` basis whose layer has a rope
  uint64_t pins = 0;                // tokens kept raw
  std::span<const TilePlan> plan;   // [kv_heads]
  std::span<std::byte> out;         // >= EncodedBytes(...); 16-byte aligned
  // results
  // INVALID names layer, head and token of a value that cannot be coded. TOO_LARGE: `out` holds
  // fewer than `bytes`; also where a level's scale is above LOG8's top and the tile became plain8
  // (formats 2), which needs more than was planned.
  Status status;
  uint32_t bytes = 0;  // of the segment, a multiple of kArenaUnit
  // Mean over the K and V tiles of error / energy; none: 1. Of K on a level in its basis' metric:
  // as the queries see it that the basis was made from.
  float nmse = 0;
  std::span<TileMeasure> measure;  // [kv_heads], may be empty
};

struct DecodeJob {
  std::span<const std::byte> segment;
  const Basis* basis = nullptr;
  const RopeTable* rope = nullptr;
  uint16_t head_begin = 0, head_end = 0;  // absolute kv heads, within the segment's range
  MutableKvView target;                   // head_begin is at head index 0
  // [heads], may be empty: the live masks, for readers that want them (0 where K and V are none).
  std::span<uint64_t> live;
  Status status;
};

// Fewer bits (design 2, demotion). Within a basis it stays in the coded domain; from plain to a
// level it decodes and encodes once, with `basis`. Pins and the block's identity are kept. Never
// more bits: INVALID. A segment that has a basis keeps it.
struct TranscodeJob {
  std::span<const std::byte> segment;
  const Basis* basis = nullptr;  // the segment's own, or the one its first level will fix
  const RopeTable* rope = nullptr;
  // [kv_heads]; a kind equal to today's copies the tile's bytes; live: a subset of today's.
  std::span<const TilePlan> plan;
  std::span<std::byte> out;  // does not overlap `segment`
  Status status;
  uint32_t bytes = 0;
  float nmse = 0;                  // error so far + error added (an estimate: flags say so)
  std::span<TileMeasure> measure;  // error added by this step alone; 0 where bytes were copied
};

// Window attention over held blocks (policy 1). Blocks must be the chain from the root.
struct ScoreJob {
  struct Block {
    std::span<const std::byte> segment;
    const Basis* basis = nullptr;
    const RopeTable* rope = nullptr;
  };
  std::span<const Block> chain;
  std::span<const float> queries;  // [W][q_heads][head_dim], post-RoPE
  std::span<const float> lse;      // [W][q_heads]; empty: the held blocks are the denominator
  uint32_t first_query_position = 0;
  uint16_t q_heads = 0;  // a multiple of the chain's kv_heads
  uint32_t window = 0;   // of a sliding layer, 0: full
  float scale = 0;       // 1 / sqrt(head_dim) unless the model says otherwise
  // Result: x_i = a'_i * L_visible (policy 1), the mean over the queries that see token i; sinks
  // (the first 4 tokens, whose x is 0) removed, group reduced by max. L_visible counts the visible
  // tokens without sinks: all of them with `lse`, the held ones without.
  std::span<float> relative;  // [kv_heads][chain.size() * 64]
  Status status;
};

// Sums that a basis is made of (policy 2), of one block. Results are added to what is there; jobs
// of a call may share them (all three, or none), and are quicker for it on a device.
struct MomentsJob {
  KvView source;                    // only k is read
  const RopeTable* rope = nullptr;  // null: frame `post`
  uint32_t block_index = 0;
  uint64_t pins = 0;  // tokens that do not count
  uint16_t kv_heads = 0, head_dim = 0;
  std::span<uint32_t> count;  // [kv_heads] unpinned tokens
  std::span<float> sum;       // [kv_heads][d] of x
  // [kv_heads][d (d + 1) / 2], upper triangle of sum (x - tile's mean)(x - tile's mean)'.
  std::span<float> scatter;
  Status status;
};

// The same of one window of queries: second moments, per kv head over its group of query heads.
struct QueryMomentsJob {
  std::span<const float> queries;   // [W][q_heads][head_dim], post-RoPE
  const RopeTable* rope = nullptr;  // null: frame `post`, else RoPE is undone first
  uint32_t first_query_position = 0;
  uint16_t q_heads = 0, kv_heads = 0, head_dim = 0;
  std::span<uint32_t> count;  // [kv_heads] query vectors
  std::span<float> second;    // [kv_heads][d (d + 1) / 2], upper triangle of sum q q'
  Status status;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;         // "cpu"
  virtual std::string_view description() const = 0;  // "cpu (AVX2)"
  // Source or decoded bytes of a call from which on more jobs in it gain nothing; 0: one is enough.
  virtual size_t batch_bytes() const { return 0; }
  // True once and for all when no later call can succeed; then jobs end INTERNAL. Any thread.
  virtual bool lost() const { return false; }
  virtual void Encode(std::span<EncodeJob> jobs) = 0;
  virtual void Decode(std::span<DecodeJob> jobs) = 0;
  virtual void Transcode(std::span<TranscodeJob> jobs) = 0;
  virtual void Score(std::span<ScoreJob> jobs) = 0;
  virtual void Moments(std::span<MomentsJob> jobs) = 0;
  virtual void QueryMoments(std::span<QueryMomentsJob> jobs) = 0;

  // The quantiser alone, for golden and differential tests. y, z: f16 bits [64][d] token-major,
  // logical tokens; row r of the tile is the r-th token of `live`, pins excluded. `packed` receives
  // the K tile (formats 3) or V tile (formats 4; bits 1, 2, 4, 8). INVALID: a value outside f16;
  // TOO_LARGE: a scale above LOG8.
  virtual Status QuantiseK(std::span<const uint16_t> y, int head_dim,
                           std::span<const uint8_t> widths, int run, uint64_t live, uint64_t pins,
                           std::span<std::byte> packed) = 0;
  virtual Status QuantiseV(std::span<const uint16_t> z, int head_dim, int bits, uint64_t live,
                           uint64_t pins, std::span<std::byte> packed, int8_t* v_exp) = 0;
  // The inverse: y', z' as f16 bits [64][d], by row (not unpacked to logical tokens).
  virtual Status DequantiseK(std::span<const std::byte> packed, int head_dim,
                             std::span<const uint8_t> widths, int run, std::span<uint16_t> y) = 0;
  virtual Status DequantiseV(std::span<const std::byte> packed, int head_dim, int bits,
                             int8_t v_exp, std::span<uint16_t> z) = 0;
};

// "auto" picks the best instruction set of this machine; "scalar", "avx2", "avx512" force one
// (UNSUPPORTED where the machine has not got it).
Result<std::unique_ptr<Backend>> MakeCpuBackend(std::string_view isa = "auto");

}  // namespace dyna
