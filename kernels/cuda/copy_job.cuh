// A job's description to shared memory: every thread of the block reads all of it.
#pragma once

#include "kernels/cuda/tile_job.h"

namespace dyna::cuda {

__device__ inline void CopyJob(const TileJob* from, TileJob* to) {
  static_assert(sizeof(TileJob) % 8 == 0);
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(TileJob) / 8); i += kThreads)
    reinterpret_cast<unsigned long long*>(to)[i] =
        __ldg(reinterpret_cast<const unsigned long long*>(from) + i);
}

}  // namespace dyna::cuda
