// The trellis (kernels/trellis.h) on a device: a thread is a row of values, whatever a row is. The
// same operations as there, so the same bytes.
//
// A row lies in shared memory, 16 bytes for eight channels: first their values as halves, then what
// the way forwards decided, and in the end the levels that they decode by.
#pragma once

#include "kernels/cuda/warp.cuh"
#include "kernels/trellis.h"

namespace dyna::cuda {

// Bytes from row to row: an odd number of 16, so that threads of a warp find banks of their own.
constexpr int TrellisRowBytes(int d) { return 2 * d + 16; }

// ---- levels: of eight channels in a word, a nibble each, the first one lowest

// Bit k of eight to bit 4 k.
__device__ inline uint32_t NibblesOfBits(uint32_t bits) {
  bits = (bits | bits << 12) & 0x000f000fu;
  bits = (bits | bits << 6) & 0x03030303u;
  return (bits | bits << 3) & 0x11111111u;
}
// Eight stored codes of 2 bits, to a nibble each.
__device__ inline uint32_t NibblesOfCodes(uint32_t codes) {
  codes = (codes | codes << 8) & 0x00ff00ffu;
  codes = (codes | codes << 4) & 0x0f0f0f0fu;
  return (codes | codes << 2) & 0x33333333u;
}
__device__ inline uint32_t CodesOfNibbles(uint32_t nibbles) {
  nibbles = (nibbles | nibbles >> 2) & 0x0f0f0f0fu;
  nibbles = (nibbles | nibbles >> 4) & 0x00ff00ffu;
  return (nibbles | nibbles >> 8) & 0xffffu;
}
// What x[c] and the two before it say: bits 0 and 1 of the level, its branch. x: in bit 0 of the
// nibbles. before: bit 0 is x two channels before the first, bit 1 that one channel before.
struct Branches {
  uint32_t x1, flipped;  // x[c-1], and x[c] ^ x[c-2]
};
__device__ inline Branches BranchesOf(uint32_t x, uint32_t before) {
  const uint32_t x2 = x << 8 | (before & 1) | (before & 2) << 3;
  return {x << 4 | before >> 1, x ^ x2};
}
__device__ inline uint32_t LevelsOf(const Branches& b, uint32_t w) {
  return w << 2 | b.flipped << 1 | b.x1;
}
// Levels of stored codes in nibbles; `before` as above.
__device__ inline uint32_t LevelsOfCodes(uint32_t nibbles, uint32_t before) {
  return LevelsOf(BranchesOf(nibbles & 0x11111111u, before), nibbles >> 1 & 0x11111111u);
}

// Halves by level: low bytes, and high bytes.
struct LevelTable {
  uint32_t low[2], high[2];
};
// z' by level.
template <int kBits>
__device__ inline LevelTable TableOf(float gain) {
  LevelTable t;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int first = kBits == 2 ? 4 * i : 0;
    const auto z = [&](int k) { return gain * codec::TrellisUnit(kBits, first + k); };
    const uint32_t a = PackF16(z(0), z(1)), b = PackF16(z(2), z(3));
    t.low[i] = __byte_perm(a, b, 0x6420);
    t.high[i] = __byte_perm(a, b, 0x7531);
  }
  return t;
}
// Of the four levels in the low nibbles: two pairs of halves.
__device__ inline uint2 LookUp(const LevelTable& t, uint32_t levels) {
  const uint32_t low = __byte_perm(t.low[0], t.low[1], levels);
  const uint32_t high = __byte_perm(t.high[0], t.high[1], levels);
  return make_uint2(__byte_perm(low, high, 0x5140), __byte_perm(low, high, 0x7362));
}
// z' of four stored codes, a byte each, the four before them in `last`.
__device__ inline uint2 DecodeTrellisQuad(uint32_t codes, uint32_t last, int bits, float gain) {
  const uint32_t nibbles =
      (codes & 3u) | (codes >> 4 & 0x30u) | (codes >> 8 & 0x300u) | (codes >> 12 & 0x3000u);
  const uint32_t levels = LevelsOfCodes(nibbles, (last >> 16 & 1) | (last >> 23 & 2));
  return LookUp(bits == 1 ? TableOf<1>(gain) : TableOf<2>(gain), levels);
}

// ---- the encoder

// bits = bits << 1 | (a < b). Neither is -0: a metric is a square, which is not, and something.
__device__ inline void PushLess(float a, float b, uint32_t* bits) {
  *bits = __funnelshift_l(__float_as_uint(a - b), *bits, 1);
}

