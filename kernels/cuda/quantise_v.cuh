// Quantiser of V: 16 rows of a tile by a warp (formats 2). Lane (g, q) holds channels 16 G + 4 q +
// i of rows g and g + 8 as pairs of halves, z[row][G][i / 2]. Bytes are those of codec_math.h on
// every input: at 4 bits sums come from the tensor cores in whatever order those add
// (quick_sums.cuh), and rows that a rounding might decide are done the exact way.
#pragma once

#include "kernels/codec_math.h"
#include "kernels/cuda/quick_sums.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/trellis.cuh"
#include "kernels/cuda/warp.cuh"

namespace dyna::cuda {

// What the gain and the measures need of a row.
struct alignas(16) RowSums {
  float zz = 0, zu = 0, uu = 0, gain = 0;
};

// ---- codes of 4 and 8 bits: as units (code + 1/2 before the shift), pairs of halves

// floor(z / step). The step is an f16 times a power of two, so k step is exact for every code k,
// and the quotient reaches an integer only where z does: the nearest integer, or the one below
// where its exact product is above z.
__device__ inline float FloorCode(float z, float step, float inverse, float half) {
  const float magic = 0x1.8p23f;
  float c = __fmaf_rn(z, inverse, magic) - magic;
  if (z < c * step) c -= 1;
  return fminf(c, half - 1);
}
struct RowStep {
  float step = 1, inverse = 1;
};
__device__ inline RowStep StepOf(float top, int bits) {
  const float step = top > 0 ? codec::VStep(bits, top) : 1.0f;
  return {step, __frcp_rn(step)};
}
__device__ inline uint32_t UnitsOf(uint32_t z, int bits, const RowStep& s) {
  const float half = static_cast<float>(1 << (bits - 1));
  return PackF16(FloorCode(LowF16(z), s.step, s.inverse, half) + .5f,
                 FloorCode(HighF16(z), s.step, s.inverse, half) + .5f);
}

// Stored codes of a lane's four channels into their cell (formats 4); `keep`: all ones, or 0 where
// the row does not count.
__device__ inline void StoreCodes(uint32_t low, uint32_t high, int bits, uint32_t keep, int g,
                                  int q, std::byte* cell) {
  const int pair = g >> 1, odd = g & 1;
  const half2 shift = __float2half2_rn(1024.0f + static_cast<float>(1 << (bits - 1)));
  const half2 half = AsHalf2(0x38003800u);
  const uint32_t a = AsBits(__hadd2(__hsub2(AsHalf2(low), half), shift)) & keep;
  const uint32_t b = AsBits(__hadd2(__hsub2(AsHalf2(high), half), shift)) & keep;
  if (bits == 4) {
    const uint32_t both = (a & 0x000f000fu) | (b & 0x000f000fu) << 8;
    *reinterpret_cast<uint16_t*>(cell + 16 * pair + 4 * q + 2 * odd) =
        static_cast<uint16_t>(both | both >> 12);
  } else {
    auto* to = reinterpret_cast<uint16_t*>(cell + 32 * pair + 8 * q + 2 * odd);
    to[0] = static_cast<uint16_t>(__byte_perm(a, 0, 0x4420));
    to[2] = static_cast<uint16_t>(__byte_perm(b, 0, 0x4420));
  }
}

// ---- the exact way

// The part of the tree that one lane holds; groups beyond kGroups are +0.
template <int kGroups, int kFirst, int kStep, int kSize, typename F>
__device__ inline float TreeOfGroups(const F& value) {
  if constexpr (kStep >= kSize) {
    if constexpr (kFirst < kGroups) return value(kFirst);
    return 0.0f;
  } else {
    return TreeOfGroups<kGroups, kFirst, 2 * kStep, kSize>(value) +
           TreeOfGroups<kGroups, kFirst + kStep, 2 * kStep, kSize>(value);
  }
}
// The pairwise tree over channels; value(G, i).
template <int kGroups, typename F>
__device__ inline float TreeOfChannels(const F& value) {
  float t[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    t[i] =
        TreeOfGroups<kGroups, 0, 1, codec::TreeSize(kGroups)>([&](int G) { return value(G, i); });
    t[i] += Xor(t[i], 2);
    t[i] += Xor(t[i], 1);
  }
  return (t[0] + t[2]) + (t[1] + t[3]);
}
__device__ inline float HalfOf(const uint32_t (&word)[2], int i) {
  return (i & 1) != 0 ? HighF16(word[i / 2]) : LowF16(word[i / 2]);
}
template <int kGroups>
__device__ inline float ExactSquares(const uint32_t (&z)[kGroups][2]) {
  return TreeOfChannels<kGroups>([&](int G, int i) {
    const float v = HalfOf(z[G], i);
    return v * v;
  });
}
template <int kGroups>
__device__ inline float TopOf(const uint32_t (&z)[kGroups][2]) {
  half2 top = __habs2(AsHalf2(z[0][0]));
#pragma unroll
  for (int i = 1; i < 2 * kGroups; ++i) top = __hmax2(top, __habs2(AsHalf2(z[i / 2][i % 2])));
  top = __hmax2(top, AsHalf2(Xor(AsBits(top), 1)));
  top = __hmax2(top, AsHalf2(Xor(AsBits(top), 2)));
  return fmaxf(__low2float(top), __high2float(top));
}

// z u and u u of a row, in the order of the format; in every lane of the quad.
template <int kGroups>
__device__ inline void ExactProducts(const uint32_t (&z)[kGroups][2],
                                     const uint32_t (&unit)[kGroups][2], RowSums* sums) {
  sums->zu =
      TreeOfChannels<kGroups>([&](int G, int i) { return HalfOf(z[G], i) * HalfOf(unit[G], i); });
  float uu = 0;  // exact in any order: integers below 2^24, over 4 or 256
#pragma unroll
  for (int i = 0; i < 2 * kGroups; ++i) {
    const float low = LowF16(unit[i / 2][i % 2]), high = HighF16(unit[i / 2][i % 2]);
    uu = __fmaf_rn(low, low, __fmaf_rn(high, high, uu));
  }
  uu += Xor(uu, 1);
  sums->uu = uu + Xor(uu, 2);
}

// One row of each quad, of 4 or 8 bits. `cells`: of the 8 rows. The sums are in every lane of the
// quad.
template <int kGroups>
__device__ inline RowSums ExactRow(const uint32_t (&z)[kGroups][2], int bits, bool counts, int g,
                                   int q, std::byte* cells) {
  RowSums sums;
  const float zz = ExactSquares<kGroups>(z);
  const RowStep s = StepOf(TopOf<kGroups>(z), bits);
  const uint32_t keep = counts && zz > 0 ? ~0u : 0;
  uint32_t unit[kGroups][2];
#pragma unroll
  for (int G = 0; G < kGroups; ++G) {
#pragma unroll
    for (int i = 0; i < 2; ++i) unit[G][i] = UnitsOf(z[G][i], bits, s);
    StoreCodes(unit[G][0], unit[G][1], bits, keep, g, q, cells + 16 * bits * G);
  }
  ExactProducts<kGroups>(z, unit, &sums);
  sums.zz = counts ? zz : 0.0f;
  sums.gain = keep != 0 ? codec::VGain(zz, sums.zu, sums.uu) : 0.0f;
  return sums;
}

// The warp's 16 rows from where KeepRows put them; sums[8 row + g].
template <int kGroups>
__device__ __noinline__ void ExactRows(const uint2* kept, int bits, bool first, bool second,
                                       std::byte* cells, RowSums* sums) {
  const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll 1
  for (int row = 0; row < 2; ++row) {
    uint32_t z[kGroups][2];
#pragma unroll
    for (int G = 0; G < kGroups; ++G) {
      const uint2 word = kept[(row * kGroups + G) * 32 + lane];
      z[G][0] = word.x, z[G][1] = word.y;
    }
    const RowSums now = ExactRow<kGroups>(z, bits, row == 0 ? first : second, g, q,
                                          cells + row * 16 * kGroups * bits);
    if (q == 0) sums[8 * row + g] = now;
  }
}
template <int kGroups>
__device__ inline void KeepRows(const uint32_t (&z)[2][kGroups][2], int lane, uint2* kept) {
#pragma unroll
  for (int i = 0; i < 2 * kGroups; ++i)
    kept[i * 32 + lane] =
        make_uint2(z[i / kGroups][i % kGroups][0], z[i / kGroups][i % kGroups][1]);
}

// ---- the quick way

// What a quad's lanes know of each row, to all of them: it lies with lane g / 2, value g % 2.
__device__ inline float OfDiagonal(float even, float odd, int g) {
  return __shfl_sync(0xffffffffu, (g & 1) != 0 ? odd : even, g >> 1, 4);
}

// 4 bits; lane q < 2 gets the sums of row q. False, in any lane: a rounding might decide there, and
// nothing is to be used. `cells`: of the 16 rows.
template <int kGroups>
__device__ inline bool QuickRows(const uint32_t (&z)[2][kGroups][2], const bool (&counts)[2], int g,
                                 int q, std::byte* cells, RowSums* out) {
  constexpr int kBits = 4;
  // Two chains of kGroups / 2 steps, one of kGroups; and the exact way's own roundings.
  constexpr float kSquareError = (12 * kGroups + 24) * kUnit,
                  kUnitError = (24 * kGroups + 16) * kUnit;
  const int mine = q & 1;
  const bool my_counts = mine == 0 ? counts[0] : counts[1];
  float sum[2][2][4] = {};
#pragma unroll
  for (int G = 0; G < kGroups; ++G) {
    const uint32_t a[4] = {z[0][G][0], z[1][G][0], z[0][G][1], z[1][G][1]};
    MmaF16(sum[0][G & 1], a, z[0][G][0], z[0][G][1]);
    MmaF16(sum[1][G & 1], a, z[1][G][0], z[1][G][1]);
  }
  const float zz[2] = {OfDiagonal(sum[0][0][0] + sum[0][1][0], sum[0][0][1] + sum[0][1][1], g),
                       OfDiagonal(sum[1][0][2] + sum[1][1][2], sum[1][0][3] + sum[1][1][3], g)};
  const float my_zz = mine == 0 ? zz[0] : zz[1];
  float cross[2][4] = {};
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const uint32_t keep = counts[row] && zz[row] > 0 ? ~0u : 0;
    const RowStep step = StepOf(TopOf<kGroups>(z[row]), kBits);
#pragma unroll
    for (int G = 0; G < kGroups; ++G) {
      const uint32_t unit[2] = {UnitsOf(z[row][G][0], kBits, step),
                                UnitsOf(z[row][G][1], kBits, step)};
      StoreCodes(unit[0], unit[1], kBits, keep, g, q, cells + 16 * kBits * (row * kGroups + G));
      MmaF16(cross[row], {z[row][G][0], unit[0], z[row][G][1], unit[1]}, unit[0], unit[1]);
    }
  }
  const float zu[2] = {OfDiagonal(cross[0][0], cross[0][1], g),
                       OfDiagonal(cross[1][0], cross[1][1], g)};
  const float uu[2] = {OfDiagonal(cross[0][2], cross[0][3], g),
                       OfDiagonal(cross[1][2], cross[1][3], g)};
  out->zz = my_counts ? my_zz : 0.0f;
  out->zu = mine == 0 ? zu[0] : zu[1];
  out->uu = mine == 0 ? uu[0] : uu[1];
  out->gain = 0;
  if (!my_counts || !(my_zz > 0) || !codec::IsFiniteBits(my_zz)) return true;
  out->gain = fminf(__fdividef(my_zz, out->zu), __fdividef(2 * out->zu, out->uu));
  // Sure, if no boundary of LOG8E and no power of two is near.
  const float log = 16 * ApproxLog2(out->gain), nearest = rintf(log);
  const float off = 24 * (kSquareError + kUnitError) + kLogError;
  return .5f - fabsf(log - nearest) > off && fabsf(log - 16 * rintf(log * .0625f)) > off;
}

