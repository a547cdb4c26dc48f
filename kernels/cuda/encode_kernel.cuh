// The kernels that write coded tiles, for one head_dim: instantiated by tiles_*.cu. K and V are
// kernels of their own: together they do not fit the instruction caches.
#pragma once

#include "kernels/cuda/copy_job.cuh"
#include "kernels/cuda/encode_k.cuh"
#include "kernels/cuda/encode_v.cuh"
#include "kernels/cuda/tile_kernels.h"

namespace dyna::cuda {

template <int kGroups>
__global__ void __launch_bounds__(kThreads, kGroups <= 8 ? 5 : 2)
    EncodeTilesK(const TileJob* jobs, TileResult* results) {
  constexpr int kD = 16 * kGroups;
  extern __shared__ uint4 shared[];
  __shared__ __align__(16) unsigned char job_bytes[sizeof(TileJob)];
  __shared__ Found found;
  __shared__ float columns[4 * kD];
  TileJob& job = *reinterpret_cast<TileJob*>(job_bytes);
  CopyJob(jobs + blockIdx.x, &job);
  if (threadIdx.x == 0) found = {};
  __syncthreads();
  EncodeK<kGroups>(job, shared, columns, &found);
  __syncthreads();
  if (threadIdx.x == 0)
    results[job.result] = {found.flags, found.bad_token, found.energy,
                           found.error, found.x_energy,  0};
}

// A trellis search takes half of a block's warps: seven blocks at once are worth their spills.
template <int kGroups>
__global__ void __launch_bounds__(kThreads, kGroups <= 8 ? 7 : 2)
    EncodeTilesV(const TileJob* jobs, TileResult* results) {
  extern __shared__ uint4 shared[];
  __shared__ __align__(16) unsigned char job_bytes[sizeof(TileJob)];
  __shared__ Found found;
  __shared__ int8_t v_exp;
  TileJob& job = *reinterpret_cast<TileJob*>(job_bytes);
  CopyJob(jobs + blockIdx.x, &job);
  if (threadIdx.x == 0) {
    found = {};
    v_exp = 0;
  }
  __syncthreads();
  EncodeV<kGroups>(job, shared, &found, &v_exp);
  __syncthreads();
  if (threadIdx.x == 0)
    results[job.result] = {found.flags, found.bad_token, found.energy, found.error, 0, v_exp};
}

template <int kGroups>
bool LaunchCodedEncode(const TileJob* jobs, const TileCounts& count, const LaunchNeeds& needs,
                       TileResult* results, CUstream_st* stream) {
  constexpr int kD = 16 * kGroups;
  const int bytes = EncodeKBytes(kD, needs.exchange);
  if (!AllowShared(EncodeTilesK<kGroups>, bytes) ||
      !AllowShared(EncodeTilesV<kGroups>, EncodeVBytes(kD)))
    return false;
  if (count.k > 0) EncodeTilesK<kGroups><<<count.k, kThreads, bytes, stream>>>(jobs, results);
  if (count.v > 0)
    EncodeTilesV<kGroups><<<count.v, kThreads, EncodeVBytes(kD), stream>>>(jobs + count.k, results);
  return cudaPeekAtLastError() == cudaSuccess;
}

}  // namespace dyna::cuda
