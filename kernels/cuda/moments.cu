// Second moments of tiles: X'X over 64 rows on the tensor cores, a float as two bf16 (split.cuh),
// 32 x 32 channels of the upper triangle a warp at a time, in its accumulators from tile to tile.
//
// Four rows of a channel are 16 bytes of shared memory: first as floats, then, where they lay, as
// what a lane (g, q) of either operand needs of channel g and rows 4 q .. 4 q + 3 (a sum over rows
// does not mind which of them stands behind which k).
#include <cuda_runtime.h>

#include "kernels/cuda/copy_job.cuh"
#include "kernels/cuda/moments_kernels.h"
#include "kernels/cuda/rope.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/split.cuh"

namespace dyna::cuda {
namespace {

constexpr int kSide = 32;         // channels of a square
constexpr int kSquaresAWarp = 3;  // that have room in its registers: 96 of them
constexpr int kSquares = kSquaresAWarp * kThreads / 32;

// Channels with room: those beyond d are 0.
constexpr int Padded(int d) { return (d + kSide - 1) / kSide * kSide; }
constexpr int SquaresOf(int d) {
  const int side = Padded(d) / kSide;
  return side * (side + 1) / 2;
}

// Place of rows 4 quad .. 4 quad + 3 of channel c. Eight channels beside each other, and the lanes
// of a quarter warp, are in different banks.
__device__ inline int SlotOf(int c, int quad) {
  const int g = c % 8, q = quad % 4;
  return (c / 8 * 4 + quad / 4) * 32 + 8 * q + ((g + 2 * q) & 7);
}

template <DType kType>
__device__ inline float Element(const std::byte* row, int c) {
  if constexpr (kType == DType::kF32) return __ldg(reinterpret_cast<const float*>(row) + c);
  const uint32_t bits = __ldg(reinterpret_cast<const unsigned short*>(row) + c);
  return kType == DType::kBf16 ? LowBf16(bits) : LowF16(bits);
}

// x of a tile, turned back, into the slots; 0 where a row or a channel does not count. Two channels
// and four rows at a time: a rotary pair, or neighbours.
template <DType kType>
__device__ inline void LoadTile(const MomentTile& tile, int d, float4* slots, uint32_t* bad) {
  const int half = Padded(d) / 2, pairs = tile.table == nullptr ? 0 : tile.pairs;
  const bool apart = tile.rope == RopeKind::kHalf;
  const Rows rows = tile.rows;
  const uint64_t present = tile.present, counted = tile.counted;
  for (int i = threadIdx.x; i < 16 * half; i += kThreads) {
    const int quad = i / half, u = i % half;
    const bool turns = u < pairs;
    const int c0 = apart && turns ? u : 2 * u, c1 = apart && turns ? u + pairs : 2 * u + 1;
    float x[2][4] = {};
    if (c0 < d) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int t = 4 * quad + j;
        if ((present >> t & 1) == 0) continue;
        const std::byte* row = RowAt(rows, t);
        x[0][j] = Element<kType>(row, c0);
        x[1][j] = Element<kType>(row, c1);
      }
      Turn base{1, 0};
      if (turns) base = tile.base[u];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int t = 4 * quad + j;
        if (!codec::IsFiniteBits(x[0][j]) || !codec::IsFiniteBits(x[1][j]))
          atomicMax(bad, static_cast<uint32_t>(64 - t));
        if (turns) {
          const float2 turn = __ldg(reinterpret_cast<const float2*>(tile.table + t * pairs + u));
          TurnPair(Combine(base.cos, base.sin, turn.x, turn.y), true, &x[0][j], &x[1][j]);
        }
        if ((counted >> t & 1) == 0) x[0][j] = x[1][j] = 0;
      }
    }
    slots[SlotOf(c0, quad)] = make_float4(x[0][0], x[0][1], x[0][2], x[0][3]);
    slots[SlotOf(c1, quad)] = make_float4(x[1][0], x[1][1], x[1][2], x[1][3]);
  }
}

// mean[c] of the rows that count, and total[c] += their sum.
__device__ inline void MeansOf(const float4* slots, int channels, int rows, float* mean,
                               float* total) {
  for (int c = threadIdx.x; c < channels; c += kThreads) {
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int quad = 0; quad < 16; ++quad) {
      const float4 x = slots[SlotOf(c, quad)];
      sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    const float all = (sum.x + sum.z) + (sum.y + sum.w);
    mean[c] = rows > 0 ? all / static_cast<float>(rows) : 0.0f;
    total[c] += all;
  }
}

// Slots of floats -> of operands: high parts of the four rows, then low ones.
template <bool kCentred>
__device__ inline void SplitTile(float4* slots, int channels, uint64_t counted, const float* mean) {
  // A thread's slots are eight channels apart: its channel in the octet and its rows stay.
  const int q = threadIdx.x % 32 / 8, g = (threadIdx.x % 8 - 2 * q) & 7;
  const int rows = static_cast<int>(counted >> (4 * (threadIdx.x / 32 * 4 + q)) & 15);
  for (int octet = 0; octet < channels / 8; ++octet) {
    float4* slot = slots + octet * kThreads + threadIdx.x;
    float4 x = *slot;
    if constexpr (kCentred) {
      const float m = mean[8 * octet + g];
      if ((rows & 1) != 0) x.x -= m;
      if ((rows & 2) != 0) x.y -= m;
      if ((rows & 4) != 0) x.z -= m;
      if ((rows & 8) != 0) x.w -= m;
    }
    const Split a = SplitPair(x.x, x.y), b = SplitPair(x.z, x.w);
    *reinterpret_cast<uint4*>(slot) = make_uint4(a.high, b.high, a.low, b.low);
  }
}

