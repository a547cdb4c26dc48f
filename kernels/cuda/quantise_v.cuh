// Quantiser of V: the rows of one n-tile (8 tokens) by a warp (formats 2). Lane (g, q) holds z of
// channels 16 G + 8 h + g of rows 2 q and 2 q + 1, so the tree over channels is in the lane down to
// 8, then three exchanges; bytes are those of codec_math.h.
#pragma once

#include "kernels/codec_math.h"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/trellis.cuh"
#include "kernels/cuda/warp.cuh"

namespace dyna::cuda {

// The part of the tree that one lane holds: value(G, h), groups beyond kGroups being +0.
template <int kGroups, int kFirst, int kStep, int kSize, typename F>
__device__ inline float TreeOfGroups(const F& value) {
  if constexpr (kStep >= kSize) {
    if constexpr (kFirst < kGroups) return value(kFirst);
    return 0.0f;
  } else {
    return TreeOfGroups<kGroups, kFirst, 2 * kStep, kSize>(value) +
           TreeOfGroups<kGroups, kFirst + kStep, 2 * kStep, kSize>(value);
  }
}
template <int kGroups, typename F>
__device__ inline float TreeOfChannels(const F& value) {
  constexpr int kSize = codec::TreeSize(kGroups);
  float sum = TreeOfGroups<kGroups, 0, 1, kSize>([&](int G) { return value(G, 0); }) +
              TreeOfGroups<kGroups, 0, 1, kSize>([&](int G) { return value(G, 1); });
  sum += Xor(sum, 16);
  sum += Xor(sum, 8);
  sum += Xor(sum, 4);
  return sum;
}

// What the gains and the measures need of a row.
struct RowSums {
  float zz = 0, zu = 0, uu = 0, gain = 0;
  float max_unit = 0;  // the largest |u|
};

// Stored codes of both rows of a lane's pair: low half row 2 q, high half row 2 q + 1.
struct PairSteps {
  float step[2], inverse[2];
};
// Neighbouring g share the work: even ones take the even row.
__device__ inline float FromOwner(float mine, int g, int row) {
  const float other = Xor(mine, 4);
  return (g & 1) == row ? mine : other;
}
__device__ inline PairSteps StepsOf(int bits, int g, const float (&zz)[2], const float (&top)[2]) {
  const float z = (g & 1) == 0 ? zz[0] : zz[1], t = (g & 1) == 0 ? top[0] : top[1];
  const float step = z > 0 ? codec::VStep(bits, t) : 1.0f;
  const float inverse = __frcp_rn(step);
  PairSteps s;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    s.step[j] = FromOwner(step, g, j);
    s.inverse[j] = FromOwner(inverse, g, j);
  }
  return s;
}
// floor(z / step) of 4 and 8 bits. The step is an f16 times a power of two, so k step is exact for
// every code k, and the quotient reaches an integer only where z does: the nearest integer, or the
// one below where its exact product is above z.
__device__ inline float FloorCode(float z, float step, float inverse, float half) {
  const float magic = 0x1.8p23f;
  float c = __fmaf_rn(z, inverse, magic) - magic;
  if (z < c * step) c -= 1;
  return fminf(c, half - 1) + half;
}
// Codes 0 .. 2^bits - 1 of a pair as halves, of 4 and 8 bits.
__device__ inline half2 PairCodes(uint32_t z, int bits, const PairSteps& s) {
  const float half = static_cast<float>(1 << (bits - 1));
  return AsHalf2(PackF16(FloorCode(LowF16(z), s.step[0], s.inverse[0], half),
                         FloorCode(HighF16(z), s.step[1], s.inverse[1], half)));
}

// What 4 and 8 bits do: u of every pair, and its codes.
template <int kGroups>
__device__ inline void UniformCodes(const uint32_t (&z)[kGroups][2], int bits, int g, int q,
                                    const PairSteps& steps, uint32_t keep, uint16_t* codes,
                                    int code_stride, uint32_t (&unit)[kGroups][2]) {
  const half2 center = __float2half2_rn(static_cast<float>(1 << (bits - 1))),
              half = AsHalf2(0x38003800u), magic = AsHalf2(0x64006400u);
#pragma unroll
  for (int i = 0; i < 2 * kGroups; ++i) {
    const int G = i / 2, h = i % 2;
    const half2 code = PairCodes(z[G][h], bits, steps);
    unit[G][h] = AsBits(__hadd2(__hsub2(code, center), half));
    const uint32_t bytes = __byte_perm(AsBits(__hadd2(code, magic)), 0, 0x4420);
    codes[q * code_stride + 16 * G + 8 * h + g] = static_cast<uint16_t>(bytes & keep);
  }
}
// What 1 and 2 bits do, from the codes that TrellisCodes left.
template <int kGroups>
__device__ inline void UnitsOfTrellis(int bits, int g, int q, uint32_t keep, uint16_t* codes,
                                      int code_stride, uint32_t (&unit)[kGroups][2]) {
  const uint16_t* pair = codes + q * code_stride;
#pragma unroll
  for (int i = 0; i < 2 * kGroups; ++i) {
    const int c = 16 * (i / 2) + 8 * (i % 2) + g;
    const uint32_t levels = LevelBytes(pair[c], c > 0 ? pair[c - 1] : 0, c > 1 ? pair[c - 2] : 0);
    unit[i / 2][i % 2] = AsBits(UnitPair(UnitBytes(levels, bits), false));
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2 * kGroups; ++i)
    codes[q * code_stride + 16 * (i / 2) + 8 * (i % 2) + g] &= static_cast<uint16_t>(keep);
}