// Magnitudes of the levels times a row's rms.
template <int kBits>
struct TrellisMetrics {
  static constexpr int kHalf = codec::TrellisMagnitudes(kBits);
  float square[kHalf], twice[kHalf];

  __device__ explicit TrellisMetrics(float rms) {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float scaled = codec::TrellisMagnitude(kBits, i) * rms;
      square[i] = scaled * scaled;
      twice[i] = scaled + scaled;
    }
  }
};

// codec::TrellisStep. Of a step four bits enter `from`, state 0 lowest; and four of 2 bits `upper`,
// branch 0 highest.
template <int kBits>
__device__ inline void TrellisStep(float z, const TrellisMetrics<kBits>& m, float (&cost)[4],
                                   uint32_t* from, uint32_t* upper) {
  constexpr int kHalf = TrellisMetrics<kBits>::kHalf;
  float metric[2 * kHalf];
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float product = m.twice[i] * z;
    metric[kHalf - 1 - i] = m.square[i] + product;
    metric[kHalf + i] = m.square[i] - product;
  }
  if constexpr (kBits == 2) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      PushLess(metric[k + 4], metric[k], upper);
      metric[k] = fminf(metric[k], metric[k + 4]);
    }
  }
  float next[4];
#pragma unroll
  for (int state = 3; state >= 0; --state) {
    const int x = state & 1, x1 = state >> 1;
    const float zero = cost[x1] + metric[2 * x + x1];
    const float one = cost[x1 + 2] + metric[2 * (x ^ 1) + x1];
    PushLess(one, zero, from);
    next[state] = fminf(zero, one);
  }
#pragma unroll
  for (int state = 0; state < 4; ++state) cost[state] = next[state];
}

// The way forwards over a row's d values. Returns the state at its end.
template <int kBits>
__device__ inline uint32_t TrellisSearch(uint4* row, int d, float rms) {
  const TrellisMetrics<kBits> metrics(rms);
  constexpr float kUnreached = codec::kTrellisUnreached;
  float cost[4] = {0, kUnreached, kUnreached, kUnreached};
#pragma unroll 1
  for (int o = 0; o < d / 8; ++o) {
    const uint4 values = row[o];
    const uint32_t pair[4] = {values.x, values.y, values.z, values.w};
    uint32_t from = 0, upper = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k)
      TrellisStep<kBits>((k & 1) != 0 ? HighF16(pair[k / 2]) : LowF16(pair[k / 2]), metrics, cost,
                         &from, &upper);
    *reinterpret_cast<uint2*>(row + o) = make_uint2(from, upper);
  }
  const bool first = cost[1] < cost[0], second = cost[3] < cost[2];
  const float low = first ? cost[1] : cost[0], high = second ? cost[3] : cost[2];
  return high < low ? 2u + (second ? 1 : 0) : first ? 1 : 0;
}

// Where the levels of a row's channels 8 o .. 8 o + 7 are after the way back.
__device__ inline uint32_t* LevelsAt(std::byte* row, int o) {
  return reinterpret_cast<uint32_t*>(row + 16 * o + 8);
}

// The way back. Calls put(o, codes) for every eight channels, the last ones first: their stored
// codes in their lowest 8 kBits bits.
template <int kBits, typename Put>
__device__ inline void TrellisTrace(uint4* row, int d, uint32_t state, const Put& put) {
  uint32_t path = state << 30;  // x[c] in bit 30, x[c-1] in bit 31; those behind are below
#pragma unroll 1
  for (int o = d / 8 - 1; o >= 0; --o) {
    const uint2 decided = *reinterpret_cast<const uint2*>(row + o);
#pragma unroll
    for (int k = 0; k < 8; ++k)  // x[c-2] goes on top
      path = __funnelshift_r(path, decided.x >> (4 * k) >> (path >> 30), 1);
    const uint32_t ahead = __brev(path);  // x[c-2], x[c-1], x[c] ..
    const uint32_t bits = ahead >> 2 & 0xffu, x = NibblesOfBits(bits);
    const Branches b = BranchesOf(x, ahead & 3);
    uint32_t w = 0;
    if constexpr (kBits == 2) {  // the bit of its branch in each nibble
      const uint32_t all = __brev(decided.y), odd = b.x1 * 5;
      const uint32_t two = (all & ~odd) | (all >> 1 & odd);
      w = ((two & ~b.flipped) | (two >> 2 & b.flipped)) & 0x11111111u;
    }
    *LevelsAt(reinterpret_cast<std::byte*>(row), o) = LevelsOf(b, w);
    put(o, kBits == 2 ? CodesOfNibbles(x | w << 1) : bits);
  }
}

}  // namespace dyna::cuda
