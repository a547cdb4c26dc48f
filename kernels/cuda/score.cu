// Window attention: logits of a block's 64 tokens with all rows of a kv head, 16 rows a warp at a
// time, on the tensor cores. A float is two bf16 there (high and low part, three products), so that
// a logit is good to about 2^-16 of its terms and has the range of f32.
#include <cuda_runtime.h>

#include <cmath>

#include "kernels/cuda/copy_job.cuh"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/score_kernels.h"
#include "kernels/cuda/split.cuh"

namespace dyna::cuda {
namespace {

constexpr int kTokens = 64, kTiles = kTokens / 8;

// K of a block and head as operands: [d / 16][8 n-tiles][32 lanes], high parts, then low ones. A
// lane's four channels of 16 are neighbours in memory (fragment.h). All threads of the block.
__device__ inline void OperandsOfK(const float* k, int d, uint4* operand) {
  for (int i = threadIdx.x; i < d / 16 * kTiles * 32; i += kThreads) {
    const int lane = i % 32, tile = i / 32 % kTiles, step = i / (32 * kTiles);
    const int token = 8 * tile + lane / 4, c = 16 * step + RowChannel(lane % 4, 0);
    const float4 x = __ldcs(reinterpret_cast<const float4*>(k + token * d + c));
    const Split a = SplitPair(x.x, x.y), b = SplitPair(x.z, x.w);
    operand[i] = make_uint4(a.high, b.high, a.low, b.low);
  }
}

// What one thread block scores: a block of the chain and a kv head.
struct ScoredTile {
  int block, head, index;  // in `blocks`, and of K and `alive` there
  int start;               // first token
  uint64_t alive;
  const uint4* queries;  // of the head
  int warp, lane, g, q;
};
// K to shared memory, and the rest. All threads of the block.
__device__ inline ScoredTile OpenTile(const ScoreRows& rows, const ScoreBlocks& blocks,
                                      uint4* operand) {
  ScoredTile tile;
  tile.block = blockIdx.x;
  tile.head = blockIdx.y;
  tile.index = tile.block * rows.heads + tile.head;
  tile.warp = threadIdx.x / 32;
  tile.lane = threadIdx.x % 32;
  tile.g = tile.lane / 4;
  tile.q = tile.lane % 4;
  OperandsOfK(blocks.k + static_cast<size_t>(tile.index) * kTokens * rows.d, rows.d, operand);
  __syncthreads();
  tile.alive = blocks.alive[tile.index];
  tile.start = (blocks.first + tile.block) * kTokens;
  tile.queries = reinterpret_cast<const uint4*>(rows.parts) +
                 static_cast<size_t>(tile.head) * rows.rows * rows.d / 4;
  return tile;
}

// The other operand, once for all blocks: a lane's words of 16 rows and 16 channels, high and low.
__global__ void __launch_bounds__(kThreads) SplitQueries(ScoreRows rows, uint4* parts) {
  const int steps = rows.d / 16, all = rows.heads * rows.rows * steps * 2;  // 32 lanes to 16 rows
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i >= all) return;
  const int lane = i % 32, step = i / 32 % steps, row = 16 * (i / (32 * steps)) + lane / 4;
  const float* at =
      rows.q + static_cast<size_t>(row) * rows.d + 16 * step + RowChannel(lane % 4, 0);
  const float4 x = *reinterpret_cast<const float4*>(at);
  const float4 y = *reinterpret_cast<const float4*>(at + 8 * rows.d);
  const Split a = SplitPair(x.x, x.y), b = SplitPair(y.x, y.y), c = SplitPair(x.z, x.w),
              e = SplitPair(y.z, y.w);
  uint4* to = parts + static_cast<size_t>(i / 32) * 64 + lane;
  to[0] = make_uint4(a.high, b.high, c.high, e.high);
  to[32] = make_uint4(a.low, b.low, c.low, e.low);
}

// logit[tile][2 i + e]: of row 16 m + g + 8 i with token 8 tile + 2 q + e. What a step needs of the
// queries is on its way a step before.
__device__ inline void LogitsOf(const ScoreRows& rows, const ScoredTile& tile, int m,
                                const uint4* operand, float (&logit)[kTiles][4]) {
  const int steps = rows.d / 16;
  const uint4* at = tile.queries + m * steps * 64 + tile.lane;
#pragma unroll
  for (int t = 0; t < kTiles; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i) logit[t][i] = 0;
  uint4 next_high = __ldg(at), next_low = __ldg(at + 32);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const uint32_t high[4] = {next_high.x, next_high.y, next_high.z, next_high.w},
                   low[4] = {next_low.x, next_low.y, next_low.z, next_low.w};
    at += step + 1 < steps ? 64 : 0;
    next_high = __ldg(at);
    next_low = __ldg(at + 32);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint4 k = operand[(step * kTiles + t) * 32 + tile.lane];
      MmaBf16(logit[t], high, k.x, k.y);
      MmaBf16(logit[t], high, k.z, k.w);
      MmaBf16(logit[t], low, k.x, k.y);
    }
  }
}

