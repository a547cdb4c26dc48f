// The launches over tiles, for every head_dim: what the host code of this folder calls.
#pragma once

#include <cstddef>

#include "kernels/cuda/tile_job.h"

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace dyna::cuda {

// What a launch must have room for besides the plain kinds.
struct LaunchNeeds {
  bool staged = false;           // fp8 or the mean of V
  bool exchange = false;         // a rope whose pairs do not turn in registers
  bool basis = false;            // K of a level
  int k_bytes = 0, v_bytes = 0;  // of the largest coded tile
};

// Jobs of a launch lie one after the other: coded K, coded V, then what is copied.
struct TileCounts {
  int k = 0, v = 0, other = 0;
};

// One thread block a job. `jobs` and `results` are device memory. Asynchronous; false: a launch
// itself failed (cudaGetLastError has it). REQUIRES HasKernels(head_dim).
bool LaunchEncode(const TileJob* jobs, const TileCounts& count, int head_dim,
                  const LaunchNeeds& needs, TileResult* results, CUstream_st* stream);
bool LaunchDecode(const TileJob* jobs, const TileCounts& count, int head_dim,
                  const LaunchNeeds& needs, CUstream_st* stream);

// One warp a segment: header and directory, v_exp, the mean error and the padding.
bool LaunchFinish(const SegmentJob* jobs, int count, const TileResult* results,
                  CUstream_st* stream);

// y' or z' of one tile by row, f16 bits [64][head_dim] (device), for any head_dim; `tile` as a
// decode has it, `runs` and `v_exp` in device memory. `is_v` chooses which.
struct DequantiseJob {
  CodedTile tile;
  uint16_t* out = nullptr;
  uint32_t is_v = 0;
};
bool LaunchDequantise(const DequantiseJob* jobs, int count, int head_dim, CUstream_st* stream);

// Head sizes that have kernels; others stay on the CPU.
constexpr bool HasKernels(int head_dim) {
  return head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128 || head_dim == 192 ||
         head_dim == 256;
}

}  // namespace dyna::cuda
