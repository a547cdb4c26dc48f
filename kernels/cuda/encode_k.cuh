// K of one tile into its bytes, by one thread block: rows (or a wider tile) to matrix operands in
// shared memory, y = A (x - mu) on the tensor cores, and each quad quantises the channels that its
// accumulators hold. Kinds without a basis are the same with the identity, which is exact.
#pragma once

#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/quantise_k.cuh"
#include "kernels/cuda/rope.cuh"
#include "kernels/cuda/rows.cuh"

namespace dyna::cuda {

// Shared memory of a K tile: operands f16 [d / 16][4 warps][32 lanes][4 words] | codes, bytes
// [d][64 slots] | m and scales as in the tile | rows for ropes that do not turn in registers.
struct KSpace {
  uint4* operand;
  std::byte* codes;
  std::byte* head;
  float* exchange;  // [4 warps][8][d]
};
__device__ inline KSpace SpaceOfK(void* shared, int d) {
  auto* at = static_cast<std::byte*>(shared);
  return {reinterpret_cast<uint4*>(at), at + 128 * d, at + 192 * d,
          reinterpret_cast<float*>(at + 196 * d + 64)};
}
constexpr int EncodeKBytes(int d, bool exchange) { return 196 * d + 64 + (exchange ? 128 * d : 0); }

// Operand A of the identity over 16 channels, where k stands for a row's or a plane's channel.
__device__ inline void IdentityOperand(int g, int q, bool planes, uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i & 1), k = (i & 2);
    const int c0 = planes ? PlaneChannel(q, k) : RowChannel(q, k);
    const int c1 = planes ? PlaneChannel(q, k + 1) : RowChannel(q, k + 1);
    a[i] = (row == c0 ? 0x3c00u : 0) | (row == c1 ? 0x3c000000u : 0);
  }
}

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

template <int kGroups>
__device__ inline void LoadRaw(const std::byte* row, int q, uint2 (&raw)[kGroups]) {
#pragma unroll
  for (int G = 0; G < kGroups; ++G)
    raw[G] = __ldcs(reinterpret_cast<const uint2*>(row + 32 * G + 8 * q));
}

// Sum over rows that count of x and of x^2, into shared memory (for the energy of x).
template <int kGroups>
__device__ inline void AddEnergy(const float (&x)[kGroups][4], bool counts, int q, int lane,
                                 float* column, Found* found) {
  float square = 0;
#pragma unroll
  for (int G = 0; G < kGroups; ++G) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float v = counts ? x[G][i] : 0.0f;
      square = __fmaf_rn(v, v, square);
      v += Xor(v, 4);
      v += Xor(v, 8);
      v += Xor(v, 16);
      if (lane < 4) atomicAdd(&column[16 * G + 4 * q + i], v);
    }
  }
  square = WarpSum(square);
  if (lane == 0) atomicAdd(&found->x_energy, square);
}