// Which of a lane's tokens its row i sees, bit 2 tile + e.
__device__ inline uint32_t SeenBits(TokenRange seen, const ScoredTile& tile) {
  const int start = tile.start;
  if (seen.begin <= start && seen.end >= start + kTokens && tile.alive == ~uint64_t{0})
    return (1u << 2 * kTiles) - 1;
  uint32_t bits = 0;
#pragma unroll
  for (int k = 0; k < 2 * kTiles; ++k) {
    const int t = 8 * (k / 2) + 2 * tile.q + k % 2;
    if (start + t >= seen.begin && start + t < seen.end && (tile.alive >> t & 1) != 0)
      bits |= 1u << k;
  }
  return bits;
}

__device__ inline Mass Add(const Mass& a, const Mass& b) {
  const float most = fmaxf(a.most, b.most);
  if (most == -INFINITY) return {most, 0};
  return {most, a.sum * __expf(a.most - most) + b.sum * __expf(b.most - most)};
}

__global__ void __launch_bounds__(kThreads)
    MassOfBlocks(ScoreRows rows, ScoreBlocks blocks, Mass* partial) {
  extern __shared__ uint4 operand[];
  const ScoredTile tile = OpenTile(rows, blocks, operand);
  Mass* out = partial + static_cast<size_t>(tile.index) * rows.rows;
  for (int m = tile.warp; m < rows.rows / 16; m += kThreads / 32) {
    uint32_t sees[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      sees[i] = SeenBits(rows.seen[(16 * m + 8 * i + tile.g) / rows.slots], tile);
    Mass mass[2] = {{-INFINITY, 0}, {-INFINITY, 0}};
    if (__any_sync(~0u, (sees[0] | sees[1]) != 0)) {
      float logit[kTiles][4];
      LogitsOf(rows, tile, m, operand, logit);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float most = -INFINITY, sum = 0;
#pragma unroll
        for (int k = 0; k < 2 * kTiles; ++k)
          if ((sees[i] >> k & 1) != 0) most = fmaxf(most, logit[k / 2][2 * i + k % 2]);
        most = fmaxf(most, Xor(most, 1));
        most = fmaxf(most, Xor(most, 2));
#pragma unroll
        for (int k = 0; k < 2 * kTiles; ++k)
          if ((sees[i] >> k & 1) != 0) sum += __expf(logit[k / 2][2 * i + k % 2] - most);
        sum += Xor(sum, 1);
        sum += Xor(sum, 2);
        mass[i] = {most, sum};
      }
    }
    if (tile.q == 0) {
      out[16 * m + tile.g] = mass[0];
      out[16 * m + 8 + tile.g] = mass[1];
    }
  }
}

constexpr int kAddRows = 32, kAddWays = 8;
__global__ void __launch_bounds__(kAddRows* kAddWays)
    AddMass(const Mass* partial, int count, int row_count, Mass* mass) {
  __shared__ Mass of[kAddWays][kAddRows];
  const int x = threadIdx.x % kAddRows, way = threadIdx.x / kAddRows;
  const int r = blockIdx.x * kAddRows + x;  // of all heads' rows
  Mass sum{-INFINITY, 0};
  if (r < row_count)
    for (int b = way; b < count; b += kAddWays)
      sum = Add(sum, partial[static_cast<size_t>(b) * row_count + r]);
  of[way][x] = sum;
  __syncthreads();
  if (way != 0 || r >= row_count) return;
  sum = mass[r];
  for (int i = 0; i < kAddWays; ++i) sum = Add(sum, of[i][x]);
  mass[r] = sum;
}

// Log of the sum of exp over what a row sees besides its sinks.
__device__ inline float DenominatorOf(const Mass& mass, const float* given) {
  const float log = mass.sum > 0 ? mass.most + logf(mass.sum) : -INFINITY;
  if (given == nullptr) return log;
  // A query that gives the sinks everything says nothing about the rest: bounded below.
  return *given + logf(fmaxf(1 - expf(log - *given), 1e-4f));
}

