// A float as two bf16: what it is rounded to, and what that leaves. Three products of these are
// good to about 2^-16 of the terms, and have the range of f32.
#pragma once

#include "kernels/cuda/warp.cuh"

namespace dyna::cuda {

struct Split {
  uint32_t high, low;  // pairs
};
__device__ inline Split SplitPair(float a, float b) {
  Split s;
  s.high = PackBf16(a, b);
  s.low = PackBf16(a - LowBf16(s.high), b - HighBf16(s.high));
  return s;
}

}  // namespace dyna::cuda
