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

// Lets a kernel have `bytes` of shared memory at a launch, where that is more than everybody may.
template <typename Kernel>
bool AllowShared(Kernel* kernel, int bytes) {
  return bytes <= 44 * 1024 ||
         cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) ==
             cudaSuccess;
}

// A tile's bytes to shared memory, all on their way at once; there after WaitForTile and a barrier.
__device__ inline void StageTile(const std::byte* from, uint32_t bytes, std::byte* to) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  for (uint32_t i = 16 * threadIdx.x; i < bytes; i += 16 * kThreads)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at + i), "l"(from + i)
                 : "memory");
}
__device__ inline void WaitForTile() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace dyna::cuda