__global__ void __launch_bounds__(kThreads, 5)
    WeightsOfBlocks(ScoreRows rows, ScoreBlocks blocks, const Mass* mass, const float* given,
                    const float* visible, float* relative, int length) {
  extern __shared__ uint4 operand[];
  __shared__ float of_warp[kThreads / 32][kTokens];
  const ScoredTile tile = OpenTile(rows, blocks, operand);
  float sum[2 * kTiles] = {};
  for (int m = tile.warp; m < rows.rows / 16; m += kThreads / 32) {
    uint32_t sees[2];
    float log[2], share[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = 16 * m + 8 * i + tile.g, w = r / rows.slots;
      sees[i] = r % rows.slots < rows.group ? SeenBits(rows.seen[w], tile) : 0;
      const int row = tile.head * rows.rows + r;
      log[i] = DenominatorOf(mass[row], given == nullptr ? nullptr : given + row);
      share[i] = r % rows.slots == 0 ? visible[w] : 0.0f;  // the first row adds for its group
    }
    if (!__any_sync(~0u, (sees[0] | sees[1]) != 0)) continue;
    float logit[kTiles][4];
    LogitsOf(rows, tile, m, operand, logit);
#pragma unroll
    for (int k = 0; k < 2 * kTiles; ++k) {
      float weight[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        weight[i] = (sees[i] >> k & 1) != 0 ? __expf(logit[k / 2][2 * i + k % 2] - log[i]) : 0.0f;
      if (rows.slots == 16) weight[0] = fmaxf(weight[0], weight[1]);
#pragma unroll
      for (int step = 1; step < 8; step *= 2) {
        if (step >= rows.slots) break;
        weight[0] = fmaxf(weight[0], Xor(weight[0], 4 * step));
        weight[1] = fmaxf(weight[1], Xor(weight[1], 4 * step));
      }
      sum[k] += weight[0] * share[0] + weight[1] * share[1];
    }
  }
#pragma unroll
  for (int k = 0; k < 2 * kTiles; ++k) {
    sum[k] += Xor(sum[k], 4);
    sum[k] += Xor(sum[k], 8);
    sum[k] += Xor(sum[k], 16);
    if (tile.g == 0) of_warp[tile.warp][8 * (k / 2) + 2 * tile.q + k % 2] = sum[k];
  }
  __syncthreads();
  if (threadIdx.x >= kTokens) return;
  const int t = threadIdx.x, start = tile.start;
  int count = 0;
  for (int w = 0; w < rows.rows / rows.slots; ++w)
    count += start + t >= rows.seen[w].begin && start + t < rows.seen[w].end ? 1 : 0;
  const float all = of_warp[0][t] + of_warp[1][t] + of_warp[2][t] + of_warp[3][t];
  relative[static_cast<size_t>(tile.head) * length + start + t] =
      count > 0 ? all / static_cast<float>(count) : 0.0f;
}

int OperandBytes(int d) { return d / 16 * kTiles * 32 * static_cast<int>(sizeof(uint4)); }

}  // namespace

bool LaunchSplitQueries(const ScoreRows& rows, QueryPart* parts, CUstream_st* stream) {
  static_assert(sizeof(QueryPart) == sizeof(uint4));
  const int all = rows.heads * rows.rows * (rows.d / 16) * 2;
  SplitQueries<<<(all + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
      rows, reinterpret_cast<uint4*>(parts));
  return cudaPeekAtLastError() == cudaSuccess;
}

bool LaunchScoreMass(const ScoreRows& rows, const ScoreBlocks& blocks, Mass* partial, Mass* mass,
                     CUstream_st* stream) {
  const int bytes = OperandBytes(rows.d), row_count = rows.heads * rows.rows;
  if (!AllowShared(MassOfBlocks, bytes)) return false;
  const dim3 grid(static_cast<unsigned>(blocks.count), static_cast<unsigned>(rows.heads));
  MassOfBlocks<<<grid, kThreads, bytes, stream>>>(rows, blocks, partial);
  AddMass<<<(row_count + kAddRows - 1) / kAddRows, kAddRows * kAddWays, 0, stream>>>(
      partial, blocks.count, row_count, mass);
  return cudaPeekAtLastError() == cudaSuccess;
}

bool LaunchScoreWeights(const ScoreRows& rows, const ScoreBlocks& blocks, const Mass* mass,
                        const float* given, const float* visible, float* relative, int length,
                        CUstream_st* stream) {
  const int bytes = OperandBytes(rows.d);
  if (!AllowShared(WeightsOfBlocks, bytes)) return false;
  const dim3 grid(static_cast<unsigned>(blocks.count), static_cast<unsigned>(rows.heads));
  WeightsOfBlocks<<<grid, kThreads, bytes, stream>>>(rows, blocks, mass, given, visible, relative,
                                                     length);
  return cudaPeekAtLastError() == cudaSuccess;
}

}  // namespace dyna::cuda
