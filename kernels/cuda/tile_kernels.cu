// Launches by head_dim, and what ends a segment.
#include "kernels/cuda/tile_kernels.h"

#include <cuda_runtime.h>

#include "kernels/cuda/copy_job.cuh"
#include "kernels/cuda/other_kinds.cuh"
#include "kernels/segment.h"
#include "kernels/segment_layout.h"

namespace dyna::cuda {

template <int kGroups>
bool LaunchCodedEncode(const TileJob*, const TileCounts&, const LaunchNeeds&, TileResult*,
                       CUstream_st*);
template <int kGroups>
bool LaunchCodedDecode(const TileJob*, const TileCounts&, const LaunchNeeds&, CUstream_st*);

namespace {

__global__ void __launch_bounds__(kThreads)
    EncodeOthers(const TileJob* jobs, int d, TileResult* results) {
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
  auto* staged = reinterpret_cast<float*>(shared);
  if (job.op == TileOp::kMean) EncodeMean(job, d, staged, &found);
  if (job.op == TileOp::kFp8) EncodeFp8(job, d, staged, &found);
  if (job.op == TileOp::kRaw && job.from.at != nullptr) NarrowRaw(job, d);
  if ((job.op == TileOp::kRaw && job.from.at == nullptr) || job.op == TileOp::kNone)
    EncodeRaw(job, d);
  if (job.op == TileOp::kNone && threadIdx.x == 0) found.energy = found.error = 1;  // loses all
  if (job.op == TileOp::kCopy) CopyTile(job, &v_exp);
  __syncthreads();
  if (threadIdx.x == 0)
    results[job.result] = {found.flags, found.bad_token, found.energy, found.error, 0, v_exp};
}

__global__ void __launch_bounds__(kThreads) DecodeOthers(const TileJob* jobs, int d) {
  __shared__ float mean[kMaxHeadDim];
  __shared__ __align__(16) unsigned char job_bytes[sizeof(TileJob)];
  TileJob& job = *reinterpret_cast<TileJob*>(job_bytes);
  CopyJob(jobs + blockIdx.x, &job);
  __syncthreads();
  DecodeOther(job, d, mean);
  RestorePins(job, d);
}

bool LaunchCodedEncodeOf(const TileJob* jobs, const TileCounts& count, int head_dim,
                         const LaunchNeeds& needs, TileResult* results, CUstream_st* stream) {
  switch (head_dim) {
    case 64:
      return LaunchCodedEncode<4>(jobs, count, needs, results, stream);
    case 80:
      return LaunchCodedEncode<5>(jobs, count, needs, results, stream);
    case 96:
      return LaunchCodedEncode<6>(jobs, count, needs, results, stream);
    case 128:
      return LaunchCodedEncode<8>(jobs, count, needs, results, stream);
    case 192:
      return LaunchCodedEncode<12>(jobs, count, needs, results, stream);
    case 256:
      return LaunchCodedEncode<16>(jobs, count, needs, results, stream);
  }
  return false;
}

bool LaunchCodedDecodeOf(const TileJob* jobs, const TileCounts& count, int head_dim,
                         const LaunchNeeds& needs, CUstream_st* stream) {
  switch (head_dim) {
    case 64:
      return LaunchCodedDecode<4>(jobs, count, needs, stream);
    case 80:
      return LaunchCodedDecode<5>(jobs, count, needs, stream);
    case 96:
      return LaunchCodedDecode<6>(jobs, count, needs, stream);
    case 128:
      return LaunchCodedDecode<8>(jobs, count, needs, stream);
    case 192:
      return LaunchCodedDecode<12>(jobs, count, needs, stream);
    case 256:
      return LaunchCodedDecode<16>(jobs, count, needs, stream);
  }
  return false;
}

}  // namespace

bool LaunchEncode(const TileJob* jobs, const TileCounts& count, int head_dim,
                  const LaunchNeeds& needs, TileResult* results, CUstream_st* stream) {
  if (count.k + count.v > 0 && !LaunchCodedEncodeOf(jobs, count, head_dim, needs, results, stream))
    return false;
  if (count.other == 0) return true;
  const int bytes = needs.staged ? StagedBytes(head_dim) : 0;
  if (!AllowShared(EncodeOthers, bytes)) return false;
  EncodeOthers<<<count.other, kThreads, bytes, stream>>>(jobs + count.k + count.v, head_dim,
                                                         results);
  return cudaPeekAtLastError() == cudaSuccess;
}

bool LaunchDecode(const TileJob* jobs, const TileCounts& count, int head_dim,
                  const LaunchNeeds& needs, CUstream_st* stream) {
  if (count.k + count.v > 0 && !LaunchCodedDecodeOf(jobs, count, head_dim, needs, stream))
    return false;
  if (count.other == 0) return true;
  DecodeOthers<<<count.other, kThreads, 0, stream>>>(jobs + count.k + count.v, head_dim);
  return cudaPeekAtLastError() == cudaSuccess;
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
