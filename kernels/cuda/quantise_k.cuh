// Quantiser of K: one channel of a tile by the four lanes of a quad (formats 2). Lane q holds rows
// 8 n + 2 q + j, so that the pairwise tree over rows is in the lane down to 8, then two exchanges,
// then the pair; and its 16 codes are neighbours in the order of the planes.
//
// Bytes are those of codec_math.h on every input: where a quicker way is taken than its formula,
// the answer is proved by it or checked with it.
#pragma once

#include "kernels/codec_math.h"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/warp.cuh"

namespace dyna::cuda {

// Which of a lane's 16 rows count: bit 8 j + n is row 8 n + 2 q + j.
struct LaneRows {
  uint64_t counted;
  uint32_t mask;
  int rows;  // of the tile, that count
  bool all;
};
__device__ inline LaneRows RowsOfLane(uint64_t counted, int q) {
  LaneRows l{counted, 0xffff, __popcll(counted), counted == ~uint64_t{0}};
  if (l.all) return l;
  l.mask = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i)
    l.mask |= static_cast<uint32_t>(counted >> (8 * (i & 7) + 2 * q + (i >> 3)) & 1) << i;
  return l;
}

// The pairwise tree over 64 rows; v[8 j + n].
__device__ inline float TreeOfRows(const float (&v)[16]) {
  float t[2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float* a = v + 8 * j;
    t[j] = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
    t[j] += Xor(t[j], 2);
    t[j] += Xor(t[j], 1);
  }
  return t[0] + t[1];
}

// What the lanes of a quad find out about a channel, and what one of them makes of it.
struct ChannelSums {
  float mean = 0, lo = 0, hi = 0;
  float yy = 0, yc = 0, mean_code = 0, cc = 0;  // of width 2
  float energy = 0, error = 0;                  // of the others
  bool bad = false;                             // a value is not finite
};
struct ChannelScale {
  codec::KScale scale;
  float energy = 0, error = 0;
  bool clear = false;  // all codes are 0
};

__device__ inline void LanesOf(const uint32_t (&h)[8], float (&v)[16]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    v[2 * i] = LowF16(h[i]);
    v[2 * i + 1] = HighF16(h[i]);
  }
}

struct LoHi {
  float lo, hi;
};
template <bool kAll>
__device__ inline LoHi RangeOf(const uint32_t (&h)[8], const LaneRows& rows) {
  half2 lo = AsHalf2(h[0]), minus_hi = __hneg2(lo);
  if constexpr (kAll) {
    half2 hi = lo;
#pragma unroll
    for (int i = 1; i < 8; ++i) {
      lo = __hmin2(lo, AsHalf2(h[i]));
      hi = __hmax2(hi, AsHalf2(h[i]));
    }
    minus_hi = __hneg2(hi);
  } else {
    const uint32_t infinite = 0x7c00u;
    lo = minus_hi = AsHalf2(infinite | infinite << 16);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t two = rows.mask >> (2 * i);
      const uint32_t keep = ((two & 1) != 0 ? 0xffffu : 0) | ((two & 2) != 0 ? 0xffff0000u : 0);
      const uint32_t fill = (infinite | infinite << 16) & ~keep;
      lo = __hmin2(lo, AsHalf2((h[i] & keep) | fill));
      minus_hi = __hmin2(minus_hi, AsHalf2(((h[i] ^ 0x80008000u) & keep) | fill));
    }
  }
  half2 both = __hmin2(__halves2half2(__low2half(lo), __low2half(minus_hi)),
                       __halves2half2(__high2half(lo), __high2half(minus_hi)));
  both = __hmin2(both, AsHalf2(Xor(AsBits(both), 1)));
  both = __hmin2(both, AsHalf2(Xor(AsBits(both), 2)));
  if (!kAll && rows.rows == 0) return {0, 0};
  return {__low2float(both), -__high2float(both)};
}

// Does u / step, rounded to f32, reach k of 1..3? For 1 and 2 only where u reaches k step, which is
// exact; 3 also from the quotients that round up to it, those within 2^-23 (a tie is even). The
// remainder of a product is exact where it is small, and its sign always.
__device__ inline bool ReachesCode(float u, float step, int k) {
  return __fmaf_rn(-static_cast<float>(k), step, u) >= (k == 3 ? -0x1p-23f * step : 0.0f);
}

