// What the matrix product of an encode of K reads: rows, or a wider tile, as operands in shared
// memory; and where everything of a K tile lies there.
#pragma once

#include "kernels/cuda/copy_job.cuh"
#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/quick_k.cuh"
#include "kernels/cuda/rope.cuh"
#include "kernels/cuda/rows.cuh"

namespace dyna::cuda {

// Channels of 16 that a warp has in its accumulators at a time.
constexpr int GroupsAtOnce(int d) { return d >= 128 ? 2 : 1; }
// Each warp comes to its accumulators once: y then takes the place of the operands.
constexpr bool SharesOperands(int d) { return d / 16 == 4 * GroupsAtOnce(d); }

// Shared memory of a K tile: operands f16 [d / 16][4 warps][32 lanes][4 words] | codes, bytes
// [d][64 slots] | sums [d] | m and scales as in the tile | y of the octets that a warp has at once,
// f16 [octet][2][32 lanes][4 words]; before, rows for ropes that do not turn in registers.
struct KSpace {
  uint4* operand;
  std::byte* codes;
  QuickSums* sums;
  std::byte* head;
  uint4* y;
  float* exchange;  // [4 warps][8][d]
};
constexpr int BytesOfY(int d) { return SharesOperands(d) ? 0 : 4 * 2048 * GroupsAtOnce(d); }
__device__ inline KSpace SpaceOfK(void* shared, int d) {
  auto* at = static_cast<std::byte*>(shared);
  std::byte* last = at + 228 * d + 64;
  return {reinterpret_cast<uint4*>(at),
          at + 128 * d,
          reinterpret_cast<QuickSums*>(at + 192 * d),
          at + 224 * d,
          reinterpret_cast<uint4*>(SharesOperands(d) ? at : last),
          reinterpret_cast<float*>(last)};
}
constexpr int EncodeKBytes(int d, bool exchange) {
  const int y = BytesOfY(d), rows = exchange ? 128 * d : 0;
  return 228 * d + 64 + (y > rows ? y : rows);
}
// What sm_86, 89 and 120 give a block, less what the kernel has besides.
static_assert(EncodeKBytes(256, true) <= 94 * 1024);

// x of one row as the operand's words; takes the row's own channels of x from x[][].
template <int kGroups>
__device__ inline void PrepareRow(const TileJob& job, int t, int g, int q, float* exchange,
                                  float (&x)[kGroups][4]) {
  if (job.table != nullptr) {
    if (TurnsInRegisters<kGroups>(job)) {
      RotateInRegisters<kGroups>(job, t, q, true, x);
    } else {
      float* row = exchange + g * 16 * kGroups;
      __syncwarp();
#pragma unroll
      for (int G = 0; G < kGroups; ++G)
#pragma unroll
        for (int i = 0; i < 4; ++i) row[16 * G + 4 * q + i] = x[G][i];
      __syncwarp();
#pragma unroll
      for (int G = 0; G < kGroups; ++G)
#pragma unroll
        for (int i = 0; i < 4; ++i) x[G][i] = RotateThrough(job, t, 16 * G + 4 * q + i, true, row);
    }
  }
  if (job.change == Change::kBasis) {
#pragma unroll
    for (int G = 0; G < kGroups; ++G) {
      const float4 mu = __ldg(reinterpret_cast<const float4*>(job.cell->mu + 16 * G + 4 * q));
      x[G][0] -= mu.x, x[G][1] -= mu.y, x[G][2] -= mu.z, x[G][3] -= mu.w;
    }
  }
}

// Sums over 8 rows of four channels of each quarter; `column`: [d], the warp's own.
__device__ inline void SumColumns(const float (&v)[4], int c, int lane, float* column) {
  const bool high = (lane & 16) != 0, odd = (lane & 8) != 0;
  const float a = (high ? v[2] : v[0]) + Xor(high ? v[0] : v[2], 16);
  const float b = (high ? v[3] : v[1]) + Xor(high ? v[1] : v[3], 16);
  float sum = (odd ? b : a) + Xor(odd ? a : b, 8);
  sum += Xor(sum, 4);
  if ((lane & 4) == 0) column[c + (high ? 2 : 0) + (odd ? 1 : 0)] = sum;
}

// Where a lane's words of group G are: of its two rows, as read and then as operand.
__device__ inline uint4* WordsOf(const KSpace& space, int G, int warp, int lane) {
  return space.operand + (G * 4 + warp) * 32 + lane;
}

// The lane's two rows of a 16-bit type on their way to where their operands will be; rows that are
// not there are 0. token: 64 where there is no row.
template <int kGroups>
__device__ inline void FetchRows(const TileJob& job, const KSpace& space, const int (&token)[2]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (token[half] < 64) {
      const std::byte* row = RowAt(job.rows, token[half]) + 8 * q;
      const auto to =
          static_cast<uint32_t>(__cvta_generic_to_shared(WordsOf(space, 0, warp, lane))) + 8 * half;
#pragma unroll
      for (int G = 0; G < kGroups; ++G)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to + 2048 * G),
                     "l"(row + 32 * G)
                     : "memory");
    } else {
#pragma unroll
      for (int G = 0; G < kGroups; ++G)
        reinterpret_cast<uint2*>(WordsOf(space, G, warp, lane))[half] = make_uint2(0, 0);
    }
  }
}

