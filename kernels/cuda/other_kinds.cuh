// Tiles that are copied rather than coded: raw, fp8, the mean of V, none. Written for clarity; they
// move few bytes a value or none.
#pragma once

#include "kernels/codec_math.h"
#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/rows.cuh"

namespace dyna::cuda {

// Shared memory of a tile that is staged: f32 [64][d].
constexpr int StagedBytes(int d) { return 256 * d; }

__device__ inline void CopyRow(const std::byte* from, std::byte* to, int bytes, int unit) {
  if (unit * 16 < bytes)
    reinterpret_cast<uint4*>(to)[unit] = __ldcs(reinterpret_cast<const uint4*>(from) + unit);
}

__device__ inline void EncodeRaw(const TileJob& job, int d) {
  const int bytes = d * DTypeBytes(job.dtype), units = bytes / 16;
  for (int i = threadIdx.x; i < kBlockTokens * units; i += kThreads) {
    const int t = i / units, unit = i % units;
    const bool live = job.op == TileOp::kRaw && (job.live >> t & 1) != 0;
    const bool pinned = job.pins != nullptr && (job.pinned >> t & 1) != 0;
    if (!live && !pinned) continue;
    const uint4 v = __ldcs(reinterpret_cast<const uint4*>(RowAt(job.rows, t)) + unit);
    if (live) reinterpret_cast<uint4*>(job.tile.at + RankBit(job.live, t) * bytes)[unit] = v;
    if (pinned) reinterpret_cast<uint4*>(PinAt(job, t))[unit] = v;
  }
  if (job.op != TileOp::kRaw) return;
  for (int i = __popcll(job.live) * units + threadIdx.x; i < kBlockTokens * units; i += kThreads)
    reinterpret_cast<uint4*>(job.tile.at)[i] = make_uint4(0, 0, 0, 0);
}

// A tile, or pins, as they are. Multiples of 16 bytes.
__device__ inline void CopyTile(const TileJob& job, int8_t* v_exp) {
  for (uint32_t i = threadIdx.x; i < job.copy_bytes / 16; i += kThreads)
    reinterpret_cast<uint4*>(job.tile.at)[i] = reinterpret_cast<const uint4*>(job.from.at)[i];
  if (threadIdx.x == 0 && job.from.v_exp != nullptr) *v_exp = *job.from.v_exp;
}

// Rows of a wider raw tile that stay.
__device__ inline void NarrowRaw(const TileJob& job, int d) {
  const int bytes = d * DTypeBytes(job.stored), units = bytes / 16, rows = __popcll(job.live);
  for (int i = threadIdx.x; i < kBlockTokens * units; i += kThreads) {
    const int r = i / units, unit = i % units;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (r < rows)
      v = reinterpret_cast<const uint4*>(job.from.at + TokenOfRow(job.narrow, r) * bytes)[unit];
    reinterpret_cast<uint4*>(job.tile.at)[i] = v;
  }
}

// Rows (packed) to shared memory, checked, pins kept.
__device__ inline void StageRows(const TileJob& job, int d, float* staged, Found* found) {
  const int quads = d / 4, rows = __popcll(job.live);
  for (int i = threadIdx.x; i < kBlockTokens * quads; i += kThreads) {
    const int r = i / quads, c = i % quads * 4;
    float x[4] = {0, 0, 0, 0};
    if (r < rows) {
      const int t = TokenOfRow(job.live, r);
      Load4(RowAt(job.rows, t), job.dtype, c, x);
      if (!Finite4(x)) FoundBadToken(found, t);
      if (job.pins != nullptr && (job.pinned >> t & 1) != 0) Store4(PinAt(job, t), job.dtype, c, x);
    }
    *reinterpret_cast<float4*>(staged + r * d + c) = make_float4(x[0], x[1], x[2], x[3]);
  }
  CheckDropped(job, d, found);
  __syncthreads();
}

// Mean of the rows that count for each channel, and sums for the measures: of squared distance
// from it, and of squares.
struct Spread {
  float around = 0, square = 0;
};
template <typename F>
__device__ inline Spread MeansOf(const TileJob& job, int d, const float* staged, const F& take) {
  Spread s;
  for (int c = threadIdx.x; c < d; c += kThreads) {
    const float mean = MeanOfRows(job.counted, [&](int r) { return staged[r * d + c]; });
    for (int r = 0; r < kBlockTokens; ++r) {
      if ((job.counted >> r & 1) == 0) continue;
      const float v = staged[r * d + c];
      s.around += (v - mean) * (v - mean);
      s.square += v * v;
    }
    take(c, mean);
  }
  return s;
}

__device__ inline void AddFound(Found* found, float energy, float error) {
  atomicAdd(&found->energy, energy);
  atomicAdd(&found->error, error);
}

__device__ inline void EncodeMean(const TileJob& job, int d, float* staged, Found* found) {
  StageRows(job, d, staged, found);
  const Spread s = MeansOf(job, d, staged, [&](int c, float mean) {
    const uint16_t m = codec::MeanOffset(mean);
    if (!codec::IsFiniteBits(codec::F16ToF32(m))) atomicOr(&found->flags, kBadScale);
    reinterpret_cast<uint16_t*>(job.tile.at)[c] = m;
  });
  AddFound(found, s.square, s.around);
}

__device__ inline void EncodeFp8(const TileJob& job, int d, float* staged, Found* found) {
  __shared__ uint32_t top_bits;
  if (threadIdx.x == 0) top_bits = 0;
  StageRows(job, d, staged, found);
  const Spread s = MeansOf(job, d, staged, [](int, float) {});
  float top = 0;
  for (int i = threadIdx.x; i < kBlockTokens * d; i += kThreads)
    if ((job.counted >> (i / d) & 1) != 0) top = fmaxf(top, fabsf(staged[i]));
  atomicMax(&top_bits, __float_as_uint(top));  // not negative: ordered as integers
  __syncthreads();
  const float scale = codec::Fp8Scale(__uint_as_float(top_bits));
  if (threadIdx.x == 0)
    *reinterpret_cast<uint4*>(job.tile.at) = make_uint4(__float_as_uint(scale), 0, 0, 0);
  float error = 0;
  for (int i = threadIdx.x; i < 16 * d; i += kThreads) {
    uint32_t word = 0;
    const float4 v = reinterpret_cast<const float4*>(staged)[i];
    const float x[4] = {v.x, v.y, v.z, v.w};
    if ((job.counted >> (4 * i / d) & 1) != 0) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint8_t code = codec::F32ToE4m3(x[k] / scale);
        word |= static_cast<uint32_t>(code) << (8 * k);
        const float e = x[k] - codec::E4m3ToF32(code) * scale;
        error += e * e;
      }
    }
    reinterpret_cast<uint32_t*>(job.tile.at + 16)[i] = word;
  }
  AddFound(found, job.is_v != 0 ? s.square : s.around, error);
}

