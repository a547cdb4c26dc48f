// Orthonormal Walsh-Hadamard over d (formats 1): 16 channels at a time on the tensor cores, whose
// operand of +-1 is made from the lane's number; the rest as sums between groups of 16 in f32.
#pragma once

#include "kernels/codec_math.h"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/warp.cuh"

namespace dyna::cuda {

// Sign bit of entry (a, b), at bit 15.
__device__ inline uint32_t HadamardSign(int a, int b) {
  return static_cast<uint32_t>(__popc(static_cast<unsigned>(a & b)) & 1) << 15;
}
// Operand B (16 x 8) of the e-th n-tile of a group: row channels in, output channels out. `one`:
// the bits of 1 in the operand's type.
__device__ inline void HadamardOperandB(int g, int q, int e, uint32_t one, uint32_t (&b)[2]) {
  const int out = OutChannel(e, g);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    b[i] = (one | HadamardSign(RowChannel(q, 2 * i), out)) |
           (one | HadamardSign(RowChannel(q, 2 * i + 1), out)) << 16;
}

// The levels between groups of 16, and the scale: z[G][i], each i by itself.
template <int kGroups, int kValues>
__device__ inline void HadamardGroups(float (&z)[kGroups][kValues]) {
  constexpr int kBlock = codec::HadamardSize(16 * kGroups) / 16;
#pragma unroll
  for (int level = 1; level < kBlock; level *= 2) {
#pragma unroll
    for (int G = 0; G < kGroups; ++G) {
      if ((G & level) != 0) continue;
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const float u = z[G][i], v = z[G + level][i];
        z[G][i] = u + v;
        z[G + level][i] = u - v;
      }
    }
  }
  const float scale = 1.0f / sqrtf(static_cast<float>(16 * kBlock));
#pragma unroll
  for (int G = 0; G < kGroups; ++G)
#pragma unroll
    for (int i = 0; i < kValues; ++i) z[G][i] *= scale;
}

}  // namespace dyna::cuda
