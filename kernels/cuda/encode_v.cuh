// V of one tile into its bytes, by one thread block: each warp takes 16 rows from memory straight
// into matrix operands, rotates, quantises, and packs through a strip of shared memory of its own.
#pragma once

#include "kernels/cuda/copy_job.cuh"
#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/hadamard.cuh"
#include "kernels/cuda/quantise_v.cuh"
#include "kernels/cuda/rows.cuh"

namespace dyna::cuda {

template <int kGroups>
__device__ inline void LoadRaw(const std::byte* row, int q, uint2 (&raw)[kGroups]) {
#pragma unroll
  for (int G = 0; G < kGroups; ++G)
    raw[G] = __ldcs(reinterpret_cast<const uint2*>(row + 32 * G + 8 * q));
}

// Shared memory of a V tile: cells of 8 bits, [4 warps][2][d / 16][128 bytes] | rows that are done
// the exact way, halves [64][d], and their sums [64]; or all rows, for the trellis.
constexpr int EncodeVBytes(int d) { return 64 * d + 128 * d + 64 * 16; }

// Rotated values of the lane's two rows from their words. wide: the rows of an f32 source, or null.
template <int kGroups>
__device__ inline void RotateRows(const TileJob& job, const uint2 (&raw)[2][kGroups],
                                  const std::byte* const (&wide)[2], int g, int q,
                                  uint32_t (&z)[2][kGroups][2], bool (&finite)[2]) {
  if (job.change != Change::kHadamard) {  // z itself, in f16
#pragma unroll
    for (int i = 0; i < 2 * kGroups; ++i) {
      z[i / kGroups][i % kGroups][0] = raw[i / kGroups][i % kGroups].x;
      z[i / kGroups][i % kGroups][1] = raw[i / kGroups][i % kGroups].y;
    }
    return;
  }
  uint32_t b[2][2];
  HadamardOperandB(g, q, 0, 0x3f80u, b[0]);
  HadamardOperandB(g, q, 1, 0x3f80u, b[1]);
  float x[kGroups][8] = {};  // [n-tile][row][2 columns], as the accumulators are
  const auto add = [&](int G, const uint2& first, const uint2& second) {
    const uint32_t a[4] = {first.x, second.x, first.y, second.y};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float acc[4] = {x[G][4 * e], x[G][4 * e + 1], x[G][4 * e + 2], x[G][4 * e + 3]};
      MmaBf16(acc, a, b[e][0], b[e][1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) x[G][4 * e + i] = acc[i];
    }
  };
  if (job.dtype == DType::kBf16) {
#pragma unroll
    for (int G = 0; G < kGroups; ++G) add(G, raw[0][G], raw[1][G]);
  } else {
    // Two bf16 carry the 11 bits of an f16, and all that the result keeps of an f32.
#pragma unroll
    for (int G = 0; G < kGroups; ++G) {
      uint2 high[2], low[2];
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        float v[4] = {0, 0, 0, 0};
        if (job.dtype == DType::kF16) {
          Widen(raw[row][G], DType::kF16, v);
        } else if (wide[row] != nullptr) {
          Load4(wide[row], DType::kF32, 16 * G + 4 * q, v);
        }
        finite[row] = finite[row] && Finite4(v);
        high[row] = make_uint2(PackBf16(v[0], v[1]), PackBf16(v[2], v[3]));
        low[row] = make_uint2(PackBf16(v[0] - LowBf16(high[row].x), v[1] - HighBf16(high[row].x)),
                              PackBf16(v[2] - LowBf16(high[row].y), v[3] - HighBf16(high[row].y)));
      }
      add(G, high[0], high[1]);
      add(G, low[0], low[1]);
    }
  }
  HadamardGroups<kGroups, 8>(x);
#pragma unroll
  for (int G = 0; G < kGroups; ++G)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      z[row][G][0] = PackF16(x[G][2 * row], x[G][2 * row + 1]);
      z[row][G][1] = PackF16(x[G][4 + 2 * row], x[G][5 + 2 * row]);
    }
}