// ---- decode

// Element c of row r of a raw, fp8 or mean tile.
__device__ inline float StoredElement(const TileJob& job, int d, int r, int c) {
  const std::byte* at = job.tile.at;
  const int i = r * d + c;
  if (job.op == TileOp::kMean) return codec::F16ToF32(reinterpret_cast<const uint16_t*>(at)[c]);
  if (job.op == TileOp::kFp8)
    return *reinterpret_cast<const float*>(at) * codec::E4m3ToF32(static_cast<uint8_t>(at[16 + i]));
  if (job.stored == DType::kF32) return reinterpret_cast<const float*>(at)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(at)[i];
  return job.stored == DType::kF16 ? codec::F16ToF32(bits) : codec::Bf16ToF32(bits);
}

// Raw rows of one type to the same type, with every token there: as bytes.
__device__ inline void DecodeBytes(const TileJob& job, int d) {
  const int bytes = d * DTypeBytes(job.stored), units = bytes / 16;
  for (int i = threadIdx.x; i < kBlockTokens * units; i += kThreads) {
    const int t = i / units, unit = i % units;
    if (job.pins != nullptr && (job.pinned >> t & 1) != 0) continue;
    __stcs(reinterpret_cast<uint4*>(RowAt(job.rows, t)) + unit,
           reinterpret_cast<const uint4*>(job.tile.at)[i]);
  }
}

// `mean`: shared [d].
__device__ inline void DecodeOther(const TileJob& job, int d, float* mean) {
  if (job.op == TileOp::kRaw && job.stored == job.dtype && job.live == ~uint64_t{0})
    return DecodeBytes(job, d);
  if (job.op == TileOp::kNone && DTypeBytes(job.dtype) == 1) {
    for (int i = threadIdx.x; i < kBlockTokens * d / 16; i += kThreads)
      if (job.pins == nullptr || (job.pinned >> (16 * i / d) & 1) == 0)
        reinterpret_cast<uint4*>(RowAt(job.rows, 16 * i / d))[i % (d / 16)] =
            make_uint4(0, 0, 0, 0);
    return;
  }
  const bool dropped =
      job.live != ~uint64_t{0} && job.op != TileOp::kNone && job.op != TileOp::kMean;
  if (dropped) {
    for (int c = threadIdx.x; c < d; c += kThreads)
      mean[c] = MeanOfRows(job.counted, [&](int r) { return StoredElement(job, d, r, c); });
    __syncthreads();
  }
  const int quads = d / 4;
  for (int i = threadIdx.x; i < kBlockTokens * quads; i += kThreads) {
    const int t = i / quads, c = i % quads * 4;
    if (job.pins != nullptr && (job.pinned >> t & 1) != 0) continue;
    const int r = job.op == TileOp::kMean ? 0 : RowOfToken(job.live, t);
    float x[4] = {0, 0, 0, 0};
    if (job.op != TileOp::kNone) {
#pragma unroll
      for (int k = 0; k < 4; ++k) x[k] = r < 0 ? mean[c + k] : StoredElement(job, d, r, c + k);
    }
    Store4(RowAt(job.rows, t), job.dtype, c, x);
  }
}

}  // namespace dyna::cuda
