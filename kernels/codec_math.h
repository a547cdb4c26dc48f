// The quantiser's formulas (formats 2), once, for every backend: plain C++ on the host, and
// __host__ __device__ under nvcc. Given f16 values in, codes, scales and values out are bit-exact:
// round to nearest even, IEEE division and square root, no contraction, no libm, fixed sums.
//
// Compile users with -ffp-contract=off (nvcc: --fmad=false) and never with fast-math.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define DYNA_HD __host__ __device__
#else
#define DYNA_HD
#endif
// A table that a device function indexes at run time must live on the device.
#if defined(__CUDA_ARCH__)
#define DYNA_TABLE static __device__ constexpr
#else
#define DYNA_TABLE inline constexpr
#endif

namespace dyna::codec {

// ---- f16, bf16, e4m3 as bits

DYNA_HD inline float F16ToF32(uint16_t h) {
#if defined(__CUDA_ARCH__)  // one instruction, and exact
  float exact;
  asm("cvt.f32.f16 %0, %1;" : "=f"(exact) : "h"(h));
  return exact;
#else
  uint32_t bits = (h & 0x7fffu) << 13;
  const uint32_t exponent = bits & 0x0f800000u;
  bits += 112u << 23;
  if (exponent == 0x0f800000u) bits += 112u << 23;  // infinity and NaN
  float value = std::bit_cast<float>(exponent == 0 ? bits + (1u << 23) : bits);
  if (exponent == 0) value -= 0x1p-14f;  // subnormal: exact
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | (h & 0x8000u) << 16);
#endif
}

// Nearest even; 65,520 and above become infinity, every NaN 0x7e00 with its sign.
DYNA_HD inline uint16_t F32ToF16(float f) {
#if defined(__CUDA_ARCH__)  // the same but for the bits of a NaN, which is never stored
  uint16_t nearest;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(nearest) : "f"(f));
  return nearest;
#else
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t a = bits & 0x7fffffffu;
  uint32_t h;
  if (a < 0x38800000u) {  // below 2^-14: one unit of the sum is 2^-24
    h = std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0.5f) - 0x3f000000u;
  } else if (a < 0x47800000u) {
    h = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
  } else {
    h = a > 0x7f800000u ? 0x7e00u : 0x7c00u;
  }
  return static_cast<uint16_t>(h | sign);
#endif
}

DYNA_HD inline float RoundF16(float f) { return F16ToF32(F32ToF16(f)); }
DYNA_HD inline bool IsFiniteBits(float f) {
  return (std::bit_cast<uint32_t>(f) & 0x7f800000u) != 0x7f800000u;
}

DYNA_HD inline float Bf16ToF32(uint16_t b) {
  return std::bit_cast<float>(static_cast<uint32_t>(b) << 16);
}
DYNA_HD inline uint16_t F32ToBf16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

DYNA_HD inline float E4m3ToF32(uint8_t e) {
  const uint32_t exponent = (e >> 3) & 15u, mantissa = e & 7u;
  float value;
  if (exponent == 15 && mantissa == 7) {
    value = std::bit_cast<float>(0x7fc00000u);
  } else if (exponent == 0) {
    value = static_cast<float>(mantissa) * 0x1p-9f;
  } else {
    value = std::bit_cast<float>((exponent + 120u) << 23 | mantissa << 20);
  }
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | (e & 0x80u) << 24);
}
// Nearest even, saturating at 448. REQUIRES a finite f.
DYNA_HD inline uint8_t F32ToE4m3(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const uint32_t sign = (bits >> 24) & 0x80u;
  uint32_t a = bits & 0x7fffffffu;
  uint32_t e;
  if (a < 0x3c800000u) {  // below 2^-6: one unit of the sum is 2^-9
    e = std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0x1p14f) - 0x46800000u;
  } else {
    a = a - (120u << 23) + 0x7ffffu + ((a >> 20) & 1u);
    e = a >> 20;
    if (e > 0x7eu) e = 0x7eu;
  }
  return static_cast<uint8_t>(e | sign);
}
inline constexpr float kE4m3Max = 448.0f;
DYNA_HD inline float Fp8Scale(float amax) {
  const float scale = amax / kE4m3Max;
  return scale > 0 ? scale : 1.0f;
}

// ---- rounding to integers without libm (exact for |x| < 2^22, which every use is far below)