template <int kGroups>
__device__ inline void KeepPinnedV(const TileJob& job, const uint2 (&raw)[kGroups],
                                   const std::byte* wide_row, int t, int q, Found* found) {
#pragma unroll
  for (int G = 0; G < kGroups; ++G) {
    float x[4];
    if (job.dtype == DType::kF32) {
      Load4(wide_row, DType::kF32, 16 * G + 4 * q, x);
    } else {
      Widen(raw[G], job.dtype, x);
    }
    if (!Finite4(x)) FoundBadToken(found, t);
    if (job.pins != nullptr) Store4(PinAt(job, t), job.dtype, 16 * G + 4 * q, x);
  }
}

// z' of row `from` of a wider tile.
template <int kGroups, int kBits>
__device__ inline void LoadCoded(const CodedTile& tile, int v_exp, int from, int q,
                                 uint2 (&raw)[kGroups]) {
  const float gain = GainOf(tile, v_exp, codec::TokenSlot(from));
#pragma unroll
  for (int G = 0; G < kGroups; ++G)
    raw[G] = QuadOfV(CodesOfV(tile), kGroups, kBits, from, G, q, gain);
}

// The lane's two rows of 16 bits, or of a wider tile, which `staged` has room for; token: 64 where
// there is no row. All threads of the block.
template <int kGroups>
__device__ inline void LoadRowsV(const TileJob& job, const int (&token)[2], int row0, int q,
                                 std::byte* staged, uint2 (&raw)[2][kGroups]) {
  CodedTile tile = job.from;
  const int v_exp = tile.at != nullptr ? *tile.v_exp : 0;
  if (tile.at != nullptr) {
    StageTile(tile.at, tile.bytes, staged);
    tile.at = staged;
    WaitForTile();
    __syncthreads();
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
#pragma unroll
    for (int G = 0; G < kGroups; ++G) raw[row][G] = make_uint2(0, 0);
    if (token[row] == 64) continue;
    if (job.from.at != nullptr) {
      const int from = TokenOfRow(job.narrow, row0 + 8 * row);
      if (tile.bits == 2) LoadCoded<kGroups, 2>(tile, v_exp, from, q, raw[row]);
      if (tile.bits == 4) LoadCoded<kGroups, 4>(tile, v_exp, from, q, raw[row]);
      if (tile.bits == 8) LoadCoded<kGroups, 8>(tile, v_exp, from, q, raw[row]);
    } else if (job.dtype != DType::kF32) {
      LoadRaw<kGroups>(RowAt(job.rows, token[row]), q, raw[row]);
    }
  }
  if (tile.at != nullptr) __syncthreads();  // what is staged may be overwritten
}

