// V of one tile back to rows, by one thread block: 16 rows a warp, z' into matrix operands, rotated
// back 16 channels at a time on the tensor cores and between groups in f32.
#pragma once

#include "kernels/cuda/decode_k.cuh"
#include "kernels/cuda/hadamard.cuh"

namespace dyna::cuda {

// The mean of the rows that count, decoded: rare, so in plain loops.
__device__ inline void MeanOfDroppedV(const TileJob& job, const CodedTile& tile, int d,
                                      const float* gains, float* mean, float* decoded) {
  for (int c = threadIdx.x; c < d; c += kThreads) {
    mean[c] = MeanOfRows(job.counted, [&](int r) {
      const uint2 z = QuadOfV(CodesOfV(tile), d / 16, tile.bits, r, c / 16, c % 16 / 4, gains[r]);
      const uint32_t pair = (c & 2) != 0 ? z.y : z.x;
      return (c & 1) != 0 ? HighF16(pair) : LowF16(pair);
    });
  }
  __syncthreads();
  const int n = codec::HadamardSize(d);
  for (int c = threadIdx.x; c < d; c += kThreads) {
    float sum = 0;
    for (int k = 0; k < n; ++k) {
      const float z = mean[c / n * n + k];
      sum += (__popc(static_cast<unsigned>(c % n & k)) & 1) != 0 ? -z : z;
    }
    decoded[c] = sum / sqrtf(static_cast<float>(n));
  }
  __syncthreads();
}

template <int kGroups>
__device__ inline void DecodeV(const TileJob& job, void* shared, std::byte* staged) {
  constexpr int kD = 16 * kGroups;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  auto* gains = static_cast<float*>(shared);  // [64], by row
  float* mean = gains + 64;
  const int bits = job.tile.bits;
  CodedTile tile = job.tile;
  tile.at = staged;
  StageTile(job.tile.at, job.tile.bytes, staged);
  const int v_exp = *job.tile.v_exp;
  WaitForTile();
  __syncthreads();
  const std::byte* codes = CodesOfV(tile);
  if (threadIdx.x < 64)
    gains[threadIdx.x] = GainOf(tile, v_exp, codec::TokenSlot(static_cast<int>(threadIdx.x)));
  __syncthreads();
  const LaneTokens at = TokensOfLane(job, warp, g);
  const float gain[2] = {gains[at.row[0]], gains[at.row[1]]};
  uint32_t b[2][2];
  HadamardOperandB(g, q, 0, b[0]);
  HadamardOperandB(g, q, 1, b[1]);
  float x[kGroups][8] = {};  // [e][token][2 columns], as the accumulators are
#pragma unroll
  for (int G = 0; G < kGroups; ++G) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint2 z = QuadOfV(codes, kGroups, bits, at.row[i], G, q, gain[i]);
      a[i] = z.x;
      a[2 + i] = z.y;
    }
    float acc[2][4] = {};
    MmaF16(acc[0], a, b[0][0], b[0][1]);
    MmaF16(acc[1], a, b[1][0], b[1][1]);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[G][i] = acc[i / 4][i % 4];
  }
  HadamardGroups<kGroups, 8>(x);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (at.skip[i]) continue;
    std::byte* row = RowAt(job.rows, at.token[i]);
#pragma unroll
    for (int G = 0; G < kGroups; ++G) {
      const float four[4] = {x[G][2 * i], x[G][2 * i + 1], x[G][4 + 2 * i], x[G][5 + 2 * i]};
      Store4(row, job.dtype, 16 * G + 4 * q, four);
    }
  }
  if (job.live != ~uint64_t{0}) {
    MeanOfDroppedV(job, tile, kD, gains, mean, mean + kD);
    StoreDropped(job, kD, mean + kD);
  }
  RestorePins(job, kD);
}

}  // namespace dyna::cuda