// ---- 1 and 2 bits: the trellis

// The rows of all four warps, by all threads of the block; lane q < 2 gets the sums of row q, and
// the largest of its |u|. rows: shared memory of TrellisRowBytes a row, cells: of the warps' rows,
// [4][16 d]; squares: [64]. A thread searches a row, so that half of them wait; what a row needs
// before and after is done by quads.
template <int kGroups, int kBits>
__device__ inline RowSums TrellisRows(const uint32_t (&z)[2][kGroups][2], const bool (&counts)[2],
                                      std::byte* rows, std::byte* cells, float* squares,
                                      float* top) {
  constexpr int kD = 16 * kGroups, kRow = TrellisRowBytes(kD);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  float zz[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int r = 16 * warp + 8 * row + g;
    zz[row] = ExactSquares<kGroups>(z[row]);
    zz[row] = counts[row] ? zz[row] : 0.0f;
    if (q == 0) squares[r] = zz[row];
#pragma unroll
    for (int G = 0; G < kGroups; ++G)
      *reinterpret_cast<uint2*>(rows + r * kRow + 32 * G + 8 * q) =
          make_uint2(z[row][G][0], z[row][G][1]);
  }
  __syncthreads();
  if (threadIdx.x < 64) {
    const int r = threadIdx.x;
    auto* row = reinterpret_cast<uint4*>(rows + r * kRow);
    const float energy = squares[r];
    const uint32_t keep = energy > 0 ? ~0u : 0;
    const uint32_t state = TrellisSearch<kBits>(row, kD, codec::TrellisRms(energy, kD));
    // The row's part of the first cell of its group of eight.
    std::byte* first = cells + (r >> 4) * 16 * kD + (r >> 3 & 1) * 16 * kGroups * kBits +
                       (r >> 1 & 3) * 4 * kBits + 2 * (r & 1);
    TrellisTrace<kBits>(row, kD, state, [&](int o, uint32_t codes) {
      std::byte* cell = first + (o >> 1) * 16 * kBits;
      if constexpr (kBits == 2) {
        *reinterpret_cast<uint16_t*>(cell + 4 * (o & 1)) = static_cast<uint16_t>(codes & keep);
      } else {
        cell[o & 1] = static_cast<std::byte>(codes & keep);
      }
    });
  }
  __syncthreads();
  const LevelTable units = TableOf<kBits>(1);
  RowSums mine;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    std::byte* at = rows + (16 * warp + 8 * row + g) * kRow;
    uint32_t unit[kGroups][2];
    half2 most = AsHalf2(0);
#pragma unroll
    for (int G = 0; G < kGroups; ++G) {
      const uint32_t* octet = LevelsAt(at, 2 * G + (q >> 1));
      const uint2 four = LookUp(units, reinterpret_cast<const uint16_t*>(octet)[q & 1]);
      unit[G][0] = four.x;
      unit[G][1] = four.y;
      most = __hmax2(most, __hmax2(__habs2(AsHalf2(four.x)), __habs2(AsHalf2(four.y))));
    }
    RowSums sums;
    ExactProducts<kGroups>(z[row], unit, &sums);
    most = __hmax2(most, AsHalf2(Xor(AsBits(most), 1)));
    most = __hmax2(most, AsHalf2(Xor(AsBits(most), 2)));
    if ((q & 1) != row) continue;
    mine = sums;
    mine.zz = zz[row];
    *top = fmaxf(__low2float(most), __high2float(most));
  }
  mine.gain = mine.zz > 0 ? codec::VGain(mine.zz, mine.zu, mine.uu) : 0.0f;
  return mine;
}

}  // namespace dyna::cuda
