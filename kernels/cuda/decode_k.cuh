// K of one tile back to rows, by one thread block: each warp dequantises 16 rows straight into
// matrix operands, x = B y + mu on the tensor cores, turns and stores. Kinds without a basis are
// the same with the identity, which is exact and puts channels in the order of rows.
#pragma once

#include "kernels/cuda/copy_job.cuh"
#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/rope.cuh"
#include "kernels/cuda/rows.cuh"

namespace dyna::cuda {

// Shared memory: scales and offsets [d] of 8 bytes | places of runs | for dropped tokens: mean of
// the rows f32 [d], and what it decodes to f32 [d] | rows for ropes that do not turn in registers,
// f32 [4 warps][16][d] | the tile.
constexpr int DecodeBytes(int d, bool exchange) { return 17 * d + (exchange ? 256 * d : 0); }

// A lane's two tokens.
struct LaneTokens {
  int token[2], row[2];
  bool skip[2];  // pinned or dropped: written by somebody else
};
__device__ inline LaneTokens TokensOfLane(const TileJob& job, int warp, int g) {
  LaneTokens l;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 16 * warp + 8 * i + g, r = RowOfToken(job.live, t);
    l.token[i] = t;
    l.row[i] = max(r, 0);
    l.skip[i] = r < 0 || (job.pins != nullptr && (job.pinned >> t & 1) != 0);
  }
  return l;
}

// Operand B of the identity: plane channels in, output channels of the e-th n-tile out.
__device__ inline void IdentityOut(int g, int q, int e, uint32_t (&b)[2]) {
  const int out = OutChannel(e, g);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    b[i] = (PlaneChannel(q, 2 * i) == out ? 0x3c00u : 0) |
           (PlaneChannel(q, 2 * i + 1) == out ? 0x3c000000u : 0);
}