DYNA_HD inline int Clamp(int v, int lo, int hi) { return v < lo ? lo : v > hi ? hi : v; }
// Clamps first, so that the conversion is always defined.
DYNA_HD inline int RoundClamped(float x, int lo, int hi) {
  x = x < static_cast<float>(lo) ? static_cast<float>(lo) : x;
  x = x > static_cast<float>(hi) ? static_cast<float>(hi) : x;
  const float magic = 0x1.8p23f;  // nearest even by addition
  return static_cast<int>((x + magic) - magic);
}
DYNA_HD inline int FloorClamped(float x, int lo, int hi) {
  x = x < static_cast<float>(lo) ? static_cast<float>(lo) : x;
  x = x > static_cast<float>(hi) ? static_cast<float>(hi) : x;
  const int i = static_cast<int>(x);
  return i - (static_cast<float>(i) > x ? 1 : 0);
}

// ---- LOG8 and LOG8E: sixteenths of a doubling, without log2

DYNA_TABLE float kLog8Power[16] = {
    // 2^(i / 16)
    0x1.000000p+0f, 0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f, 0x1.306fe0p+0f, 0x1.3dea64p+0f,
    0x1.4bfdaep+0f, 0x1.5ab07ep+0f, 0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f,
    0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f,
};
DYNA_TABLE float kLog8Middle[16] = {
    // 2^((i + 1/2) / 16)
    0x1.059b0ep+0f, 0x1.11301ep+0f, 0x1.1d4874p+0f, 0x1.29e9e0p+0f, 0x1.371a74p+0f, 0x1.44e086p+0f,
    0x1.5342b6p+0f, 0x1.6247ecp+0f, 0x1.71f75ep+0f, 0x1.82589ap+0f, 0x1.93737cp+0f, 0x1.a5503cp+0f,
    0x1.b7f770p+0f, 0x1.cb720ep+0f, 0x1.dfc974p+0f, 0x1.f50766p+0f,
};

DYNA_HD inline int Exponent(float positive) {
  return static_cast<int>(std::bit_cast<uint32_t>(positive) >> 23) - 127;
}
// 2^e, e in -126..127.
DYNA_HD inline float Power2(int e) {
  return std::bit_cast<float>(static_cast<uint32_t>(e + 127) << 23);
}
// round(16 log2 x) of a positive normal x.
DYNA_HD inline int Sixteenths(float x) {
  const float mantissa =
      std::bit_cast<float>((std::bit_cast<uint32_t>(x) & 0x007fffffu) | 0x3f800000u);
  int count = 0;
  for (int i = 0; i < 16; ++i) count += kLog8Middle[i] <= mantissa ? 1 : 0;
  return 16 * Exponent(x) + count;
}
DYNA_HD inline float PowerOfSixteenths(int sixteenths) {
  return kLog8Power[sixteenths & 15] * Power2(sixteenths >> 4);
}

inline constexpr int kLog8Bias = 160;
inline constexpr int kLog8eBias = 255;
inline constexpr int kAboveLog8 = 256;
// The byte, or kAboveLog8 when g is above the top. REQUIRES g > 0.
DYNA_HD inline int Log8Encode(float g) {
  const int e = Sixteenths(g) + kLog8Bias;
  return e < 1 ? 1 : e > 255 ? kAboveLog8 : e;
}
DYNA_HD inline float Log8Decode(int e) { return e == 0 ? 0.0f : PowerOfSixteenths(e - kLog8Bias); }

// ceil(log2(max_gain)), 0 for 0: the exponent of a V tile.
DYNA_HD inline int GainExponent(float max_gain) {
  if (!(max_gain > 0)) return 0;
  return Exponent(max_gain) + ((std::bit_cast<uint32_t>(max_gain) & 0x007fffffu) != 0 ? 1 : 0);
}
DYNA_HD inline uint8_t Log8eEncode(float g, int v_exp) {
  if (!(g > 0)) return 0;
  return static_cast<uint8_t>(Clamp(Sixteenths(g * Power2(-v_exp)) + kLog8eBias, 1, 255));
}
DYNA_HD inline float Log8eDecode(int e, int v_exp) {
  return e == 0 ? 0.0f : PowerOfSixteenths(e - kLog8eBias) * Power2(v_exp);
}

// ---- sums: pairwise trees over position, padded with +0 to a power of two

DYNA_HD constexpr int TreeSize(int n) {
  int size = 1;
  while (size < n) size *= 2;
  return size;
}
// Sum of value(0) .. value(n - 1) as the tree with halves n/2, .. 1: the same tree as adding
// element i + n/2 to element i in place, then i + n/4, and so on.
template <typename F>
DYNA_HD inline float TreeSum(int n, const F& value, int first = 0, int step = 1, int size = 0) {
  if (size == 0) size = TreeSize(n);
  if (step >= size) return first < n ? value(first) : 0.0f;
  return TreeSum(n, value, first, 2 * step, size) + TreeSum(n, value, first + step, 2 * step, size);
}

// ---- K, per channel over the rows that count

