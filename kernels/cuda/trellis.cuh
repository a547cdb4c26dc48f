// The trellis of V at 1 and 2 bits (kernels/trellis.h) on a warp: a lane is one state of one of
// eight rows on the way forwards, a lane is a row on the way back. Same operations, same bytes.
#pragma once

#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/trellis.h"

namespace dyna::cuda {

// Of a warp: z of eight rows as halves, and for every channel what 32 lanes decided.
constexpr int TrellisStride(int d) { return d + 8; }  // halves a row; off the banks' period
constexpr int TrellisBytes(int d) { return 8 * TrellisStride(d) * 2 + 2 * 4 * d; }

// Units of four levels in a word, a byte each, sixteenths + 64.
constexpr uint32_t TrellisUnitBytes(int bits, int first) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const int level = (first + i) % (2 << bits);
    word |= static_cast<uint32_t>(codec::TrellisUnit(bits, level) * 16 + 64) << (8 * i);
  }
  return word;
}
// Levels 0 .. 7, a byte each, as units in the same bytes.
__device__ inline uint32_t UnitBytes(uint32_t levels, int bits) {
  const uint32_t select =
      (levels & 7u) | (levels >> 4 & 0x70u) | (levels >> 8 & 0x700u) | (levels >> 12 & 0x7000u);
  constexpr uint32_t kOne = TrellisUnitBytes(1, 0), kLow = TrellisUnitBytes(2, 0),
                     kHigh = TrellisUnitBytes(2, 4);
  return bits == 1 ? __byte_perm(kOne, 0, select) : __byte_perm(kLow, kHigh, select);
}
// Two of them as halves: bytes 0 and 1, or 2 and 3.
__device__ inline half2 UnitPair(uint32_t bytes, bool high) {
  const half2 biased = AsHalf2(__byte_perm(bytes, 0x64, high ? 0x4342 : 0x4140));
  return __hmul2(__hsub2(biased, __float2half2_rn(1024 + 64)), __float2half2_rn(0x1p-4f));
}
// Levels of codes whose two channels before are `x1` and `x2`: bytes, of which bit 0 counts.
__device__ inline uint32_t LevelBytes(uint32_t codes, uint32_t x1, uint32_t x2) {
  constexpr uint32_t kOnes = 0x01010101u;
  return (codes & 0x02020202u) << 1 | ((codes ^ x2) & kOnes) << 1 | (x1 & kOnes);
}

// z' of four codes, a byte each, the four before them in `last`: two pairs of halves.
__device__ inline uint2 DecodeTrellisQuad(uint32_t codes, uint32_t last, int bits, float gain) {
  const uint32_t x1 = codes << 8 | last >> 24, x2 = codes << 16 | last >> 16;
  const uint32_t units = UnitBytes(LevelBytes(codes, x1, x2), bits);
  const half2 low = UnitPair(units, false), high = UnitPair(units, true);
  return make_uint2(PackF16(gain * __low2float(low), gain * __high2float(low)),
                    PackF16(gain * __low2float(high), gain * __high2float(high)));
}

// Metrics of one branch: of its lower level, and of its upper one (2 bits).
struct TrellisBranch {
  float square[2], slope[2];  // metric = square + slope z

  template <int kBits>
  static __device__ TrellisBranch Of(int k, float rms) {
    TrellisBranch b;
#pragma unroll
    for (int w = 0; w < (kBits == 2 ? 2 : 1); ++w) {
      float unit = 0;  // a chain of selects, not a table in memory
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i == k) unit = codec::TrellisUnit(kBits, 4 * w + i);
      const float scaled = unit * rms;
      b.square[w] = scaled * scaled;
      b.slope[w] = -(scaled + scaled);
    }
    return b;
  }
  template <int kBits>
  __device__ float Metric(float z, bool* upper) const {
    const float low = square[0] + slope[0] * z;
    if constexpr (kBits == 1) return low;
    const float high = square[1] + slope[1] * z;
    *upper = high < low;
    return fminf(low, high);
  }
};