// A pinned row is kept as it is; what no pin holds is looked at all the same.
template <int kGroups>
__device__ inline void KeepPinnedK(const TileJob& job, const KSpace& space, int t, int half,
                                   Found* found) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q = lane % 4;
#pragma unroll 1
  for (int G = 0; G < kGroups; ++G) {
    float x[4];
    if (job.dtype == DType::kF32) {
      Load4(RowAt(job.rows, t), DType::kF32, 16 * G + 4 * q, x);
    } else {
      Widen(reinterpret_cast<const uint2*>(WordsOf(space, G, warp, lane))[half], job.dtype, x);
    }
    if (!Finite4(x)) FoundBadToken(found, t);
    if (job.pins != nullptr) Store4(PinAt(job, t), job.dtype, 16 * G + 4 * q, x);
  }
}

// Both rows' x of one group of 16 channels, turned back and less mu -> operand.
__device__ inline void PutOperand(uint4* words, const float (&x)[2][4]) {
  *words = make_uint4(PackF16(x[0][0], x[0][1]), PackF16(x[0][2], x[0][3]),
                      PackF16(x[1][0], x[1][1]), PackF16(x[1][2], x[1][3]));
}
// Of 64 rows: what the energy of x is made of.
struct RowEnergy {
  bool counts[2];
  float* column;  // of the warp
  float square = 0;
};
__device__ inline void AddEnergy(const float (&x)[2][4], int G, int q, int lane, RowEnergy* e) {
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float a = e->counts[0] ? x[0][i] : 0.0f, b = e->counts[1] ? x[1][i] : 0.0f;
    e->square = __fmaf_rn(a, a, __fmaf_rn(b, b, e->square));
    v[i] = a + b;
  }
  SumColumns(v, 16 * G + 4 * q, lane, e->column);
}

// Rows of a 16-bit type -> operands, where the rope's pairs are d / 2 apart or there is none.
template <int kGroups, bool kRope, bool kBf16>
__device__ inline void OperandsOfNarrow(const TileJob& job, const KSpace& space,
                                        const int (&token)[2], RowEnergy* energy) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, q = lane % 4;
  constexpr DType kType = kBf16 ? DType::kBf16 : DType::kF16;
  constexpr int kFar = kRope ? kGroups / 2 : 0;  // groups to a pair's other half
  const bool basis = job.change == Change::kBasis, full = job.live == ~uint64_t{0};
  const bool measure = job.measure_x != 0;
  const RopeTables rope = TablesOf(job);
  const float* means = basis ? job.cell->mu : nullptr;
#pragma unroll 2
  for (int G = 0; G < kGroups - kFar; ++G) {
    float x[2][4], far[2][4];
    uint4* words = WordsOf(space, G, warp, lane);
    const uint4 raw = *words;
    Widen(make_uint2(raw.x, raw.y), kType, x[0]);
    Widen(make_uint2(raw.z, raw.w), kType, x[1]);
    if constexpr (kRope) {
      const uint4 other = words[128 * kFar];
      Widen(make_uint2(other.x, other.y), kType, far[0]);
      Widen(make_uint2(other.z, other.w), kType, far[1]);
    }
    if (basis) {
      const int c = 16 * G + 4 * q;
      const auto* mu = reinterpret_cast<const float4*>(means + c);
      const float4 m = __ldg(mu), n = __ldg(mu + 4 * kFar);
      const float less[4] = {m.x, m.y, m.z, m.w}, less_far[4] = {n.x, n.y, n.z, n.w};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if constexpr (kRope) {
          UndoHalves(rope, token[half] & 63, c, less, less_far, x[half], far[half]);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) x[half][i] -= less[i];
        }
      }
    }
    if (!full) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (token[half] == 64) x[half][i] = 0;
          if (kRope && token[half] == 64) far[half][i] = 0;
        }
    }
    PutOperand(words, x);
    if constexpr (kRope) PutOperand(words + 128 * kFar, far);
    if (measure) {
      AddEnergy(x, G, q, lane, energy);
      if constexpr (kRope) AddEnergy(far, G + kFar, q, lane, energy);
    }
  }
}

// Any rows -> operands, one row at a time.
template <int kGroups>
__device__ inline void OperandsOfAny(const TileJob& job, const KSpace& space, const int (&token)[2],
                                     RowEnergy* energy) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    const int t = half == 0 ? token[0] : token[1];
    float x[kGroups][4];
