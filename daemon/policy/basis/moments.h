// Second moments of one layer's traffic (policy 2): C and mu of K, M of the queries, per kv head.
// Sums are f32 upper triangles. C is the covariance within a tile, so its sum of centred scatters
// does not care how large the mean is; mu is merged from the tiles' means.
//
// Thread rule: a value; the loop owns it and hands copies to codec threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "schemas/context.h"
#include "schemas/status.h"

namespace dyna {

struct CellMoments {
  uint32_t tokens = 0;         // unpinned, seen
  uint32_t queries = 0;        // query vectors of the head's group
  std::vector<double> mean;    // [d] of x
  std::vector<float> scatter;  // upper triangle: sum over tiles of sum (x - tile mean)(..)'
  std::vector<float> qq;       // upper triangle: sum of q q'

  bool empty() const { return tokens == 0 && queries == 0; }
};

// `post` where tiles will be attended to or nobody told how the layer turns (formats 7).
Frame FrameOf(const ContextSpec& spec, int layer);

constexpr size_t TriangleSize(int d) {
  return static_cast<size_t>(d) * (static_cast<size_t>(d) + 1) / 2;
}

class LayerMoments {
 public:
  LayerMoments() = default;
  LayerMoments(int layer, int kv_heads, int head_dim, Frame frame);

  int layer() const { return layer_; }
  int kv_heads() const { return static_cast<int>(cells_.size()); }
  int head_dim() const { return d_; }
  Frame frame() const { return frame_; }
  const CellMoments& cell(int head) const { return cells_[static_cast<size_t>(head)]; }

  // Results of a MomentsJob (backend.h) for heads [head_begin, head_begin + count.size()).
  // INVALID for a value that is not finite or too large to square; nothing is added then.
  Status AddTile(int head_begin, std::span<const uint32_t> count, std::span<const float> sum,
                 std::span<const float> scatter);
  // A window of post-RoPE queries [window][q_heads][d] of q_heads = group x heads; in frame `pre`
  // RoPE is undone first. `rope`: null where the layer has none.
  Status AddQueries(int head_begin, int heads, std::span<const float> queries, int window,
                    int q_heads, uint32_t first_position, const Rope* rope);
  // Results of a QueryMomentsJob (backend.h), which did the same on a codec thread.
  Status AddQuerySums(int head_begin, std::span<const uint32_t> count,
                      std::span<const float> second);
  // Halves all counts and sums (means stay): how a window of tokens is kept.
  void Halve();

  // The least of the heads that have seen tokens (ranks of a parallel worker come one by one).
  uint32_t tokens() const;
  uint32_t queries() const;
  size_t memory_bytes() const;

  // The learner's row of `meta`; Parse is its door (lengths, counts, finite, diagonals >= 0).
  static constexpr uint16_t kVersion = 1;
  std::vector<uint8_t> Serialize() const;
  static Result<LayerMoments> Parse(std::span<const uint8_t> bytes);

 private:
  int layer_ = 0, d_ = 0;
  Frame frame_ = Frame::kPre;
  std::vector<CellMoments> cells_;
};

// Bytes of accumulators of a context with `copies` of them: what a tenant's cap counts.
size_t MomentsBytes(const ContextSpec& spec, int copies);

}  // namespace dyna
