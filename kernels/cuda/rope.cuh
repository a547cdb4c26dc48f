// Rotary pairs of one row in a lane's registers: x[G][i] is channel 16 G + 4 q + i. The tables are
// the host's (formats 7); the block's base and the token's own angle are combined here, in f32.
#pragma once

#include "kernels/cuda/tile_job.h"
#include "kernels/cuda/warp.cuh"

namespace dyna::cuda {

struct Angles {
  float cos, sin;
};
__device__ inline Angles Combine(float bc, float bs, float tc, float ts) {
  return {__fmaf_rn(bc, tc, -(bs * ts)), __fmaf_rn(bs, tc, bc * ts)};
}
// Turns (u, v) by the angle, or back.
__device__ inline void TurnPair(const Angles& a, bool undo, float* u, float* v) {
  const float s = undo ? -a.sin : a.sin;
  const float x = *u, y = *v;
  *u = __fmaf_rn(x, a.cos, -(y * s));
  *v = __fmaf_rn(y, a.cos, x * s);
}
// A job's rope in registers: jobs lie in shared memory, which every store makes the compiler read
// again.
struct RopeTables {
  const Turn *table, *base;
  int pairs;
};
__device__ inline RopeTables TablesOf(const TileJob& job) {
  return {job.table, job.base, job.pairs};
}
// Angles of pairs p, p + 1 (p even) of token t.
__device__ inline void LoadAngles(const RopeTables& rope, int t, int p, Angles (&a)[2]) {
  const float4 turn = __ldg(reinterpret_cast<const float4*>(rope.table + t * rope.pairs + p));
  const float4 base = __ldg(reinterpret_cast<const float4*>(rope.base + p));
  a[0] = Combine(base.x, base.y, turn.x, turn.y);
  a[1] = Combine(base.z, base.w, turn.z, turn.w);
}

// Can the pairs of this rope be turned in registers? Else RotateThrough.
template <int kGroups>
__device__ inline bool TurnsInRegisters(const TileJob& job) {
  if (job.rope == RopeKind::kInterleaved) return (job.pairs & 1) == 0;
  return kGroups % 2 == 0 && job.pairs == 8 * kGroups;
}

// The half at 16 G + 4 q and its partner d / 2 channels on.
__device__ inline void RotateHalves(const RopeTables& rope, int t, int p, bool undo, float (&u)[4],
                                    float (&v)[4]) {
  Angles a[2];
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    LoadAngles(rope, t, p + i, a);
    TurnPair(a[0], undo, &u[i], &v[i]);
    TurnPair(a[1], undo, &u[i + 1], &v[i + 1]);
  }
}
// Turned back, less an offset each: channels c .. c + 3 and those d / 2 on.
__device__ inline void UndoHalves(const RopeTables& rope, int t, int c, const float (&less)[4],
                                  const float (&less_far)[4], float (&u)[4], float (&v)[4]) {
  Angles a[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i % 2 == 0) LoadAngles(rope, t, c + i, a);
    const Angles& turn = a[i % 2];
    const float x = u[i], y = v[i];
    u[i] = __fmaf_rn(x, turn.cos, __fmaf_rn(y, turn.sin, -less[i]));
    v[i] = __fmaf_rn(y, turn.cos, __fmaf_rn(-x, turn.sin, -less_far[i]));
  }
}
// Interleaved: both pairs are in the lane.
__device__ inline void RotateNeighbours(const RopeTables& rope, int t, int c, bool undo,
                                        float (&x)[4]) {
  if (c >= 2 * rope.pairs) return;
  Angles a[2];
  LoadAngles(rope, t, c / 2, a);
  TurnPair(a[0], undo, &x[0], &x[1]);
  TurnPair(a[1], undo, &x[2], &x[3]);
}

template <int kGroups>
__device__ inline void RotateInRegisters(const TileJob& job, int t, int q, bool undo,
                                         float (&x)[kGroups][4]) {
  const RopeTables rope = TablesOf(job);
  if (job.rope == RopeKind::kInterleaved) {
#pragma unroll
    for (int G = 0; G < kGroups; ++G) RotateNeighbours(rope, t, 16 * G + 4 * q, undo, x[G]);
  } else {
#pragma unroll
    for (int G = 0; G < kGroups / 2; ++G)
      RotateHalves(rope, t, 16 * G + 4 * q, undo, x[G], x[G + kGroups / 2]);
  }
}

// Channel c of `row` ([d] floats that the warp shares) after the turn: for ropes whose partner lies
// with another lane (partial ones, odd sizes).
__device__ inline float RotateThrough(const TileJob& job, int t, int c, bool undo,
                                      const float* row) {
  const int pairs = job.pairs;
  if (c >= 2 * pairs) return row[c];
  const bool half = job.rope == RopeKind::kHalf;
  const int p = half ? (c < pairs ? c : c - pairs) : c / 2;
  const bool second = half ? c >= pairs : (c & 1) != 0;
  const Turn base = job.base[p], turn = job.table[t * pairs + p];
  const Angles a = Combine(base.cos, base.sin, turn.cos, turn.sin);
  float u = row[half ? p : 2 * p], v = row[half ? p + pairs : 2 * p + 1];
  TurnPair(a, undo, &u, &v);
  return second ? v : u;
}

}  // namespace dyna::cuda