// Rows from full precision -> operands.
template <int kGroups>
__device__ inline void OperandsOfRows(const TileJob& job, const KSpace& space, float* column,
                                      Found* found) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int rows = __popcll(job.live);
  const bool narrow = job.dtype != DType::kF32;
  uint2 raw[2][kGroups];
  int token[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {  // both rows on their way before the first is used
    const int r = 16 * warp + 8 * half + g;
    token[half] = r < rows ? TokenOfRow(job.live, r) : 64;
#pragma unroll
    for (int G = 0; G < kGroups; ++G) raw[half][G] = make_uint2(0, 0);
    if (narrow && token[half] < 64) LoadRaw<kGroups>(RowAt(job.rows, token[half]), q, raw[half]);
  }
  uint2 word[2][kGroups];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int t = token[half], r = 16 * warp + 8 * half + g;
    float x[kGroups][4];
    if (job.dtype == DType::kBf16) {
#pragma unroll
      for (int G = 0; G < kGroups; ++G) Widen(raw[half][G], DType::kBf16, x[G]);
    } else if (job.dtype == DType::kF16) {
#pragma unroll
      for (int G = 0; G < kGroups; ++G) Widen(raw[half][G], DType::kF16, x[G]);
    } else {
      const std::byte* row = RowAt(job.rows, t < 64 ? t : 0);
#pragma unroll
      for (int G = 0; G < kGroups; ++G) Load4(row, DType::kF32, 16 * G + 4 * q, x[G]);
    }
    if (t < 64 && (job.pinned >> t & 1) != 0) {
#pragma unroll
      for (int G = 0; G < kGroups; ++G) {
        if (!Finite4(x[G])) FoundBadToken(found, t);
        if (job.pins != nullptr) Store4(PinAt(job, t), job.dtype, 16 * G + 4 * q, x[G]);
      }
    }
    PrepareRow<kGroups>(job, t < 64 ? t : 0, g, q, space.exchange + warp * 128 * kGroups, x);
    if (job.measure_x != 0)
      AddEnergy<kGroups>(x, (job.counted >> r & 1) != 0, q, lane, column, found);
#pragma unroll
    for (int G = 0; G < kGroups; ++G)
      word[half][G] = t < 64 ? make_uint2(PackF16(x[G][0], x[G][1]), PackF16(x[G][2], x[G][3]))
                             : make_uint2(0, 0);
  }
#pragma unroll
  for (int G = 0; G < kGroups; ++G)
    space.operand[(G * 4 + warp) * 32 + lane] =
        make_uint4(word[0][G].x, word[0][G].y, word[1][G].x, word[1][G].y);
}

// Rows of a wider tile -> operands, whose k stand for planes' channels.
template <int kGroups>
__device__ inline void OperandsOfTile(const TileJob& job, const KSpace& space, float2* scales) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  constexpr int kD = 16 * kGroups;
  for (int c = threadIdx.x; c < kD; c += kThreads) scales[c] = ScaleOf(job.from, c);
  __syncthreads();
  const int rows = __popcll(job.live);
  int slot[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = 16 * warp + 8 * half + g;
    const int from = r < rows ? TokenOfRow(job.narrow, r) : 64;
    slot[half] = from < 64 ? codec::TokenSlot(from) : -1;
  }
#pragma unroll 2
  for (int G = 0; G < kGroups; ++G) {
    uint32_t word[4];
    const float4 low = *reinterpret_cast<const float4*>(&scales[16 * G + 2 * q]);
    const float4 high = *reinterpret_cast<const float4*>(&scales[16 * G + 8 + 2 * q]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const CodePairs pairs = PairsOf(job.from, job.from.runs, G, q, max(slot[half], 0));
      word[2 * half] = slot[half] < 0 ? 0 : DecodePair(pairs.a, low);
      word[2 * half + 1] = slot[half] < 0 ? 0 : DecodePair(pairs.b, high);
    }
    space.operand[(G * 4 + warp) * 32 + lane] = make_uint4(word[0], word[1], word[2], word[3]);
  }
}

// Codes of one octet of channels in 4 slots: byte lists of one channel are one word.
__device__ inline void PackOctet(const std::byte* codes, int width, int slots, uint32_t (&even)[2],
                                 uint32_t (&odd)[2]) {
  // even[i], odd[i]: a byte for each slot, of the even and odd channels, as many as fit.
  uint32_t w[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) w[k] = *reinterpret_cast<const uint32_t*>(codes + 64 * k + 4 * slots);
  if (width == 2) {
    even[0] = w[0] | w[2] << 2 | w[4] << 4 | w[6] << 6;
    odd[0] = w[1] | w[3] << 2 | w[5] << 4 | w[7] << 6;
  } else {
    even[0] = w[0] | w[2] << 4, even[1] = w[4] | w[6] << 4;
    odd[0] = w[1] | w[3] << 4, odd[1] = w[5] | w[7] << 4;
  }
}
// Bytes (a, b, c, d) of 4 slots -> one word for each slot.
__device__ inline uint4 TransposeBytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t ab = __byte_perm(a, b, 0x5140), ab2 = __byte_perm(a, b, 0x7362);
  const uint32_t cd = __byte_perm(c, d, 0x5140), cd2 = __byte_perm(c, d, 0x7362);
  return make_uint4(__byte_perm(ab, cd, 0x5410), __byte_perm(ab, cd, 0x7632),
                    __byte_perm(ab2, cd2, 0x5410), __byte_perm(ab2, cd2, 0x7632));
}