// Codes of width 2, as halves 0..3. The code does not fall as y grows, so it is the number of three
// thresholds that y reaches. Lane k finds the least f16 with code >= k at lo + k step; where it
// is not there (y far smaller than lo), every code is codec_math.h's.
__device__ inline void CoarseCodes(const uint32_t (&h)[8], float lo, float step, int q,
                                   uint32_t (&code)[8]) {
  const int k = q == 0 ? 1 : q;
  // Rounded up twice, which is once: the least f16 that is not below, where lo + k step is exact.
  const uint32_t reach =
      __half_as_ushort(__float2half_ru(__fmaf_ru(static_cast<float>(k), step, lo)));
  const float at = codec::F16ToF32(static_cast<uint16_t>(reach));
  // The next f16 below: less than a unit is taken away.
  const float below = __half2float(__float2half_rd(__fmaf_rn(fabsf(at), -0x1p-12f, at) - 0x1p-26f));
  const bool found = ReachesCode(at - lo, step, k) && !ReachesCode(below - lo, step, k);
  const uint32_t finds = __ballot_sync(0xffffffffu, found);
  const uint32_t t1 = __shfl_sync(0xffffffffu, reach, 1, 4);
  const uint32_t t2 = __shfl_sync(0xffffffffu, reach, 2, 4);
  const uint32_t t3 = __shfl_sync(0xffffffffu, reach, 3, 4);
  if ((finds >> (threadIdx.x & 28) & 15) == 15) {
    const half2 a = AsHalf2(t1 * 0x10001u), b = AsHalf2(t2 * 0x10001u), c = AsHalf2(t3 * 0x10001u);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const half2 y = AsHalf2(h[i]);
      code[i] = AsBits(__hadd2(__hadd2(__hge2(y, a), __hge2(y, b)), __hge2(y, c)));
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < 8; ++i) {
      // The array is indexed by unrolled code only: select instead.
      uint32_t y = 0;
#pragma unroll
      for (int k2 = 0; k2 < 8; ++k2) y = k2 == i ? h[k2] : y;
      const uint32_t both = PackF16(static_cast<float>(codec::CoarseCode(LowF16(y), lo, step)),
                                    static_cast<float>(codec::CoarseCode(HighF16(y), lo, step)));
#pragma unroll
      for (int k2 = 0; k2 < 8; ++k2) code[k2] = k2 == i ? both : code[k2];
    }
  }
}

