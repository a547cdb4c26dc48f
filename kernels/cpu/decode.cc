// Decode: a segment in, rows of any raw dtype out.
#include <bit>
#include <cstring>
#include <string>

#include "kernels/cpu/jobs.h"

namespace dyna::cpu {
namespace {

struct Target {
  std::byte* at;
  int64_t stride;
};

Target TargetOf(const MutableKvView& view, int index, bool v) {
  return v ? Target{view.v + index * view.v_head_stride, view.v_token_stride}
           : Target{view.k + index * view.k_head_stride, view.k_token_stride};
}

void CopyRows(std::span<const std::byte> rows, int64_t row, const Target& to) {
  if (to.stride == row) {
    std::memcpy(to.at, rows.data(), rows.size());
    return;
  }
  for (int t = 0; t < kBlockTokens; ++t)
    std::memcpy(to.at + t * to.stride, rows.data() + t * row, static_cast<size_t>(row));
}

void DecodeSide(const TileEnv& env, const SegmentView& view, const TileView& tile, int index,
                bool v, const MutableKvView& target, int target_index) {
  const Target to = TargetOf(target, target_index, v);
  const DType dtype = view.id().dtype;
  const uint8_t tile_kind = v ? tile.v_kind : tile.k_kind;
  const int64_t row = env.d * DTypeBytes(target.dtype);
  if (tile_kind == kind::kNone) {
    for (int t = 0; t < kBlockTokens; ++t)
      std::memset(to.at + t * to.stride, 0, static_cast<size_t>(row));
  } else if (tile_kind == kind::kRaw && dtype == target.dtype && tile.live == ~uint64_t{0}) {
    CopyRows(v ? tile.v : tile.k, row, to);
  } else {
    float* x = env.scratch.x;
    if (v) {
      DecodeV(env, tile, dtype, view.pins(), x);
    } else {
      DecodeK(env, tile, dtype, view.pins(), x);
    }
    env.ops.store(x, env.d, to.at, to.stride, target.dtype);
  }
  int rank = 0;
  for (uint64_t left = view.pins(); left != 0; left &= left - 1) {
    ConvertRow(view.pin_row(rank++, index, v), dtype, to.at + std::countr_zero(left) * to.stride,
               target.dtype, env.d);
  }
}

Status Run(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, DecodeJob& job) {
  DYNA_ASSIGN_OR_RETURN(const SegmentView view, ParseSegment(job.segment, job.basis));
  const SegmentId& id = view.id();
  if (job.head_begin < id.head0 || job.head_end > id.head0 + id.kv_heads ||
      job.head_begin >= job.head_end)
    return Invalid("head range: not within the segment's");
  const int heads = job.head_end - job.head_begin;
  if (!job.live.empty() && job.live.size() != static_cast<size_t>(heads))
    return Invalid("live: not of head_end - head_begin entries");
  if (job.target.k == nullptr || job.target.v == nullptr) return Invalid("target: no memory");
  if (job.target.dtype != id.dtype &&
      (DTypeBytes(job.target.dtype) == 1 || DTypeBytes(id.dtype) == 1))
    return Unsupported("target: fp8 is an engine's own format, it is not converted");
  for (int i = 0; i < heads; ++i) {
    const int index = job.head_begin + i - id.head0;
    const TileView tile = view.tile(index);
    TileEnv env{ops, scratch, id.head_dim, id.head0 + index, job.basis, nullptr};
    if (kind::IsLevel(tile.k_kind) && job.basis->info().frame == Frame::kPre)
      env.rope = rope.Get(job.rope, uint64_t{id.block_index} * kBlockTokens);
    DecodeSide(env, view, tile, index, false, job.target, i);
    DecodeSide(env, view, tile, index, true, job.target, i);
    const bool none = tile.k_kind == kind::kNone && tile.v_kind == kind::kNone;
    if (!job.live.empty()) job.live[static_cast<size_t>(i)] = none ? 0 : tile.live;
  }
  return {};
}

}  // namespace

void Decode(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, DecodeJob& job) {
  job.status = Run(ops, scratch, rope, job);
}

}  // namespace dyna::cpu