// The planes of the tile from the codes (formats 3). All threads, after a barrier.
__device__ inline void PackPlanes(const CodedTile& tile, const std::byte* codes, int groups) {
  for (int i = threadIdx.x; i < groups * 16; i += kThreads) {
    const int G = i / 16, slots = i % 16;
    const std::byte* from = codes + 1024 * G;
    uint32_t e[2], o[2];
    if (tile.run == 16 && tile.runs[G].width == 2) {
      uint32_t e2[2], o2[2];
      PackOctet(from, 2, slots, e, o);
      PackOctet(from + 512, 2, slots, e2, o2);
      reinterpret_cast<uint4*>(tile.at + tile.runs[G].code_at)[slots] =
          TransposeBytes(e[0], e2[0], o[0], o2[0]);
      continue;
    }
#pragma unroll 1
    for (int octet = 0; octet < 2; ++octet, from += 512) {
      const RunPlace place = tile.runs[tile.run == 16 ? G : 2 * G + octet];
      std::byte* to = tile.at + place.code_at;
      const int in_run = tile.run == 16 ? octet : 0;
      if (place.width == 2) {
        PackOctet(from, 2, slots, e, o);
        const uint32_t low = __byte_perm(e[0], o[0], 0x5140),
                       high = __byte_perm(e[0], o[0], 0x7362);
        reinterpret_cast<uint2*>(to)[slots] = make_uint2(low, high);
      } else if (place.width == 4) {
        PackOctet(from, 4, slots, e, o);
        reinterpret_cast<uint4*>(to)[in_run * 16 + slots] = TransposeBytes(e[0], e[1], o[0], o[1]);
      } else if (place.width == 8) {
        const auto* w = reinterpret_cast<const uint32_t*>(from) + slots;
        reinterpret_cast<uint4*>(to)[in_run * 32 + slots] =
            TransposeBytes(w[0], w[16], w[32], w[48]);
        reinterpret_cast<uint4*>(to)[in_run * 32 + 16 + slots] =
            TransposeBytes(w[64], w[80], w[96], w[112]);
      }
    }
  }
}

template <int kGroups>
__device__ inline void EncodeK(const TileJob& job, void* shared, float* column, Found* found) {
  constexpr int kD = 16 * kGroups;
  // Channels of 16 that a warp has in its accumulators at a time.
  constexpr int kAtOnce = kGroups >= 8 ? 2 : 1;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const KSpace space = SpaceOfK(shared, kD);
  const bool planes = job.from.at != nullptr;
  const int head_bytes = static_cast<int>(job.tile.runs[0].code_at);
  for (int i = threadIdx.x; i < head_bytes / 16; i += kThreads)
    reinterpret_cast<uint4*>(space.head)[i] = make_uint4(0, 0, 0, 0);
  if (planes) {
    // Scales of the wider tile lie where the codes will be.
    OperandsOfTile<kGroups>(job, space, reinterpret_cast<float2*>(space.codes));
  } else {
    if (job.live != ~uint64_t{0} && job.values == 0) CheckDropped(job, kD, found);
    OperandsOfRows<kGroups>(job, space, column, found);
  }
  __syncthreads();
  const LaneRows rows = RowsOfLane(job.counted, q);
  float energy = 0, error = 0;
  uint32_t identity[4];
  IdentityOperand(g, q, planes, identity);
  for (int first = warp * kAtOnce; first < kGroups; first += 4 * kAtOnce) {
    float acc[kAtOnce][8][4] = {};
    const auto* a_at = reinterpret_cast<const uint4*>(job.cell == nullptr ? nullptr : job.cell->a);
    const int k0 = job.change == Change::kBasis ? 0 : first;
    const int k1 = job.change == Change::kBasis ? kGroups : min(first + kAtOnce, kGroups);
#pragma unroll 1
    for (int k = k0; k < k1; ++k) {
      uint4 b[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) b[w] = space.operand[(k * 4 + w) * 32 + lane];
#pragma unroll
      for (int m = 0; m < kAtOnce; ++m) {
        if (first + m >= kGroups) continue;
        uint32_t a[4];
        if (job.change == Change::kBasis) {
          const uint4 part = __ldg(a_at + ((first + m) * kGroups + k) * 32 + lane);
          a[0] = part.x, a[1] = part.y, a[2] = part.z, a[3] = part.w;
        } else {
          if (k != first + m) continue;
          a[0] = identity[0], a[1] = identity[1], a[2] = identity[2], a[3] = identity[3];
        }
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          MmaF16(acc[m][2 * w], a, b[w].x, b[w].y);
          MmaF16(acc[m][2 * w + 1], a, b[w].z, b[w].w);
        }
      }
    }
    // Packed, then one channel at a time by one copy of the quantiser.
    uint32_t packed[2 * kAtOnce][8];
#pragma unroll
    for (int m = 0; m < kAtOnce; ++m)
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          const int j = i / 4, n = 2 * (i % 4);
          packed[2 * m + row][i] = PackF16(acc[m][n][2 * row + j], acc[m][n + 1][2 * row + j]);
        }
    ChannelSums mine{};