// Codes of eight rows from z in the lanes' layout of quantise_v.cuh ([group][h] pairs of halves of
// rows 2 q and 2 q + 1, whose sums of squares are zz): into `codes`, [4 pairs][code_stride] of
// (even, odd) bytes. `strip`: TrellisBytes of shared memory of this warp. Ends with __syncwarp.
template <int kGroups, int kBits>
__device__ inline void TrellisCodes(const uint32_t (&z)[kGroups][2], const float (&zz)[2], int g,
                                    int q, void* strip, uint16_t* codes, int code_stride) {
  constexpr int kD = 16 * kGroups, kStride = TrellisStride(kD);
  auto* values = static_cast<uint16_t*>(strip);
  auto* from = reinterpret_cast<uint32_t*>(values + 8 * kStride);
  uint32_t* upper = from + kD;
#pragma unroll
  for (int i = 0; i < 2 * kGroups; ++i) {
    const int c = 16 * (i / 2) + 8 * (i % 2) + g;
    values[2 * q * kStride + c] = static_cast<uint16_t>(z[i / 2][i % 2]);
    values[(2 * q + 1) * kStride + c] = static_cast<uint16_t>(z[i / 2][i % 2] >> 16);
  }
  __syncwarp();
  const int lane = 4 * g + q, x = q & 1, x1 = q >> 1;
  const float even = __shfl_sync(~0u, zz[0], g >> 1), odd = __shfl_sync(~0u, zz[1], g >> 1);
  const float rms = codec::TrellisRms((g & 1) != 0 ? odd : even, kD);
  const auto zero_branch = TrellisBranch::Of<kBits>(2 * x + x1, rms);
  const auto one_branch = TrellisBranch::Of<kBits>(2 * (x ^ 1) + x1, rms);
  float cost = q == 0 ? 0 : codec::kTrellisUnreached;
  const uint16_t* row = values + g * kStride;
#pragma unroll 4
  for (int c = 0; c < kD; ++c) {
    const float value = codec::F16ToF32(row[c]);
    bool high = false, unused;
    const float zero =
        __shfl_sync(~0u, cost, 4 * g + x1) + zero_branch.template Metric<kBits>(value, &high);
    const float one =
        __shfl_sync(~0u, cost, 4 * g + x1 + 2) + one_branch.template Metric<kBits>(value, &unused);
    const uint32_t came = __ballot_sync(~0u, one < zero);
    const uint32_t took = kBits == 2 ? __ballot_sync(~0u, high) : 0;
    if (lane == c % 32) {
      from[c] = came;
      upper[c] = took;
    }
    cost = one < zero ? one : zero;
  }
  // The smallest cost, the lowest state on a tie.
  int state = q;
#pragma unroll
  for (int m = 1; m <= 2; m *= 2) {
    const float other = Xor(cost, m);
    const int its = __shfl_xor_sync(~0u, state, m);
    if (other < cost || (other == cost && its < state)) {
      cost = other;
      state = its;
    }
  }
  __syncwarp();
  if (q == 0) {  // row g
    auto* bytes = reinterpret_cast<uint8_t*>(codes + (g >> 1) * code_stride) + (g & 1);
    for (int c = kD - 1; c >= 0; --c) {
      const int bit = state & 1, before = state >> 1;
      const int two_before = static_cast<int>(from[c] >> (4 * g + state) & 1);
      const int branch = 2 * (bit ^ two_before) + before;
      // Lane q said w of branch 2 (q & 1) + (q >> 1).
      const int by = (branch >> 1) | (branch & 1) << 1;
      const int w = static_cast<int>(upper[c] >> (4 * g + by) & 1);
      bytes[2 * c] = static_cast<uint8_t>(bit + 2 * w);
      state = before + 2 * two_before;
    }
  }
  __syncwarp();
}

}  // namespace dyna::cuda
