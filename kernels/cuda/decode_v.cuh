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

// Levels of the trellis in shared memory: [64 rows] of d / 8 words (trellis.cuh).
constexpr int LevelRowBytes(int d) { return d / 2 + 8; }  // off the banks' period
// Shared memory of a V tile before what is staged: gains f32 [64] | mean of the rows that count,
// and what it decodes to, f32 [d] each | levels.
constexpr int DecodeVBytes(int d) { return 256 + 8 * d + 64 * LevelRowBytes(d); }

// Levels of a tile of 1 or 2 bits. All threads of the block.
__device__ inline void LevelsOfTile(const std::byte* codes, int d, int bits, std::byte* levels) {
  // 8 rows and 4 octets are a warp's: neighbours in memory.
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int cell_bytes = 16 * bits, octets = d / 8;
  for (int i = warp; i < 8 * ((octets + 3) / 4); i += 4) {
    const int r = 8 * (i % 8) + g, o = 4 * (i / 8) + q;
    if (o >= octets) continue;
    const std::byte* pair = codes + (r >> 3) * (d / 16) * cell_bytes + (g >> 1) * 4 * bits;
    const auto octet = [&](int k) -> uint32_t {
      const std::byte* cell = pair + (k >> 1) * cell_bytes;
      if (bits == 1) return static_cast<uint32_t>(cell[2 * (g & 1) + (k & 1)]);
      return reinterpret_cast<const uint16_t*>(cell)[2 * (k & 1) + (g & 1)];
    };
    const uint32_t now = octet(o), last = o > 0 ? octet(o - 1) : 0;
    const uint32_t before = bits == 1 ? last >> 6 & 3 : (last >> 12 & 1) | (last >> 13 & 2);
    *reinterpret_cast<uint32_t*>(levels + r * LevelRowBytes(d) + 4 * o) =
        LevelsOfCodes(bits == 1 ? NibblesOfBits(now) : NibblesOfCodes(now), before);
  }
}

// H within each group of 16 of the lane's two rows: x[G] is [n-tile][row][2 columns]. quad(i, G):
// z' of channels 16 G + 4 q .. + 3 of row i.
template <int kGroups, typename Quad>
__device__ inline void ProductOfQuads(int g, int q, const Quad& quad, float (&x)[kGroups][8]) {
  uint32_t b[2][2];
  HadamardOperandB(g, q, 0, 0x3c00u, b[0]);
  HadamardOperandB(g, q, 1, 0x3c00u, b[1]);
#pragma unroll
  for (int G = 0; G < kGroups; ++G) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint2 z = quad(i, G);
      a[i] = z.x;
      a[2 + i] = z.y;
    }
    float acc[2][4] = {};
    MmaF16(acc[0], a, b[0][0], b[0][1]);
    MmaF16(acc[1], a, b[1][0], b[1][1]);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[G][i] = acc[i / 4][i % 4];
  }
}
template <int kGroups, int kBits>
__device__ inline void ProductOfCodes(const std::byte* codes, const int (&row)[2],
                                      const float (&gain)[2], int g, int q,
                                      float (&x)[kGroups][8]) {
  ProductOfQuads<kGroups>(
      g, q,
      [&](int i, int G) {
        return DecodeQuad(CodeQuad(codes, kGroups, kBits, row[i], G, q), kBits, gain[i]);
      },
      x);
}
template <int kGroups, int kBits>
__device__ inline void ProductOfLevels(const std::byte* levels, const int (&row)[2],
                                       const float (&gain)[2], int g, int q,
                                       float (&x)[kGroups][8]) {
  const LevelTable table[2] = {TableOf<kBits>(gain[0]), TableOf<kBits>(gain[1])};
  ProductOfQuads<kGroups>(
      g, q,
      [&](int i, int G) {
        const std::byte* at = levels + row[i] * LevelRowBytes(16 * kGroups) + 8 * G + 2 * q;
        return LookUp(table[i], *reinterpret_cast<const uint16_t*>(at));
      },
      x);
}

template <int kGroups>
__device__ inline void DecodeV(const TileJob& job, void* shared, std::byte* staged) {
  constexpr int kD = 16 * kGroups;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  auto* gains = static_cast<float*>(shared);  // [64], by row
  float* mean = gains + 64;
  auto* levels = reinterpret_cast<std::byte*>(mean + 2 * kD);
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
  if (codec::IsTrellis(bits)) LevelsOfTile(codes, kD, bits, levels);
  __syncthreads();
  const LaneTokens at = TokensOfLane(job, warp, g);
  const float gain[2] = {gains[at.row[0]], gains[at.row[1]]};
  float x[kGroups][8];
  if (bits == 1) ProductOfLevels<kGroups, 1>(levels, at.row, gain, g, q, x);
  if (bits == 2) ProductOfLevels<kGroups, 2>(levels, at.row, gain, g, q, x);
  if (bits == 4) ProductOfCodes<kGroups, 4>(codes, at.row, gain, g, q, x);
  if (bits == 8) ProductOfCodes<kGroups, 8>(codes, at.row, gain, g, q, x);
  HadamardGroups<kGroups, 8>(x);
  const DType dtype = job.dtype;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (at.skip[i]) continue;
    std::byte* row = RowAt(job.rows, at.token[i]);
#pragma unroll
    for (int G = 0; G < kGroups; ++G) {
      const float four[4] = {x[G][2 * i], x[G][2 * i + 1], x[G][4 + 2 * i], x[G][5 + 2 * i]};
      Store4(row, dtype, 16 * G + 4 * q, four);
    }
  }
  if (job.live != ~uint64_t{0}) {
    MeanOfDroppedV(job, tile, kD, gains, mean, mean + kD);
    StoreDropped(job, kD, mean + kD);
  }
  RestorePins(job, kD);
}

}  // namespace dyna::cuda