__device__ inline void StoreGroup(DType dtype, const LaneTokens& at, std::byte* const (&row)[2],
                                  int G, int q, const float (&x)[2][4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (!at.skip[i]) Store4(row[i], dtype, 16 * G + 4 * q, x[i]);
}

// Rows of dropped tokens: `mean` ([d], shared) is what their rows are before the turn.
__device__ inline void StoreDropped(const TileJob& job, int d, const float* mean) {
  const int quads = d / 4;
  for (int i = threadIdx.x; i < kBlockTokens * quads; i += kThreads) {
    const int t = i / quads, c = i % quads * 4;
    if ((job.live >> t & 1) != 0 || (job.pins != nullptr && (job.pinned >> t & 1) != 0)) continue;
    float x[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      x[k] = job.table != nullptr ? RotateThrough(job, t, c + k, false, mean) : mean[c + k];
    Store4(RowAt(job.rows, t), job.dtype, c, x);
  }
}

// Entry (j, c) of B, from the order of the matrix instructions.
__device__ inline float EntryOfB(const BasisCell& cell, int groups, int j, int c) {
  const int jj = j % 16, cc = c % 16;
  const int g = 2 * (jj >> 2) + (jj & 1), e = jj >> 1 & 1, q = (cc & 7) >> 1;
  const int lane = 4 * g + q;
  const uint32_t word =
      __ldg(cell.b + ((j / 16 * groups + c / 16) * 32 + lane) * 4 + 2 * e + (cc >> 3));
  return (cc & 1) != 0 ? HighF16(word) : LowF16(word);
}

// The mean of the rows that count, decoded, in full precision: rare, so in plain loops.
__device__ inline void MeanOfDroppedK(const TileJob& job, const CodedTile& tile, int d,
                                      const float2* scales, float* mean, float* decoded) {
  for (int c = threadIdx.x; c < d; c += kThreads) {
    const float2 s = scales[c];
    mean[c] = MeanOfRows(job.counted, [&](int r) {
      const CodePairs pairs = PairsOf(tile, tile.runs, c / 16, c % 8 / 2, codec::TokenSlot(r));
      const uint32_t y =
          DecodePair((c & 8) != 0 ? pairs.b : pairs.a, make_float4(s.x, s.y, s.x, s.y));
      return (c & 1) != 0 ? HighF16(y) : LowF16(y);
    });
  }
  __syncthreads();
  for (int j = threadIdx.x; j < d; j += kThreads) {
    float x = mean[j];
    if (job.change == Change::kBasis) {
      x = job.cell->mu[j];
      for (int c = 0; c < d; ++c) x += EntryOfB(*job.cell, d / 16, j, c) * mean[c];
    }
    decoded[j] = x;
  }
  __syncthreads();
}

// Output group G of 16 channels through the basis: x[i] of the lane's token i, four neighbouring
// channels.
template <int kGroups>
__device__ inline void ProductOfGroup(const BasisCell& cell, const uint32_t (&y)[kGroups][4], int G,
                                      int lane, float (&x)[2][4]) {
  const float4 mu = __ldg(reinterpret_cast<const float4*>(cell.mu + 16 * G + 4 * (lane % 4)));
  float acc[2][4] = {{mu.x, mu.y, mu.x, mu.y}, {mu.z, mu.w, mu.z, mu.w}};
  // Through the cache: blocks of one cell run beside each other, and a copy in shared memory was
  // slower, as was a warp that keeps its part of B in registers for all rows.
  const auto* b = reinterpret_cast<const uint4*>(cell.b) + G * kGroups * 32 + lane;
#pragma unroll
  for (int k = 0; k < kGroups; ++k) {
    const uint4 part = __ldg(b + k * 32);
    MmaF16(acc[0], y[k], part.x, part.y);
    MmaF16(acc[1], y[k], part.z, part.w);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    x[i][0] = acc[0][2 * i], x[i][1] = acc[0][2 * i + 1];
    x[i][2] = acc[1][2 * i], x[i][3] = acc[1][2 * i + 1];
  }
}

// The same of the identity.
__device__ inline void RowsOfPlanes(const uint32_t (&y)[4], int g, int q, float (&x)[2][4]) {
  float acc[2][4] = {};
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    uint32_t b[2];
    IdentityOut(g, q, e, b);
    MmaF16(acc[e], y, b[0], b[1]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    x[i][0] = acc[0][2 * i], x[i][1] = acc[0][2 * i + 1];
    x[i][2] = acc[1][2 * i], x[i][3] = acc[1][2 * i + 1];
  }
}

template <int kGroups>
__device__ inline void DecodeK(const TileJob& job, void* shared, std::byte* staged) {
  constexpr int kD = 16 * kGroups;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  auto* scales = static_cast<float2*>(shared);
  auto* runs = reinterpret_cast<RunPlace*>(scales + kD);
  float* mean = reinterpret_cast<float*>(runs + kD / 8);
  StageTile(job.tile.at, job.tile.bytes, staged);
  for (int i = threadIdx.x; i < kD / job.tile.run; i += kThreads) runs[i] = job.tile.runs[i];
  CodedTile tile = job.tile;
  tile.at = staged;
  tile.runs = runs;
  WaitForTile();
  __syncthreads();
  for (int c = threadIdx.x; c < kD; c += kThreads) scales[c] = ScaleOf(tile, c);
  __syncthreads();
  const LaneTokens at = TokensOfLane(job, warp, g);
  const int slot[2] = {codec::TokenSlot(at.row[0]), codec::TokenSlot(at.row[1])};
  uint32_t y[kGroups][4];
#pragma unroll
  for (int G = 0; G < kGroups; ++G) {
    const float4 low = *reinterpret_cast<const float4*>(&scales[16 * G + 2 * q]);
    const float4 high = *reinterpret_cast<const float4*>(&scales[16 * G + 8 + 2 * q]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const CodePairs pairs = PairsOf(tile, runs, G, q, slot[i]);
      y[G][i] = DecodePair(pairs.a, low);
      y[G][2 + i] = DecodePair(pairs.b, high);
    }
  }
  std::byte* const row[2] = {RowAt(job.rows, at.token[0]), RowAt(job.rows, at.token[1])};
  const DType dtype = job.dtype;
  const RopeTables rope = TablesOf(job);
  const BasisCell cell = job.change == Change::kBasis ? *job.cell : BasisCell{};
  if (job.table != nullptr && !TurnsInRegisters<kGroups>(job)) {
    float* exchange =
        reinterpret_cast<float*>(static_cast<std::byte*>(shared) + 17 * kD) + warp * 16 * kD;
#pragma unroll 1
    for (int G = 0; G < kGroups; ++G) {
      float x[2][4];
      ProductOfGroup<kGroups>(cell, y, G, lane, x);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<float4*>(exchange + (8 * i + g) * kD + 16 * G + 4 * q) =
            make_float4(x[i][0], x[i][1], x[i][2], x[i][3]);
    }
    __syncwarp();
#pragma unroll 1
    for (int G = 0; G < kGroups; ++G) {
      float x[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          x[i][k] = RotateThrough(job, at.token[i], 16 * G + 4 * q + k, false,
                                  exchange + (8 * i + g) * kD);
      StoreGroup(dtype, at, row, G, q, x);
    }
  } else if (job.table != nullptr && job.rope == RopeKind::kHalf) {
    if constexpr (kGroups % 2 == 0) {
#pragma unroll 1
      for (int G = 0; G < kGroups / 2; ++G) {
        float x[2][4], far[2][4];
        ProductOfGroup<kGroups>(cell, y, G, lane, x);
        ProductOfGroup<kGroups>(cell, y, G + kGroups / 2, lane, far);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          RotateHalves(rope, at.token[i], 16 * G + 4 * q, false, x[i], far[i]);
        StoreGroup(dtype, at, row, G, q, x);
        StoreGroup(dtype, at, row, G + kGroups / 2, q, far);
      }
    }
  } else if (job.change == Change::kBasis) {
#pragma unroll 1
    for (int G = 0; G < kGroups; ++G) {
      float x[2][4];
      ProductOfGroup<kGroups>(cell, y, G, lane, x);
      if (job.table != nullptr) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          RotateNeighbours(rope, at.token[i], 16 * G + 4 * q, false, x[i]);
      }
      StoreGroup(dtype, at, row, G, q, x);
    }
  } else {
#pragma unroll
    for (int G = 0; G < kGroups; ++G) {
      float x[2][4];
      RowsOfPlanes(y[G], g, q, x);
      StoreGroup(dtype, at, row, G, q, x);
    }
  }
  if (job.live != ~uint64_t{0}) {
    MeanOfDroppedK(job, tile, kD, scales, mean, mean + kD);
    StoreDropped(job, kD, mean + kD);
  }
  RestorePins(job, kD);
}

}  // namespace dyna::cuda
