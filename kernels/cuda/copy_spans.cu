// See copy_spans.h. A warp moves 16 bytes a thread, four times before the first is there.
#include "kernels/cuda/copy_spans.h"

#include <cuda_runtime.h>

#include <algorithm>

namespace dyna::cuda {
namespace {

constexpr int kCopyThreads = 256, kAtOnce = 4;  // 16 KiB of a block are on their way
constexpr int kMostBlocks = 128;                // the rest of the device keeps coding

__global__ void __launch_bounds__(kCopyThreads) CopySpans(const CopySpan* spans, int count) {
  for (int i = blockIdx.x; i < count; i += gridDim.x) {
    const CopySpan span = spans[i];
    const auto* from = reinterpret_cast<const uint4*>(span.from);
    auto* to = reinterpret_cast<uint4*>(span.to);
    const uint64_t words = span.bytes / sizeof(uint4);
    uint64_t at = threadIdx.x;
    for (; at + (kAtOnce - 1) * kCopyThreads < words; at += kAtOnce * kCopyThreads) {
      uint4 v[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) v[k] = __ldcs(from + at + k * kCopyThreads);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) __stcs(to + at + k * kCopyThreads, v[k]);
    }
    for (; at < words; at += kCopyThreads) __stcs(to + at, __ldcs(from + at));
  }
}

}  // namespace

bool LaunchCopySpans(const CopySpan* spans, int count, CUstream_st* stream) {
  if (count == 0) return true;
  CopySpans<<<std::min(count, kMostBlocks), kCopyThreads, 0, stream>>>(spans, count);
  return cudaPeekAtLastError() == cudaSuccess;
}

}  // namespace dyna::cuda