// Bytes of halves that hold small integers.
__device__ inline uint4 BytesOf(const uint32_t (&code)[8]) {
  uint32_t word[4];
  const half2 magic = AsHalf2(0x64006400u);  // 1024: the integer is then in the low bits
#pragma unroll
  for (int i = 0; i < 4; ++i)
    word[i] = __byte_perm(AsBits(__hadd2(AsHalf2(code[2 * i]), magic)),
                          AsBits(__hadd2(AsHalf2(code[2 * i + 1]), magic)), 0x6420);
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// The low bytes of 16 words.
__device__ inline uint4 BytesOfFloats(const uint32_t (&bits)[16]) {
  uint32_t word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    word[i] = __byte_perm(__byte_perm(bits[4 * i], bits[4 * i + 1], 0x0040),
                          __byte_perm(bits[4 * i + 2], bits[4 * i + 3], 0x0040), 0x5410);
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// Does row i of the lane count?
template <bool kAll>
__device__ inline bool Counts(const LaneRows& rows, int i) {
  return kAll || (rows.mask >> i & 1) != 0;
}
__device__ inline float QuadSum(float v) {
  v += Xor(v, 1);
  return v + Xor(v, 2);
}

template <bool kAll>
__device__ inline uint4 CodeCoarse(const uint32_t (&h)[8], float (&v)[16], const LaneRows& rows,
                                   int q, ChannelSums* sums) {
  const float step = codec::CoarseStep(sums->lo, sums->hi);
  uint32_t code[8];
  CoarseCodes(h, sums->lo, step, q, code);
  if constexpr (!kAll) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      code[i] &= (Counts<false>(rows, 2 * i) ? 0xffffu : 0) |
                 (Counts<false>(rows, 2 * i + 1) ? 0xffff0000u : 0);
  }
  // Sums of small integers are exact in any order.
  half2 sum = AsHalf2(code[0]), square = __hmul2(sum, sum);
#pragma unroll
  for (int i = 1; i < 8; ++i) {
    sum = __hadd2(sum, AsHalf2(code[i]));
    square = __hfma2(AsHalf2(code[i]), AsHalf2(code[i]), square);
  }
  half2 both = __hadd2(__halves2half2(__low2half(sum), __low2half(square)),
                       __halves2half2(__high2half(sum), __high2half(square)));
  both = __hadd2(both, AsHalf2(Xor(AsBits(both), 1)));
  both = __hadd2(both, AsHalf2(Xor(AsBits(both), 2)));
  const float n = kAll ? 64.0f : static_cast<float>(rows.rows);
  const float mean_code = kAll ? __low2float(both) * 0x1p-6f : __low2float(both) / n;
  const float mean = sums->mean;
  float product[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float c = (i & 1) != 0 ? HighF16(code[i / 2]) : LowF16(code[i / 2]);
    const float deviation = Counts<kAll>(rows, i) ? v[i] - mean : 0.0f;
    product[i] = Counts<kAll>(rows, i) ? deviation * (c - mean_code) : 0.0f;
    v[i] = deviation * deviation;
  }
  sums->yy = TreeOfRows(v);
  sums->yc = TreeOfRows(product);
  sums->mean_code = mean_code;
  sums->cc = __high2float(both) - n * mean_code * mean_code;
  return BytesOf(code);
}

// A float whose low byte is a code: this, and the code.
constexpr float kCodeZero = 0x1.8p23f;
// All of a lane's codes of width 4 or 8, by the formula.
__device__ inline void ExactCodes(const float (&v)[16], const codec::KScale& scale, int width,
                                  uint32_t (&bits)[16]) {
#pragma unroll 1
  for (int i = 0; i < 16; ++i) {
    // The arrays are indexed by unrolled code only: select instead.
    float y = 0;
#pragma unroll
    for (int k = 0; k < 16; ++k) y = k == i ? v[k] : y;
    const float code = kCodeZero + static_cast<float>(codec::UniformCode(y, scale, width));
#pragma unroll
    for (int k = 0; k < 16; ++k) bits[k] = k == i ? __float_as_uint(code) : bits[k];
  }
}

// Widths 4 and 8: nearest by a product with the reciprocal, and its remainder is exact: where it
// says that another code is as near, all of the lane's codes are the formula's.
template <bool kAll>
__device__ inline uint4 CodeUniform(const float (&v)[16], const LaneRows& rows, int width,
                                    ChannelSums* sums) {
  const float mean = sums->mean;
  const codec::KScale scale = codec::UniformScale(sums->lo, sums->hi, mean, width);
  const float s = scale.scale, m = scale.offset;
  const float inverse = s == 0 ? 0.0f : __frcp_rn(s), half_step = .5f * s;
  const float magic = kCodeZero, top = static_cast<float>((1 << width) - 1);
  uint32_t bits[16];
  bool unsure = false;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float u = v[i] - m;
    const float t = __fmaf_rn(u, inverse, magic);
    const float c = t - magic;
    const float rest = __fmaf_rn(-c, s, u);
    unsure |= Counts<kAll>(rows, i) && (fabsf(rest) >= half_step || c > top);
    bits[i] = __float_as_uint(t);
  }
  if (unsure) ExactCodes(v, scale, width, bits);
  if constexpr (!kAll) {
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (!Counts<false>(rows, i)) bits[i] = __float_as_uint(kCodeZero);
  }
  float energy = 0, error = 0;
#pragma unroll
  for (int i = 0; i < 16; i += 2) {
    // s code is exact (19 bits): one rounding, as in DecodeK.
    const uint32_t back = PackF16(__fmaf_rn(s, __uint_as_float(bits[i]) - magic, m),
                                  __fmaf_rn(s, __uint_as_float(bits[i + 1]) - magic, m));
    const float e0 = Counts<kAll>(rows, i) ? v[i] - LowF16(back) : 0.0f;
    const float e1 = Counts<kAll>(rows, i + 1) ? v[i + 1] - HighF16(back) : 0.0f;
    const float d0 = Counts<kAll>(rows, i) ? v[i] - mean : 0.0f;
    const float d1 = Counts<kAll>(rows, i + 1) ? v[i + 1] - mean : 0.0f;
    error = __fmaf_rn(e0, e0, __fmaf_rn(e1, e1, error));
    energy = __fmaf_rn(d0, d0, __fmaf_rn(d1, d1, energy));
  }
  sums->energy = QuadSum(energy);
  sums->error = QuadSum(error);
  return BytesOfFloats(bits);
}