struct KScale {
  float scale = 0;   // as decoded
  float offset = 0;  // m, rounded to f16
  uint16_t m_bits = 0;
  int scale_bits = 0;  // f16, or the LOG8 byte, or kAboveLog8
};

// Widths 8 and 4. Offsets are never -0 (the + 0): which zero a minimum finds is not defined.
DYNA_HD inline KScale UniformScale(float lo, float hi, float mean, int width) {
  KScale k;
  const uint16_t s = F32ToF16((hi - lo) / static_cast<float>((1 << width) - 1));
  k.m_bits = F32ToF16((s == 0 ? mean : lo) + 0.0f);
  k.offset = F16ToF32(k.m_bits);
  k.scale = F16ToF32(s);
  k.scale_bits = s;
  return k;
}
DYNA_HD inline int UniformCode(float y, const KScale& k, int width) {
  if (k.scale == 0) return 0;
  return RoundClamped((y - k.offset) / k.scale, 0, (1 << width) - 1);
}

// Width 2, before its gain: the step, and the code of a value. hi > lo.
DYNA_HD inline float CoarseStep(float lo, float hi) { return (hi - lo) / 4.0f; }
DYNA_HD inline int CoarseCode(float y, float lo, float step) {
  return FloorClamped((y - lo) / step, 0, 3);
}
// `yy`: sum (y - mean)^2, `yc`: sum (y - mean)(code - mean code). Scale 0 where yc is not positive
// (rounding of a nearly constant channel): codes are then 0.
DYNA_HD inline KScale CoarseScale(float yy, float yc, float mean, float mean_code) {
  KScale k;
  if (yc > 0 && yy > 0) k.scale_bits = Log8Encode(yy / yc);
  k.scale = k.scale_bits == kAboveLog8 ? 0.0f : Log8Decode(k.scale_bits);
  k.m_bits = F32ToF16((mean - k.scale * mean_code) + 0.0f);
  k.offset = F16ToF32(k.m_bits);
  return k;
}
DYNA_HD inline uint16_t MeanOffset(float mean) { return F32ToF16(mean + 0.0f); }  // width 0
DYNA_HD inline float DecodeK(int code, const KScale& k) {
  return RoundF16(k.scale * static_cast<float>(code) + k.offset);
}

// ---- V, per token over the channels of z = H v

// 4 and 8 bits; 1 and 2 are trellis-coded: trellis.h.

// Step of the codes before the gain. REQUIRES max_abs > 0.
DYNA_HD inline float VStep(int bits, float max_abs) {
  return 2.0f * max_abs / static_cast<float>(1 << bits);
}
// The stored code: 0 .. 2^b - 1.
DYNA_HD inline int VCode(float z, int bits, float step) {
  const int half = 1 << (bits - 1);
  return FloorClamped(z / step, -half, half - 1) + half;
}
DYNA_HD inline float VUnit(int stored, int bits) {
  return static_cast<float>(stored - (1 << (bits - 1))) + 0.5f;
}
// At every width. Unbiased: <z, z'> = <z, z>, capped where that would make the error exceed zz.
DYNA_HD inline float VGain(float sum_zz, float sum_zu, float sum_uu) {
  if (!(sum_zu > 0)) return 0;  // a trellis may have had no better path
  const float unbiased = sum_zz / sum_zu, capped = 2.0f * sum_zu / sum_uu;
  return unbiased < capped ? unbiased : capped;
}
DYNA_HD inline float DecodeV(float unit, float gain) { return RoundF16(gain * unit); }

// ---- packing (formats 3 and 4)

// Position of token t in every list over tokens.
DYNA_HD constexpr int TokenSlot(int t) { return (t & 7) * 8 + (t >> 3); }
// Channels of one plane of a K run.
DYNA_HD constexpr int PlaneChannels(int run, int width) {
  return run < 32 / width ? run : 32 / width;
}
// Bit of channel k in an element of n channels.
DYNA_HD constexpr int PlaneBit(int k, int n, int width) {
  return width == 8 ? 8 * k : (n * width / 2) * (k & 1) + width * (k >> 1);
}
// Byte of the 32-bit word of (row, channel) in the codes of a V tile, and its bit there.
DYNA_HD constexpr int VWordByte(int row, int c, int d, int bits) {
  return ((row >> 3) * (d / 16) + c / 16) * 16 * bits + ((row >> 1) & 3) * 4 * bits +
         4 * ((c % 16) / (16 / bits));
}
DYNA_HD constexpr int VWordBit(int row, int c, int bits) {
  return 16 * (row & 1) + bits * ((c % 16) % (16 / bits));
}

// The power of two n of the block-diagonal Walsh-Hadamard over d.
DYNA_HD constexpr int HadamardSize(int d) { return d & -d; }

}  // namespace dyna::codec
