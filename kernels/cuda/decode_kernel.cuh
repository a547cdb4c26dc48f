// The kernels that read coded tiles, for one head_dim: instantiated by tiles_*.cu.
#pragma once

#include "kernels/cuda/copy_job.cuh"
#include "kernels/cuda/decode_k.cuh"
#include "kernels/cuda/decode_v.cuh"
#include "kernels/cuda/tile_kernels.h"

namespace dyna::cuda {

template <int kGroups>
__global__ void __launch_bounds__(kThreads, kGroups <= 8 ? 5 : 3)
    DecodeTilesK(const TileJob* jobs) {
  extern __shared__ uint4 shared[];
  __shared__ __align__(16) unsigned char job_bytes[sizeof(TileJob)];
  TileJob& job = *reinterpret_cast<TileJob*>(job_bytes);
  CopyJob(jobs + blockIdx.x, &job);
  __syncthreads();
  DecodeK<kGroups>(job, shared);
}

template <int kGroups>
__global__ void __launch_bounds__(kThreads, kGroups <= 8 ? 5 : 2)
    DecodeTilesV(const TileJob* jobs) {
  extern __shared__ uint4 shared[];
  __shared__ __align__(16) unsigned char job_bytes[sizeof(TileJob)];
  TileJob& job = *reinterpret_cast<TileJob*>(job_bytes);
  CopyJob(jobs + blockIdx.x, &job);
  __syncthreads();
  DecodeV<kGroups>(job, shared);
}

template <int kGroups>
bool LaunchCodedDecode(const TileJob* jobs, const TileCounts& count, const LaunchNeeds& needs,
                       CUstream_st* stream) {
  constexpr int kD = 16 * kGroups;
  const int bytes = DecodeBytes(kD, needs.exchange);
  if (bytes > 44 * 1024 &&
      cudaFuncSetAttribute(DecodeTilesK<kGroups>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           bytes) != cudaSuccess)
    return false;
  if (count.k > 0) DecodeTilesK<kGroups><<<count.k, kThreads, bytes, stream>>>(jobs);
  if (count.v > 0)
    DecodeTilesV<kGroups>
        <<<count.v, kThreads, DecodeBytes(kD, false), stream>>>(jobs + count.k);
  return cudaPeekAtLastError() == cudaSuccess;
}

}  // namespace dyna::cuda
