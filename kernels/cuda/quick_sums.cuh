// Sums on the tensor cores for a quantiser whose results are rounded to a few bits: how far they
// can be off, so that what a rounding decides is found and done the exact way.
#pragma once

#include "kernels/cuda/warp.cuh"

namespace dyna::cuda {

inline constexpr float kUnit = 0x1p-24f;
// A step of m16n8k16 cuts 17 addends below 2^-24 of the largest and rounds twice: 24 units of the
// largest operand or partial sum at most. Four steps are 96; the rest of 128 is for the roundings
// of the exact way itself.
inline constexpr float kSumError = 128 * kUnit;
// A pairwise tree over 64 in f32, relative to the root of the sum of squares.
inline constexpr float kTreeError = 48 * kUnit;
// Of 16 log2 as computed here, and of the table of LOG8.
inline constexpr float kLogError = 2e-4f;

__device__ inline float ApproxSqrt(float x) {
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}
__device__ inline float ApproxLog2(float x) {
  float log;
  asm("lg2.approx.f32 %0, %1;" : "=f"(log) : "f"(x));
  return log;
}

}  // namespace dyna::cuda