// One n-tile. z: [kGroups][h] pairs of halves. codes: the warp's own [4 pairs][d] of (even, odd)
// bytes; strip: its TrellisBytes. sums[j]: of row 2 q + j, the same in every g. kBits 8 stands for
// 4 too.
template <int kGroups, int kBits>
__device__ inline void QuantiseRows(const uint32_t (&z)[kGroups][2], int bits,
                                    const bool (&counts)[2], int g, int q, void* strip,
                                    uint16_t* codes, int code_stride, RowSums (&sums)[2]) {
  half2 most = __habs2(AsHalf2(z[0][0]));
#pragma unroll
  for (int i = 1; i < 2 * kGroups; ++i) most = __hmax2(most, __habs2(AsHalf2(z[i / 2][i % 2])));
#pragma unroll
  for (int m = 16; m >= 4; m /= 2) most = __hmax2(most, AsHalf2(Xor(AsBits(most), m)));
  const float zz[2] = {TreeOfChannels<kGroups>([&](int G, int h) {
                         const float v = LowF16(z[G][h]);
                         return v * v;
                       }),
                       TreeOfChannels<kGroups>([&](int G, int h) {
                         const float v = HighF16(z[G][h]);
                         return v * v;
                       })};
  const float top[2] = {__low2float(most), __high2float(most)};
  const uint32_t keep =
      (counts[0] && zz[0] > 0 ? 0x00ffu : 0) | (counts[1] && zz[1] > 0 ? 0xff00u : 0);
  uint32_t unit[kGroups][2];
  if constexpr (codec::IsTrellis(kBits)) {
    TrellisCodes<kGroups, kBits>(z, zz, g, q, strip, codes, code_stride);
    UnitsOfTrellis<kGroups>(kBits, g, q, keep, codes, code_stride, unit);
  } else {
    const PairSteps steps = StepsOf(bits, g, zz, top);
    UniformCodes<kGroups>(z, bits, g, q, steps, keep, codes, code_stride, unit);
  }
  const float zu[2] = {
      TreeOfChannels<kGroups>([&](int G, int h) { return LowF16(z[G][h]) * LowF16(unit[G][h]); }),
      TreeOfChannels<kGroups>(
          [&](int G, int h) { return HighF16(z[G][h]) * HighF16(unit[G][h]); })};
  // Exact in any order: integers below 2^24, over 4 or 256.
  float uu[2] = {0, 0};
  half2 most_unit = AsHalf2(0);
#pragma unroll
  for (int i = 0; i < 2 * kGroups; ++i) {
    most_unit = __hmax2(most_unit, __habs2(AsHalf2(unit[i / 2][i % 2])));
    const float low = LowF16(unit[i / 2][i % 2]), high = HighF16(unit[i / 2][i % 2]);
    uu[0] = __fmaf_rn(low, low, uu[0]);
    uu[1] = __fmaf_rn(high, high, uu[1]);
  }
#pragma unroll
  for (int m = 16; m >= 4; m /= 2) {
    uu[0] += Xor(uu[0], m);
    uu[1] += Xor(uu[1], m);
    most_unit = __hmax2(most_unit, AsHalf2(Xor(AsBits(most_unit), m)));
  }
  const bool odd = (g & 1) != 0;
  const float gain = codec::VGain(odd ? zz[1] : zz[0], odd ? zu[1] : zu[0], odd ? uu[1] : uu[0]);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float its = FromOwner(gain, g, j);
    sums[j].zz = counts[j] ? zz[j] : 0.0f;
    sums[j].zu = zu[j];
    sums[j].uu = uu[j];
    sums[j].max_unit = j == 0 ? __low2float(most_unit) : __high2float(most_unit);
    sums[j].gain = counts[j] && zz[j] > 0 ? its : 0.0f;
  }
}

// The words of one n-tile from the codes that QuantiseRows left: `to` is the first cell of the
// tile's row group (formats 4).
template <int kGroups>
__device__ inline void PackRows(const uint16_t* codes, int code_stride, int bits, int lane,
                                std::byte* to) {
  // (h, pair, G): neighbours in memory are neighbouring lanes.
#pragma unroll 1
  for (int i = lane; i < 8 * kGroups; i += 32) {
    const int h = i & 1, pair = (i >> 1) & 3, G = i >> 3;
    const uint4 raw = *reinterpret_cast<const uint4*>(codes + pair * code_stride + 16 * G + 8 * h);
    const uint32_t two[4] = {raw.x, raw.y, raw.z, raw.w};  // channels 2 k, 2 k + 1
    std::byte* cell = to + (G * 4 + pair) * 4 * bits;
    if (bits == 8) {
      uint32_t w[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) w[k] = __byte_perm(two[k], 0, 0x3120);
      *reinterpret_cast<uint4*>(cell + 16 * h) = make_uint4(w[0], w[1], w[2], w[3]);
      continue;
    }
    // Even rows in the low half, odd ones in the high half, channel k at bits * k.
    uint32_t word = 0, low = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const uint32_t pair_of = __byte_perm(two[k / 2], 0, (k & 1) != 0 ? 0x4342 : 0x4140);
      if (bits == 4) {
        word |= pair_of << (4 * (k & 3));
        if (k == 3) {
          low = word;
          word = 0;
        }
      } else {
        word |= pair_of << (bits * k);
      }
    }
    if (bits == 4) {
      *reinterpret_cast<uint2*>(cell + 8 * h) = make_uint2(low, word);
    } else if (bits == 2) {
      *reinterpret_cast<uint32_t*>(cell + 4 * h) = word;
    } else {
      cell[h] = static_cast<std::byte>(word);
      cell[2 + h] = static_cast<std::byte>(word >> 16);
    }
  }
}

}  // namespace dyna::cuda