// One channel: h[4 j + i] holds rows n = 2 i and 2 i + 1. All 32 lanes call it, with one width and
// each quad with its own channel: quads do not part ways around an exchange, and what a flat
// channel gets is decided by FinishChannel. A bad token goes to `found`.
template <bool kAll>
__device__ inline ChannelSums CodeChannel(const uint32_t (&h)[8], int width, const LaneRows& rows,
                                          uint64_t live, int q, uint4* codes, Found* found) {
  ChannelSums sums;
  float v[16];
  LanesOf(h, v);
  if constexpr (!kAll) {
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (!Counts<false>(rows, i)) v[i] = 0.0f;
  }
  const float sum = TreeOfRows(v);
  if constexpr (kAll) {
    sums.mean = sum * 0x1p-6f;  // exactly sum / 64
  } else {
    sums.mean = rows.rows == 0 ? 0.0f : sum / static_cast<float>(rows.rows);
  }
  sums.bad = !codec::IsFiniteBits(sum);
  if (sums.bad) {  // say which token
#pragma unroll 1
    for (int i = 0; i < 16; ++i) {
      float y = 0;
#pragma unroll
      for (int k = 0; k < 16; ++k) y = k == i ? v[k] : y;
      if (!codec::IsFiniteBits(y))
        FoundBadToken(found, TokenOfRow(live, 8 * (i & 7) + 2 * q + (i >> 3)));
    }
  }
  *codes = make_uint4(0, 0, 0, 0);
  if (width == 0) {
    float energy = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float e = Counts<kAll>(rows, i) ? v[i] - sums.mean : 0.0f;
      energy = __fmaf_rn(e, e, energy);
    }
    sums.energy = QuadSum(energy);
    return sums;
  }
  const LoHi range = RangeOf<kAll>(h, rows);
  sums.lo = range.lo;
  sums.hi = range.hi;
  if (width == 2) {
    *codes = CodeCoarse<kAll>(h, v, rows, q, &sums);
  } else {
    *codes = CodeUniform<kAll>(v, rows, width, &sums);
  }
  return sums;
}

// Scale and offset from what the lanes found. Flags go to `found`.
__device__ inline ChannelScale FinishChannel(const ChannelSums& sums, int width, int rows,
                                             Found* found) {
  ChannelScale out;
  if (sums.bad) return out;
  const float n = static_cast<float>(rows), mean = sums.mean;
  if (width == 0 || sums.lo == sums.hi) {
    out.scale.m_bits = codec::MeanOffset(mean);
    out.scale.offset = codec::F16ToF32(out.scale.m_bits);
    out.energy = width == 0 ? sums.energy : n * (sums.lo - mean) * (sums.lo - mean);
    const float shift = mean - out.scale.offset;
    out.error = out.energy + n * shift * shift;
    out.clear = true;
  } else if (width == 2) {
    out.scale = codec::CoarseScale(sums.yy, sums.yc, mean, sums.mean_code);
    const float s = out.scale.scale;
    // y - y' is (y - mean) - s (code - mean code), and what rounding the offset added.
    const float shift = out.scale.offset - (mean - s * sums.mean_code);
    out.energy = sums.yy;
    out.error = fmaxf(sums.yy - 2 * s * sums.yc + s * s * sums.cc, 0.0f) + n * shift * shift;
    out.clear = s == 0;
    if (out.scale.scale_bits == codec::kAboveLog8) {
      atomicOr(&found->flags, kAboveTop);
      return out;
    }
    if (!codec::IsFiniteBits(codec::DecodeK(0, out.scale)) ||
        !codec::IsFiniteBits(codec::DecodeK(3, out.scale)))
      atomicOr(&found->flags, kBadScale);
  } else {
    out.scale = codec::UniformScale(sums.lo, sums.hi, mean, width);
    out.energy = sums.energy;
    out.error = sums.error;
    out.clear = out.scale.scale == 0;
  }
  if (!codec::IsFiniteBits(out.error) || !codec::IsFiniteBits(out.scale.offset))
    atomicOr(&found->flags, kBadScale);
  return out;
}

}  // namespace dyna::cuda