template <int kGroups>
__device__ inline void EncodeV(const TileJob& job, void* shared, Found* found, int8_t* v_exp_out) {
  constexpr int kD = 16 * kGroups;
  static_assert(64 * TrellisRowBytes(kD) <= 128 * kD + 64 * 16);
  __shared__ float gain_of[64], most_gain[4];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int bits = job.tile.bits, rows = __popcll(job.live), row0 = 16 * warp + g;
  auto* cells = static_cast<std::byte*>(shared) + warp * 16 * kD;
  auto* kept = reinterpret_cast<uint2*>(static_cast<std::byte*>(shared) + 64 * kD + warp * 32 * kD);
  auto* exact = reinterpret_cast<RowSums*>(static_cast<std::byte*>(shared) + 192 * kD) + 16 * warp;
  if (job.from.at == nullptr && job.live != ~uint64_t{0} && job.values == 0)
    CheckDropped(job, kD, found);
  int token[2];
  bool counts[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int r = row0 + 8 * row;
    token[row] = r < rows ? TokenOfRow(job.live, r) : 64;
    counts[row] = (job.counted >> r & 1) != 0;
  }
  uint32_t z[2][kGroups][2];
  {
    uint2 raw[2][kGroups];
    LoadRowsV<kGroups>(job, token, row0, q, static_cast<std::byte*>(shared) + 64 * kD, raw);
    const std::byte* wide[2];
    bool finite[2] = {true, true};
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int t = token[row];
      wide[row] = job.from.at == nullptr && job.dtype == DType::kF32 && t < 64 ? RowAt(job.rows, t)
                                                                               : nullptr;
      if (t < 64 && (job.pinned >> t & 1) != 0 && job.from.at == nullptr)
        KeepPinnedV<kGroups>(job, raw[row], wide[row], t, q, found);
    }
    RotateRows<kGroups>(job, raw, wide, g, q, z, finite);
#pragma unroll
    for (int row = 0; row < 2; ++row)
      if (!finite[row] && token[row] < 64) FoundBadToken(found, token[row]);
  }
  RowSums mine;
  // The largest value has the last code.
  float top_unit = static_cast<float>(1 << (bits - 1)) - .5f;
  if (codec::IsTrellis(bits)) {
    auto* all = static_cast<std::byte*>(shared);
    if (bits == 1)
      mine = TrellisRows<kGroups, 1>(z, counts, all + 64 * kD, all, gain_of, &top_unit);
    if (bits == 2)
      mine = TrellisRows<kGroups, 2>(z, counts, all + 64 * kD, all, gain_of, &top_unit);
  } else {
    const bool sure = bits == 4 && QuickRows<kGroups>(z, counts, g, q, cells, &mine);
    if (!__all_sync(0xffffffffu, sure)) {
      KeepRows<kGroups>(z, lane, kept);
      ExactRows<kGroups>(kept, bits, counts[0], counts[1], cells, exact);
      __syncwarp();
      mine = exact[8 * (q & 1) + g];
    }
  }
  __syncwarp();
  auto* words =
      reinterpret_cast<uint4*>(job.tile.at + (bits == 8 ? 128 : 64)) + warp * 2 * kGroups * bits;
  for (int i = lane; i < 2 * kGroups * bits; i += 32)
    words[i] = reinterpret_cast<const uint4*>(cells)[i];
  const int r = row0 + 8 * q;  // of lanes q < 2
  if (q < 2) {
    if (!codec::IsFiniteBits(mine.zz)) {
      FoundBadToken(found, TokenOfRow(job.live, r));
    } else {
      gain_of[codec::TokenSlot(r)] = mine.gain;
    }
  }
  float most = q < 2 ? mine.gain : 0.0f;
#pragma unroll
  for (int m = 16; m > 0; m /= 2) most = fmaxf(most, Xor(most, m));
  if (lane == 0) most_gain[warp] = most;
  __syncthreads();
  most = fmaxf(fmaxf(most_gain[0], most_gain[1]), fmaxf(most_gain[2], most_gain[3]));
  const int v_exp = codec::GainExponent(most);
  if (threadIdx.x == 0) *v_exp_out = static_cast<int8_t>(v_exp);
  if (threadIdx.x < 64) {
    const float gain = gain_of[threadIdx.x];
    if (bits == 8) {
      reinterpret_cast<uint16_t*>(job.tile.at)[threadIdx.x] =
          codec::F32ToF16(gain * codec::Power2(-v_exp));
    } else {
      job.tile.at[threadIdx.x] = static_cast<std::byte>(codec::Log8eEncode(gain, v_exp));
    }
  }
  // What was lost, from the sums: |z - g' u|^2.
  float energy = 0, error = 0;
  if (q < 2) {
    if (mine.gain > 0) {
      const float coded =
          bits == 8 ? codec::F16ToF32(codec::F32ToF16(mine.gain * codec::Power2(-v_exp))) *
                          codec::Power2(v_exp)
                    : codec::Log8eDecode(codec::Log8eEncode(mine.gain, v_exp), v_exp);
      error = fmaxf(mine.zz - 2 * coded * mine.zu + coded * coded * mine.uu, 0.0f);
      if (!codec::IsFiniteBits(codec::RoundF16(coded * top_unit)))
        atomicOr(&found->flags, kBadScale);
    }
    energy = mine.zz;
  }
  energy = WarpSum(energy);
  error = WarpSum(error);
  if (lane == 0) {
    atomicAdd(&found->energy, energy);
    atomicAdd(&found->error, error);
  }
}

}  // namespace dyna::cuda
