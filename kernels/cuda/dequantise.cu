// y' and z' alone, as golden and differential tests compare them.
#include <cuda_runtime.h>

#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/tile_kernels.h"

namespace dyna::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    DequantiseTiles(const DequantiseJob* jobs, int head_dim) {
  const DequantiseJob job = jobs[blockIdx.x];
  if (job.is_v == 0) {
    for (int i = threadIdx.x; i < kBlockTokens * head_dim / 2; i += kThreads) {
      const int r = i / (head_dim / 2), c = i % (head_dim / 2) * 2;
      const float2 a = ScaleOf(job.tile, c), b = ScaleOf(job.tile, c + 1);
      const CodePairs pairs =
          PairsOf(job.tile, job.tile.runs, c / 16, c % 8 / 2, codec::TokenSlot(r));
      reinterpret_cast<uint32_t*>(job.out)[i] =
          DecodePair((c & 8) != 0 ? pairs.b : pairs.a, make_float4(a.x, a.y, b.x, b.y));
    }
    return;
  }
  for (int i = threadIdx.x; i < kBlockTokens * head_dim / 4; i += kThreads) {
    const int r = i / (head_dim / 4), c = i % (head_dim / 4) * 4;
    const float gain = GainOf(job.tile, *job.tile.v_exp, codec::TokenSlot(r));
    reinterpret_cast<uint2*>(job.out)[i] =
        QuadOfV(CodesOfV(job.tile), head_dim / 16, job.tile.bits, r, c / 16, c % 16 / 4, gain);
  }
}

}  // namespace

bool LaunchDequantise(const DequantiseJob* jobs, int count, int head_dim, CUstream_st* stream) {
  DequantiseTiles<<<count, kThreads, 0, stream>>>(jobs, head_dim);
  return cudaPeekAtLastError() == cudaSuccess;
}

}  // namespace dyna::cuda
