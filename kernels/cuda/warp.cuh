// Instructions that C++ has no word for, and the small arithmetic of packed halves.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace dyna::cuda {

struct Frag4 {
  uint32_t r[4];
};

// d += a b over k = 16: a is 16 x 16, b 16 x 8, of f16.
__device__ inline void MmaF16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The same of bf16.
__device__ inline void MmaBf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats as f16 or bf16, `low` in the low half; nearest even.
__device__ inline uint32_t PackF16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ inline uint32_t PackBf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ inline half2 AsHalf2(uint32_t bits) { return *reinterpret_cast<half2*>(&bits); }
__device__ inline uint32_t AsBits(half2 h) { return *reinterpret_cast<uint32_t*>(&h); }
__device__ inline float LowF16(uint32_t bits) { return __low2float(AsHalf2(bits)); }
__device__ inline float HighF16(uint32_t bits) { return __high2float(AsHalf2(bits)); }
__device__ inline float LowBf16(uint32_t bits) { return __uint_as_float(bits << 16); }
__device__ inline float HighBf16(uint32_t bits) { return __uint_as_float(bits & 0xffff0000u); }

// Place of the r-th (from 0) bit set in `mask`; 64 if there are fewer.
__device__ inline int SelectBit(uint64_t mask, int r) {
  for (; r > 0 && mask != 0; --r) mask &= mask - 1;
  return mask == 0 ? 64 : __ffsll(static_cast<long long>(mask)) - 1;
}
// How many bits of `mask` are below t.
__device__ inline int RankBit(uint64_t mask, int t) {
  return __popcll(mask & ((uint64_t{1} << t) - 1));
}

template <typename T>
__device__ inline T Xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
__device__ inline float WarpSum(float v) {
#pragma unroll
  for (int m = 16; m > 0; m /= 2) v += Xor(v, m);
  return v;
}

}  // namespace dyna::cuda