// Row and column of the n-th square of the triangle, in squares.
struct Square {
  int row, column;
};
__device__ inline Square SquareOf(int n, int side) {
  int row = 0;
  while (n >= side - row) n -= side - row++;
  return {row, row + n};
}

// acc[m][n] += channels 32 row + 16 m by channels 32 column + 8 n, over 64 rows.
__device__ inline void AddSquare(const uint4* slots, const Square& at, int lane,
                                 float (&acc)[2][4][4]) {
  const int g = lane / 4, q = lane % 4, place = 8 * q + ((g + 2 * q) & 7);
  const uint4* of_row = slots + at.row * 4 * kThreads + place;
  const uint4* of_column = slots + at.column * 4 * kThreads + place;
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    uint32_t high[2][4], low[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const uint4 a = of_row[2 * m * kThreads + 32 * step];
      const uint4 b = of_row[(2 * m + 1) * kThreads + 32 * step];
      high[m][0] = a.x, high[m][1] = b.x, high[m][2] = a.y, high[m][3] = b.y;
      low[m][0] = a.z, low[m][1] = b.z, low[m][2] = a.w, low[m][3] = b.w;
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const uint4 b = of_column[n * kThreads + 32 * step];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        MmaBf16(acc[m][n], high[m], b.x, b.y);
        MmaBf16(acc[m][n], high[m], b.z, b.w);
        MmaBf16(acc[m][n], low[m], b.x, b.y);
      }
    }
  }
}

__device__ inline void StoreSquare(const float (&acc)[2][4][4], const Square& at, int d, int lane,
                                   float* triangle) {
  const int g = lane / 4, q = lane % 4;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int low = 0; low < 2; ++low) {
      const int i = kSide * at.row + 16 * m + 8 * low + g;
      float* row = triangle + i * d - i * (i + 1) / 2;  // of column 0, were it there
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int j = kSide * at.column + 8 * n + 2 * q + e;
          if (i <= j && j < d) row[j] = acc[m][n][2 * low + e];
        }
    }
}

template <bool kCentred>
__global__ void __launch_bounds__(kThreads, 3) AddMoments(MomentLaunch launch) {
  extern __shared__ uint4 shared[];
  __shared__ float mean[kMaxHeadDim], total[kMaxHeadDim];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = launch.d;
  const int channels = Padded(d), side = channels / kSide;
  const MomentSum sum = launch.sums[blockIdx.x];
  auto* slots = reinterpret_cast<float4*>(shared);
  // Squares of this block's part of the triangle, one after the other to other warps, so that the
  // quarters of a multiprocessor are busy alike.
  const int first = static_cast<int>(blockIdx.y) * kSquares +
                    (warp + static_cast<int>(blockIdx.x)) % (kThreads / 32);
  Square square[kSquaresAWarp];
  bool there[kSquaresAWarp];
  float acc[kSquaresAWarp][2][4][4] = {};
#pragma unroll
  for (int k = 0; k < kSquaresAWarp; ++k) {
    const int n = first + k * (kThreads / 32);
    there[k] = n < side * (side + 1) / 2;
    square[k] = there[k] ? SquareOf(n, side) : Square{0, 0};
  }
  for (int c = threadIdx.x; c < channels; c += kThreads) total[c] = 0;
  for (uint32_t i = sum.first; i < sum.first + sum.count; ++i) {
    const MomentTile& tile = launch.tiles[i];
    if (tile.dtype == DType::kBf16) LoadTile<DType::kBf16>(tile, d, slots, launch.bad + i);
    if (tile.dtype == DType::kF16) LoadTile<DType::kF16>(tile, d, slots, launch.bad + i);
    if (tile.dtype == DType::kF32) LoadTile<DType::kF32>(tile, d, slots, launch.bad + i);
    __syncthreads();
    if constexpr (kCentred) {
      MeansOf(slots, channels, __popcll(tile.counted), mean, total);
      __syncthreads();
    }
    SplitTile<kCentred>(slots, channels, tile.counted, mean);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kSquaresAWarp; ++k)
      if (there[k]) AddSquare(shared, square[k], lane, acc[k]);
    __syncthreads();
  }
  float* out = launch.out + static_cast<size_t>(blockIdx.x) * static_cast<size_t>(launch.stride);
  if (kCentred && blockIdx.y == 0)
    for (int c = threadIdx.x; c < d; c += kThreads) out[c] = total[c];
#pragma unroll
  for (int k = 0; k < kSquaresAWarp; ++k)
    if (there[k]) StoreSquare(acc[k], square[k], d, lane, out + d);
}

template <bool kCentred>
bool Launch(const MomentLaunch& launch, CUstream_st* stream) {
  const int bytes = Padded(launch.d) * 16 * static_cast<int>(sizeof(uint4));
  if (!AllowShared(AddMoments<kCentred>, bytes)) return false;
  const dim3 grid(static_cast<unsigned>(launch.count),
                  static_cast<unsigned>((SquaresOf(launch.d) + kSquares - 1) / kSquares));
  AddMoments<kCentred><<<grid, kThreads, bytes, stream>>>(launch);
  return cudaPeekAtLastError() == cudaSuccess;
}

}  // namespace

bool LaunchMoments(const MomentLaunch& launch, CUstream_st* stream) {
  if (launch.count == 0) return true;
  return launch.centred ? Launch<true>(launch, stream) : Launch<false>(launch, stream);
}

}  // namespace dyna::cuda
