// Launches by head_dim, and what ends a segment.
#include "kernels/cuda/tile_kernels.h"

#include <cuda_runtime.h>

#include "kernels/segment.h"
#include "kernels/segment_layout.h"

namespace dyna::cuda {

template <int kGroups>
bool LaunchEncodeOf(const TileJob*, int, const LaunchNeeds&, TileResult*, CUstream_st*);
template <int kGroups>
bool LaunchDecodeOf(const TileJob*, int, const LaunchNeeds&, CUstream_st*);

bool LaunchEncode(const TileJob* jobs, int count, int head_dim, const LaunchNeeds& needs,
                  TileResult* results, CUstream_st* stream) {
  switch (head_dim) {
    case 64:
      return LaunchEncodeOf<4>(jobs, count, needs, results, stream);
    case 80:
      return LaunchEncodeOf<5>(jobs, count, needs, results, stream);
    case 96:
      return LaunchEncodeOf<6>(jobs, count, needs, results, stream);
    case 128:
      return LaunchEncodeOf<8>(jobs, count, needs, results, stream);
    case 192:
      return LaunchEncodeOf<12>(jobs, count, needs, results, stream);
    case 256:
      return LaunchEncodeOf<16>(jobs, count, needs, results, stream);
  }
  return false;
}

bool LaunchDecode(const TileJob* jobs, int count, int head_dim, const LaunchNeeds& needs,
                  CUstream_st* stream) {
  switch (head_dim) {
    case 64:
      return LaunchDecodeOf<4>(jobs, count, needs, stream);
    case 80:
      return LaunchDecodeOf<5>(jobs, count, needs, stream);
    case 96:
      return LaunchDecodeOf<6>(jobs, count, needs, stream);
    case 128:
      return LaunchDecodeOf<8>(jobs, count, needs, stream);
    case 192:
      return LaunchDecodeOf<12>(jobs, count, needs, stream);
    case 256:
      return LaunchDecodeOf<16>(jobs, count, needs, stream);
  }
  return false;
}

namespace {

constexpr int kWarps = 4;

__global__ void FinishSegments(const SegmentJob* jobs, int count, const TileResult* results) {
  namespace at = segment_layout;
  const int index = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  if (index >= count) return;
  const SegmentJob job = jobs[index];
  for (uint32_t i = lane; i < job.head_bytes / 16; i += 32)
    reinterpret_cast<uint4*>(job.out)[i] = reinterpret_cast<const uint4*>(job.head)[i];
  for (uint32_t i = job.end / 16 + lane; i < job.bytes / 16; i += 32)
    reinterpret_cast<uint4*>(job.out)[i] = make_uint4(0, 0, 0, 0);
  __syncwarp();
  float lost = 0;
  for (uint32_t i = lane; i < 2 * job.kv_heads; i += 32) {
    const TileResult& r = results[job.first_result + i];
    if (r.energy > 0) lost += r.error / r.energy;
    if ((i & 1) != 0)
      job.out[128 + at::kEntryBytes * (i / 2) + at::kVExpAt] = static_cast<std::byte>(r.v_exp);
  }
  for (int m = 16; m > 0; m /= 2) lost += __shfl_xor_sync(0xffffffffu, lost, m);
  if (lane != 0) return;
  *reinterpret_cast<float*>(job.out + at::kNmseAt) =
      job.nmse_before + lost / static_cast<float>(2 * job.kv_heads);
  if (job.is_estimate == 1 || (job.is_estimate == 2 && lost > 0))
    *reinterpret_cast<uint16_t*>(job.out + at::kFlagsAt) = kSegmentErrorIsEstimate;
}

}  // namespace

bool LaunchFinish(const SegmentJob* jobs, int count, const TileResult* results,
                  CUstream_st* stream) {
  if (count == 0) return true;
  FinishSegments<<<(count + kWarps - 1) / kWarps, 32 * kWarps, 0, stream>>>(jobs, count, results);
  return cudaPeekAtLastError() == cudaSuccess;
}

}  // namespace dyna::cuda