#pragma unroll
    for (int G = 0; G < kGroups; ++G) {
      if (job.dtype == DType::kF32) {
        Load4(RowAt(job.rows, t & 63), DType::kF32, 16 * G + 4 * q, x[G]);
      } else {
        Widen(reinterpret_cast<const uint2*>(WordsOf(space, G, warp, lane))[half], job.dtype, x[G]);
      }
    }
    PrepareRow<kGroups>(job, t & 63, g, q, space.exchange + warp * 128 * kGroups, x);
#pragma unroll
    for (int G = 0; G < kGroups; ++G)
      reinterpret_cast<uint2*>(WordsOf(space, G, warp, lane))[half] =
          t < 64 ? make_uint2(PackF16(x[G][0], x[G][1]), PackF16(x[G][2], x[G][3]))
                 : make_uint2(0, 0);
  }
  if (job.measure_x == 0) return;
#pragma unroll 1
  for (int G = 0; G < kGroups; ++G) {
    const uint4 words = *WordsOf(space, G, warp, lane);
    float x[2][4];
    Widen(make_uint2(words.x, words.y), DType::kF16, x[0]);
    Widen(make_uint2(words.z, words.w), DType::kF16, x[1]);
    AddEnergy(x, G, q, lane, energy);
  }
}

// Rows from full precision -> operands.
template <int kGroups>
__device__ inline void OperandsOfRows(const TileJob& job, const KSpace& space, float* columns,
                                      Found* found) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4;
  const int rows = __popcll(job.live), r = 16 * warp + g;
  const bool narrow = job.dtype != DType::kF32;
  int token[2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
    token[half] = r + 8 * half < rows ? TokenOfRow(job.live, r + 8 * half) : 64;
  if (narrow) FetchRows<kGroups>(job, space, token);
  RowEnergy energy{{(job.counted >> r & 1) != 0, (job.counted >> (r + 8) & 1) != 0},
                   columns + warp * 16 * kGroups};
  WaitForTile();  // a lane reads what it fetched itself
  if (job.pinned != 0) {
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      const int t = half == 0 ? token[0] : token[1];
      if (t < 64 && (job.pinned >> t & 1) != 0) KeepPinnedK<kGroups>(job, space, t, half, found);
    }
  }
  const bool halves = job.rope == RopeKind::kHalf && TurnsInRegisters<kGroups>(job);
  const bool bf16 = job.dtype == DType::kBf16;
  if (narrow && job.table == nullptr) {
    if (bf16) OperandsOfNarrow<kGroups, false, true>(job, space, token, &energy);
    if (!bf16) OperandsOfNarrow<kGroups, false, false>(job, space, token, &energy);
  } else if (narrow && halves && kGroups % 2 == 0) {
    if constexpr (kGroups % 2 == 0) {
      if (bf16) OperandsOfNarrow<kGroups, true, true>(job, space, token, &energy);
      if (!bf16) OperandsOfNarrow<kGroups, true, false>(job, space, token, &energy);
    }
  } else {
    OperandsOfAny<kGroups>(job, space, token, &energy);
  }
  if (job.measure_x != 0) {
    energy.square = WarpSum(energy.square);
    if (lane == 0) atomicAdd(&found->x_energy, energy.square);
  }
}

// Rows of a wider tile -> operands, whose k stand for planes' channels. The tile, its scales and
// the places of its runs lie where codes and sums will be: 96 d bytes.
template <int kGroups>
__device__ inline void OperandsOfTile(const TileJob& job, const KSpace& space) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  constexpr int kD = 16 * kGroups;
  auto* scales = reinterpret_cast<float2*>(space.codes + 72 * kD);
  auto* runs = reinterpret_cast<RunPlace*>(space.codes + 80 * kD);
  CodedTile from = job.from;
  StageTile(from.at, from.bytes, space.codes);  // 68 d at most
  for (int i = threadIdx.x; i < kD / from.run; i += kThreads) runs[i] = from.runs[i];
  from.at = space.codes;
  from.runs = runs;
  WaitForTile();
  __syncthreads();
  for (int c = threadIdx.x; c < kD; c += kThreads) scales[c] = ScaleOf(from, c);
  __syncthreads();
  const int rows = __popcll(job.live);
  int slot[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = 16 * warp + 8 * half + g;
    const int row = r < rows ? TokenOfRow(job.narrow, r) : 64;
    slot[half] = row < 64 ? codec::TokenSlot(row) : -1;
  }
#pragma unroll 2
  for (int G = 0; G < kGroups; ++G) {
    uint32_t word[4];
    const float4 low = *reinterpret_cast<const float4*>(&scales[16 * G + 2 * q]);
    const float4 high = *reinterpret_cast<const float4*>(&scales[16 * G + 8 + 2 * q]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const CodePairs pairs = PairsOf(from, runs, G, q, max(slot[half], 0));
      word[2 * half] = slot[half] < 0 ? 0 : DecodePair(pairs.a, low);
      word[2 * half + 1] = slot[half] < 0 ? 0 : DecodePair(pairs.b, high);
    }
    space.operand[(G * 4 + warp) * 32 + lane] = make_uint4(word[0], word[1], word[2], word[3]);
  }
}

}  // namespace dyna::cuda