#pragma unroll 1
    for (int u = 0; u < 2 * kAtOnce && first + u / 2 < kGroups; ++u) {
      uint32_t h[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        h[i] = packed[0][i];
#pragma unroll
        for (int other = 1; other < 2 * kAtOnce; ++other)
          h[i] = u == other ? packed[other][i] : h[i];
      }
      const int c = 16 * first + 8 * u + g;
      const int width = job.tile.runs[c / job.tile.run].width;
      uint4 codes;
      const ChannelSums sums = rows.all
                                   ? CodeChannel<true>(h, width, rows, job.live, q, &codes, found)
                                   : CodeChannel<false>(h, width, rows, job.live, q, &codes, found);
      *reinterpret_cast<uint4*>(space.codes + 64 * c + 16 * q) = codes;
      if (u == q) mine = sums;
    }
    __syncwarp();
    // The quad's lanes finish a channel each.
    const int c = 16 * first + 8 * q + g;
    if (q < 2 * kAtOnce && c < kD) {
      const RunPlace place = job.tile.runs[c / job.tile.run];
      const ChannelScale s = FinishChannel(mine, place.width, rows.rows, found);
      if (s.clear) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          reinterpret_cast<uint4*>(space.codes + 64 * c)[i] = make_uint4(0, 0, 0, 0);
      }
      energy += s.energy;
      error += s.error;
      reinterpret_cast<uint16_t*>(space.head)[c] = s.scale.m_bits;
      std::byte* scale = space.head + place.scale_at;
      const int k = c % job.tile.run;
      if (place.width == 2) scale[k] = static_cast<std::byte>(s.scale.scale_bits);
      if (place.width > 2)
        reinterpret_cast<uint16_t*>(scale)[k] = static_cast<uint16_t>(s.scale.scale_bits);
    }
    __syncwarp();
  }
  energy = WarpSum(energy);
  error = WarpSum(error);
  if (lane == 0) {
    atomicAdd(&found->energy, energy);
    atomicAdd(&found->error, error);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < head_bytes / 16; i += kThreads)
    reinterpret_cast<uint4*>(job.tile.at)[i] = reinterpret_cast<const uint4*>(space.head)[i];
  PackPlanes(job.tile, space.codes, kGroups);
  if (job.measure_x != 0) {  // energy = sum x^2 - n sum of squared means
    const float n = static_cast<float>(rows.rows);
    float less = 0;
    for (int c = threadIdx.x; c < kD; c += kThreads)
      less += n > 0 ? column[c] * column[c] / n : 0.0f;
    less = WarpSum(less);
    if (lane == 0) atomicAdd(&found->x_energy, -less);
  }
}

}  // namespace dyna::cuda
