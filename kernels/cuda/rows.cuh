// Rows of K or V in full precision: where token t is, and four channels of it at a time.
//
// A source element is loaded once (it may be an engine's memory that changes); later passes run on
// what was loaded. Rows and strides are multiples of 16 bytes: the host checked.
#pragma once

#include "kernels/codec_math.h"
#include "kernels/cuda/tile_job.h"
#include "kernels/cuda/warp.cuh"

namespace dyna::cuda {

__device__ inline std::byte* RowAt(const Rows& rows, int t) {
  if (rows.pages == nullptr) return rows.base + t * rows.token_stride;
  const uint32_t at = rows.first + static_cast<uint32_t>(t);
  const int64_t page = __ldg(rows.pages + (at >> rows.shift));
  return rows.base + page * rows.page_stride +
         static_cast<int64_t>(at & ((1u << rows.shift) - 1)) * rows.token_stride;
}

__device__ inline std::byte* PinAt(const TileJob& job, int t) {
  return job.pins + RankBit(job.pinned, t) * job.pin_stride;
}

// Logical token of row r; 64 where the tile has no such row.
__device__ inline int TokenOfRow(uint64_t live, int r) {
  return live == ~uint64_t{0} ? r : SelectBit(live, r);
}

// Four elements of a 16-bit type as floats.
__device__ inline void Widen(uint2 raw, DType dtype, float (&x)[4]) {
  if (dtype == DType::kBf16) {
    x[0] = LowBf16(raw.x), x[1] = HighBf16(raw.x), x[2] = LowBf16(raw.y), x[3] = HighBf16(raw.y);
  } else {
    x[0] = LowF16(raw.x), x[1] = HighF16(raw.x), x[2] = LowF16(raw.y), x[3] = HighF16(raw.y);
  }
}

// Channels c .. c + 3 (c % 4 == 0) of a row of f32, f16 or bf16.
__device__ inline void Load4(const std::byte* row, DType dtype, int c, float (&x)[4]) {
  if (dtype == DType::kF32) {
    const float4 v = __ldcs(reinterpret_cast<const float4*>(row + 4 * c));
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else {
    Widen(__ldcs(reinterpret_cast<const uint2*>(row + 2 * c)), dtype, x);
  }
}
__device__ inline void Store4(std::byte* row, DType dtype, int c, const float (&x)[4]) {
  if (dtype == DType::kF32) {
    __stcs(reinterpret_cast<float4*>(row + 4 * c), make_float4(x[0], x[1], x[2], x[3]));
  } else if (dtype == DType::kBf16) {
    __stcs(reinterpret_cast<uint2*>(row + 2 * c),
           make_uint2(PackBf16(x[0], x[1]), PackBf16(x[2], x[3])));
  } else {
    __stcs(reinterpret_cast<uint2*>(row + 2 * c),
           make_uint2(PackF16(x[0], x[1]), PackF16(x[2], x[3])));
  }
}

__device__ inline bool Finite4(const float (&x)[4]) {
  return codec::IsFiniteBits(x[0]) && codec::IsFiniteBits(x[1]) && codec::IsFiniteBits(x[2]) &&
         codec::IsFiniteBits(x[3]);
}

// A block's findings, in shared memory until the end of the tile.
struct Found {
  uint32_t flags, bad_token;
  float energy, error, x_energy;
};
__device__ inline void FoundBadToken(Found* found, int t) {
  atomicOr(&found->flags, kBadValue);
  atomicMax(&found->bad_token, static_cast<uint32_t>(64 - t));
}

// Tokens that were dropped, and that no row holds: a value that is not finite is refused all the
// same, and a pin of theirs is kept. All threads of the block.
__device__ inline void CheckDropped(const TileJob& job, int d, Found* found) {
  const int quads = d / 4;
  for (int i = threadIdx.x; i < kBlockTokens * quads; i += kThreads) {
    const int t = i / quads, c = i % quads * 4;
    if ((job.live >> t & 1) != 0) continue;
    float x[4];
    Load4(RowAt(job.rows, t), job.dtype, c, x);
    if (!Finite4(x)) FoundBadToken(found, t);
    if (job.pins != nullptr && (job.pinned >> t & 1) != 0) Store4(PinAt(job, t), job.dtype, c, x);
  }
}

// The pinned rows as they were, over what a decode wrote. All threads of the block; `skip` says
// that the tile's own rows were not written for pinned tokens, so that no barrier is needed.
__device__ inline void RestorePins(const TileJob& job, int d) {
  if (job.pins == nullptr) return;
  if (DTypeBytes(job.stored) == 1) {
    for (int t = 0; t < kBlockTokens; ++t)
      if ((job.pinned >> t & 1) != 0)
        for (int c = threadIdx.x; c < d; c += kThreads) RowAt(job.rows, t)[c] = PinAt(job, t)[c];
    return;
  }
  const int quads = d / 4;
  for (int i = threadIdx.x; i < kBlockTokens * quads; i += kThreads) {
    const int t = i / quads, c = i % quads * 4;
    if ((job.pinned >> t & 1) == 0) continue;
    float x[4];
    Load4(PinAt(job, t), job.stored, c, x);
    Store4(RowAt(job.rows, t), job.dtype, c, x);
  }
}

}  // namespace dyna::cuda
