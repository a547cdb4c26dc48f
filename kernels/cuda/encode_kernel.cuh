// The kernel that writes tiles, for one head_dim: instantiated by tiles_*.cu.
#pragma once

#include "kernels/cuda/copy_job.cuh"
#include "kernels/cuda/encode_k.cuh"
#include "kernels/cuda/encode_v.cuh"
#include "kernels/cuda/other_kinds.cuh"
#include "kernels/cuda/tile_kernels.h"

namespace dyna::cuda {

template <int kGroups>
__global__ void __launch_bounds__(kThreads, kGroups <= 8 ? 4 : 2)
    EncodeTiles(const TileJob* jobs, TileResult* results) {
  constexpr int kD = 16 * kGroups;
  extern __shared__ uint4 shared[];
  __shared__ __align__(16) unsigned char job_bytes[sizeof(TileJob)];
  __shared__ Found found;
  __shared__ float column[kD];
  __shared__ int8_t v_exp;
  TileJob& job = *reinterpret_cast<TileJob*>(job_bytes);
  CopyJob(jobs + blockIdx.x, &job);
  if (threadIdx.x == 0) {
    found = {};
    v_exp = 0;
  }
  for (int c = threadIdx.x; c < kD; c += kThreads) column[c] = 0;
  __syncthreads();
  switch (job.op) {
    case TileOp::kCodedK:
      EncodeK<kGroups>(job, shared, column, &found);
      break;
    case TileOp::kCodedV:
      EncodeV<kGroups>(job, shared, &found, &v_exp);
      break;
    case TileOp::kMean:
      EncodeMean(job, kD, reinterpret_cast<float*>(shared), &found);
      break;
    case TileOp::kFp8:
      EncodeFp8(job, kD, reinterpret_cast<float*>(shared), &found);
      break;
    case TileOp::kRaw:
      if (job.from.at != nullptr) {
        NarrowRaw(job, kD);
        break;
      }
      EncodeRaw(job, kD);
      break;
    case TileOp::kNone:  // loses all that it held
      EncodeRaw(job, kD);
      if (threadIdx.x == 0) found.energy = found.error = 1;
      break;
    case TileOp::kCopy:
      CopyTile(job, &v_exp);
      break;
  }
  __syncthreads();
  if (threadIdx.x == 0)
    results[job.result] = {found.flags, found.bad_token, found.energy, found.error,
                           found.x_energy, v_exp};
}

template <int kGroups>
bool LaunchEncodeOf(const TileJob* jobs, int count, const LaunchNeeds& needs, TileResult* results,
                    CUstream_st* stream) {
  constexpr int kD = 16 * kGroups;
  int bytes = EncodeKBytes(kD, needs.exchange);
  if (bytes < EncodeVBytes(kD)) bytes = EncodeVBytes(kD);
  if (needs.staged && bytes < StagedBytes(kD)) bytes = StagedBytes(kD);
  if (bytes > 48 * 1024 - 4096 &&
      cudaFuncSetAttribute(EncodeTiles<kGroups>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           bytes) != cudaSuccess)
    return false;
  EncodeTiles<kGroups><<<count, kThreads, bytes, stream>>>(jobs, results);
  return cudaPeekAtLastError() == cudaSuccess;
}

}  // namespace dyna::cuda
