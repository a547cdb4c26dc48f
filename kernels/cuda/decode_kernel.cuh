// The kernels that read coded tiles, for one head_dim: instantiated by tiles_*.cu.
#pragma once

#include "kernels/cuda/copy_job.cuh"
#include "kernels/cuda/decode_k.cuh"
#include "kernels/cuda/decode_v.cuh"
#include "kernels/cuda/tile_kernels.h"

namespace dyna::cuda {

template <int kGroups>
__global__ void __launch_bounds__(kThreads, kGroups <= 8 ? 5 : 3)
    DecodeTilesK(const TileJob* jobs, int staged_at) {
  extern __shared__ uint4 shared[];
  __shared__ __align__(16) unsigned char job_bytes[sizeof(TileJob)];
  TileJob& job = *reinterpret_cast<TileJob*>(job_bytes);
  CopyJob(jobs + blockIdx.x, &job);
  __syncthreads();
  DecodeK<kGroups>(job, shared, reinterpret_cast<std::byte*>(shared) + staged_at);
}

template <int kGroups>
__global__ void __launch_bounds__(kThreads, kGroups <= 8 ? 5 : 2)
    DecodeTilesV(const TileJob* jobs, int staged_at) {
  extern __shared__ uint4 shared[];
  __shared__ __align__(16) unsigned char job_bytes[sizeof(TileJob)];
  TileJob& job = *reinterpret_cast<TileJob*>(job_bytes);
  CopyJob(jobs + blockIdx.x, &job);
  __syncthreads();
  DecodeV<kGroups>(job, shared, reinterpret_cast<std::byte*>(shared) + staged_at);
}

template <int kGroups>
bool LaunchCodedDecode(const TileJob* jobs, const TileCounts& count, const LaunchNeeds& needs,
                       CUstream_st* stream) {
  constexpr int kD = 16 * kGroups;
  const int k_at = DecodeBytes(kD, needs.exchange), v_at = DecodeVBytes(kD);
  const int k_shared = k_at + needs.k_bytes;
  if (!AllowShared(DecodeTilesK<kGroups>, k_shared) ||
      !AllowShared(DecodeTilesV<kGroups>, v_at + needs.v_bytes))
    return false;
  if (count.k > 0) DecodeTilesK<kGroups><<<count.k, kThreads, k_shared, stream>>>(jobs, k_at);
  if (count.v > 0)
    DecodeTilesV<kGroups>
        <<<count.v, kThreads, v_at + needs.v_bytes, stream>>>(jobs + count.k, v_at);
  return cudaPeekAtLastError() == cudaSuccess;
}

}  // namespace dyna::cuda
