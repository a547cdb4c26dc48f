// y' and z' of a coded tile, as the pairs of halves a lane feeds to the matrix instructions. Exact:
// rounded to f16 as codec_math.h rounds.
#pragma once

#include "kernels/codec_math.h"
#include "kernels/cuda/fragment.h"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/trellis.cuh"
#include "kernels/cuda/warp.cuh"

namespace dyna::cuda {

// ---- K

// Codes come as they lie: halves whose bits are the code, which as f16 is code 2^-24. Scales carry
// the 2^24, so that no instruction is spent on making numbers of them; both are exact.

// Scale (times 2^24) and offset of channel c.
__device__ inline float2 ScaleOf(const CodedTile& tile, int c) {
  const RunPlace place = tile.runs[c / tile.run];
  const std::byte* at = tile.at + place.scale_at;
  const int k = c % tile.run;
  float s = 0;
  if (place.width == 2) s = codec::Log8Decode(static_cast<int>(at[k]));
  if (place.width > 2) s = codec::F16ToF32(reinterpret_cast<const uint16_t*>(at)[k]);
  return make_float2(s * 0x1p24f, codec::F16ToF32(reinterpret_cast<const uint16_t*>(tile.at)[c]));
}

// y' of a pair of codes; `s`: ScaleOf both channels.
__device__ inline uint32_t DecodePair(uint32_t codes, const float4& s) {
  return PackF16(__fadd_rn(__fmul_rn(s.x, LowF16(codes)), s.y),
                 __fadd_rn(__fmul_rn(s.z, HighF16(codes)), s.w));
}

// Codes of channels 2q, 2q + 1 (a) and 2q + 8, 2q + 9 (b) of group G of 16 in the row at `slot`.
struct CodePairs {
  uint32_t a, b;
};
__device__ inline uint32_t PairOfByteWord(uint32_t e, int q) {
  return __byte_perm(e, 0, (q & 1) != 0 ? 0x4342 : 0x4140);
}
// An octet of width 4, 8 or 0: `first` is its first plane.
__device__ inline uint32_t PairOfOctet(const std::byte* first, int width, int q, int slot) {
  const auto* words = reinterpret_cast<const uint32_t*>(first) + slot;
  if (width == 4) return *words >> (4 * q) & 0x000f000fu;
  if (width == 8) return PairOfByteWord(words[(q >> 1) * 64], q);
  return 0;
}
__device__ inline CodePairs PairsOf(const CodedTile& tile, const RunPlace* runs, int G, int q,
                                    int slot) {
  CodePairs p{0, 0};
  if (tile.run == 16) {
    const RunPlace place = runs[G];
    const std::byte* at = tile.at + place.code_at;
    if (place.width == 2) {
      const uint32_t e = reinterpret_cast<const uint32_t*>(at)[slot] >> (2 * q);
      p.a = e & 0x00030003u;
      p.b = e >> 8 & 0x00030003u;
    } else {
      p.a = PairOfOctet(at, place.width, q, slot);
      p.b = PairOfOctet(at + 32 * place.width * 2, place.width, q, slot);
    }
    return p;
  }
  const RunPlace places[2] = {runs[2 * G], runs[2 * G + 1]};
#pragma unroll
  for (int o = 0; o < 2; ++o) {
    const std::byte* at = tile.at + places[o].code_at;
    uint32_t& out = o == 0 ? p.a : p.b;
    if (places[o].width == 2) {
      const uint32_t e = reinterpret_cast<const uint16_t*>(at)[slot] >> (2 * q);
      out = (e & 3) | (e >> 8 & 3) << 16;
    } else {
      out = PairOfOctet(at, places[o].width, q, slot);
    }
  }
  return p;
}

// ---- V

__device__ inline float GainOf(const CodedTile& tile, int v_exp, int slot) {
  if (tile.bits == 8)
    return codec::F16ToF32(reinterpret_cast<const uint16_t*>(tile.at)[slot]) * codec::Power2(v_exp);
  return codec::Log8eDecode(static_cast<int>(tile.at[slot]), v_exp);
}
__device__ inline const std::byte* CodesOfV(const CodedTile& tile) {
  return tile.at + (tile.bits == 8 ? 128 : 64);
}

// Stored codes of channels 16 G + 4 q .. + 3 of row r: a byte each.
__device__ inline uint32_t CodeQuad(const std::byte* codes, int groups, int bits, int r, int G,
                                    int q) {
  const std::byte* cell = codes + ((r >> 3) * groups + G) * 16 * bits + ((r >> 1) & 3) * 4 * bits;
  const int odd = r & 1;
  if (bits == 8) {
    const uint2 w = reinterpret_cast<const uint2*>(cell)[q];
    return __byte_perm(w.x, w.y, odd != 0 ? 0x7632 : 0x5410);
  }
  if (bits == 4) {
    const uint32_t w = reinterpret_cast<const uint32_t*>(cell)[q] >> (16 * odd);
    return (w & 0xfu) | (w & 0xf0u) << 4 | (w & 0xf00u) << 8 | (w & 0xf000u) << 12;
  }
  if (bits == 2) {
    const uint32_t w = reinterpret_cast<const uint32_t*>(cell)[q >> 1] >> (16 * odd + 8 * (q & 1));
    return (w & 3u) | (w & 0xcu) << 6 | (w & 0x30u) << 12 | (w & 0xc0u) << 18;
  }
  const uint32_t w = *reinterpret_cast<const uint32_t*>(cell) >> (16 * odd + 4 * q);
  return (w & 1u) | (w & 2u) << 7 | (w & 4u) << 14 | (w & 8u) << 21;
}

// z' of four codes of 4 or 8 bits, as two pairs of halves.
__device__ inline uint2 DecodeQuad(uint32_t codes, int bits, float gain) {
  const half2 shift = __float2half2_rn(1024.0f + static_cast<float>(1 << (bits - 1)));
  const half2 half = AsHalf2(0x38003800u);  // 1/2
  const half2 low = __hadd2(__hsub2(AsHalf2(__byte_perm(codes, 0x64, 0x4140)), shift), half);
  const half2 high = __hadd2(__hsub2(AsHalf2(__byte_perm(codes, 0x64, 0x4342)), shift), half);
  return make_uint2(PackF16(gain * __low2float(low), gain * __high2float(low)),
                    PackF16(gain * __low2float(high), gain * __high2float(high)));
}

// z' of channels 16 G + 4 q .. + 3 of row r.
__device__ inline uint2 QuadOfV(const std::byte* codes, int groups, int bits, int r, int G, int q,
                                float gain) {
  const uint32_t quad = CodeQuad(codes, groups, bits, r, G, q);
  if (!codec::IsTrellis(bits)) return DecodeQuad(quad, bits, gain);
  const int before = 4 * G + q - 1;
  const uint32_t last = before < 0 ? 0 : CodeQuad(codes, groups, bits, r, before >> 2, before & 3);
  return DecodeTrellisQuad(quad, last, bits, gain);
}

// ---- of rows: dropped tokens decode to the mean of the rows that count (formats 4)

// Row of logical token t, or -1 where it was dropped.
__device__ inline int RowOfToken(uint64_t live, int t) {
  if (live == ~uint64_t{0}) return t;
  return (live >> t & 1) != 0 ? RankBit(live, t) : -1;
}

// The pairwise tree over rows of value(r), rows that do not count being 0; over their number.
template <typename F>
__device__ inline float MeanOfRows(uint64_t counted, const F& value) {
  if (counted == 0) return 0;
  float t[32];
#pragma unroll 1
  for (int r = 0; r < 32; ++r) {
    const float a = (counted >> r & 1) != 0 ? value(r) : 0.0f;
    const float b = (counted >> (r + 32) & 1) != 0 ? value(r + 32) : 0.0f;
    t[r] = a + b;
  }
#pragma unroll 1
  for (int n = 16; n > 0; n /= 2)
    for (int r = 0; r < n; ++r) t[r] += t[r + n];
  return t[0] / static_cast<float>(__popcll(counted));
}

}  // namespace dyna::cuda
