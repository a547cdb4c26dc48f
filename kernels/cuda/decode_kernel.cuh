// The kernel that reads tiles, for one head_dim: instantiated by tiles_*.cu.
#pragma once

#include "kernels/cuda/copy_job.cuh"
#include "kernels/cuda/decode_k.cuh"
#include "kernels/cuda/decode_v.cuh"
#include "kernels/cuda/other_kinds.cuh"
#include "kernels/cuda/tile_kernels.h"

namespace dyna::cuda {

template <int kGroups>
__global__ void __launch_bounds__(kThreads, kGroups <= 8 ? 4 : 2)
    DecodeTiles(const TileJob* jobs) {
  constexpr int kD = 16 * kGroups;
  extern __shared__ uint4 shared[];
  __shared__ __align__(16) unsigned char job_bytes[sizeof(TileJob)];
  TileJob& job = *reinterpret_cast<TileJob*>(job_bytes);
  CopyJob(jobs + blockIdx.x, &job);
  __syncthreads();
  if (job.op == TileOp::kCodedK) return DecodeK<kGroups>(job, shared);
  if (job.op == TileOp::kCodedV) return DecodeV<kGroups>(job, shared);
  DecodeOther(job, kD, reinterpret_cast<float*>(shared));
  RestorePins(job, kD);
}

template <int kGroups>
bool LaunchDecodeOf(const TileJob* jobs, int count, const LaunchNeeds& needs,
                    CUstream_st* stream) {
  constexpr int kD = 16 * kGroups;
  const int bytes = DecodeBytes(kD, needs.exchange);
  if (bytes > 48 * 1024 - 4096 &&
      cudaFuncSetAttribute(DecodeTiles<kGroups>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           bytes) != cudaSuccess)
    return false;
  DecodeTiles<kGroups><<<count, kThreads, bytes, stream>>>(jobs);
  return cudaPeekAtLastError() == cudaSuccess;
}

}  // namespace dyna::cuda
