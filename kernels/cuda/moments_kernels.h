// Second moments on a device (policy 2): sums over tiles of 64 rows, as upper triangles.
#pragma once

#include <cstdint>

#include "kernels/cuda/tile_job.h"

struct CUstream_st;

namespace dyna::cuda {

// 64 rows of one head; what stands in `rows` needs no alignment beyond its elements' own.
struct MomentTile {
  Rows rows;
  const Turn* table = nullptr;  // [64][pairs] of positions 0..63; null: nothing is turned back
  const Turn* base = nullptr;   // [pairs] of the first row's position
  uint64_t present = 0;         // rows that are read: one that is not finite is refused
  uint64_t counted = 0;         // of those, the ones that count
  uint16_t pairs = 0;
  RopeKind rope = RopeKind::kNone;
  DType dtype = DType::kBf16;  // f32, f16 or bf16
};
// One thread block adds tiles, in their order.
struct MomentSum {
  uint32_t first = 0, count = 0;  // tiles
};
// Sums of head_dim `d` (a multiple of 16, up to 256).
struct MomentLaunch {
  const MomentTile* tiles = nullptr;
  const MomentSum* sums = nullptr;
  int count = 0;  // of sums
  int d = 0;
  bool centred = false;  // about each tile's own mean
  float* out = nullptr;  // [count][stride]: sum of x [d] (where centred), then the triangle
  int stride = 0;
  uint32_t* bad = nullptr;  // [tiles], zeroed before: 64 - the first row that is not finite
};
// Asynchronous. False: the launch itself failed.
bool LaunchMoments(const MomentLaunch& launch, CUstream_st* stream);

}  // namespace dyna::cuda
