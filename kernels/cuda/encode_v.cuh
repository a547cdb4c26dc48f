// V of one tile into its bytes, by one thread block: each warp takes two n-tiles of 8 rows from
// memory straight into matrix operands, rotates, quantises, and packs through a strip of shared
// memory of its own.
#pragma once

#include "kernels/cuda/dequantise.cuh"
#include "kernels/cuda/encode_k.cuh"
#include "kernels/cuda/hadamard.cuh"
#include "kernels/cuda/quantise_v.cuh"
#include "kernels/cuda/rows.cuh"

namespace dyna::cuda {

constexpr int CodeStrideV(int d) { return d + 8; }  // in pairs of bytes; off the banks' period
constexpr int EncodeVBytes(int d) { return 4 * (4 * 2 * CodeStrideV(d) + TrellisBytes(d)); }

// Rotated values of 8 rows from the operand's words, in the layout of quantise_v.h.
template <int kGroups>
__device__ inline void RotateRows(const TileJob& job, const uint2 (&raw)[kGroups],
                                  const std::byte* wide_row, int g, int q,
                                  uint32_t (&z)[kGroups][2], bool* finite) {
  float acc[kGroups][4] = {};
  uint32_t a[4];
  if (job.change != Change::kHadamard) {  // z itself, in f16
    IdentityOperand(g, q, false, a);
#pragma unroll
    for (int G = 0; G < kGroups; ++G) MmaF16(acc[G], a, raw[G].x, raw[G].y);
  } else {
    HadamardOperandA(g, q, 0x3f80u, a);
#pragma unroll
    for (int G = 0; G < kGroups; ++G) {
      if (job.dtype == DType::kBf16) {
        MmaBf16(acc[G], a, raw[G].x, raw[G].y);
        continue;
      }
      // Two bf16 carry the 11 bits of an f16, and all that the result keeps of an f32.
      float x[4];
      if (job.dtype == DType::kF16) {
        Widen(raw[G], DType::kF16, x);
      } else if (wide_row != nullptr) {
        Load4(wide_row, DType::kF32, 16 * G + 4 * q, x);
      } else {
        x[0] = x[1] = x[2] = x[3] = 0;
      }
      *finite = *finite && Finite4(x);
      const uint32_t h0 = PackBf16(x[0], x[1]), h1 = PackBf16(x[2], x[3]);
      MmaBf16(acc[G], a, h0, h1);
      MmaBf16(acc[G], a, PackBf16(x[0] - LowBf16(h0), x[1] - HighBf16(h0)),
              PackBf16(x[2] - LowBf16(h1), x[3] - HighBf16(h1)));
    }
    HadamardGroups<kGroups, 4>(acc);
  }
#pragma unroll
  for (int G = 0; G < kGroups; ++G) {
    z[G][0] = PackF16(acc[G][0], acc[G][1]);
    z[G][1] = PackF16(acc[G][2], acc[G][3]);
  }
}

template <int kGroups>
__device__ inline void KeepPinnedV(const TileJob& job, const uint2 (&raw)[kGroups],
                                   const std::byte* wide_row, int t, int q, Found* found) {
#pragma unroll
  for (int G = 0; G < kGroups; ++G) {
    float x[4];
    if (job.dtype == DType::kF32) {
      Load4(wide_row, DType::kF32, 16 * G + 4 * q, x);
    } else {
      Widen(raw[G], job.dtype, x);
    }
    if (!Finite4(x)) FoundBadToken(found, t);
    if (job.pins != nullptr) Store4(PinAt(job, t), job.dtype, 16 * G + 4 * q, x);
  }
}

template <int kGroups>
__device__ inline void EncodeV(const TileJob& job, void* shared, Found* found, int8_t* v_exp_out) {
  constexpr int kD = 16 * kGroups;
  __shared__ float gain_of[64], most_gain[4];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const int bits = job.tile.bits, rows = __popcll(job.live);
  auto* codes = static_cast<uint16_t*>(shared) + warp * 4 * CodeStrideV(kD);
  void* strip =
      static_cast<std::byte*>(shared) + 4 * 4 * 2 * CodeStrideV(kD) + warp * TrellisBytes(kD);
  std::byte* words = job.tile.at + (bits == 8 ? 128 : 64);
  if (job.from.at == nullptr && job.live != ~uint64_t{0} && job.values == 0)
    CheckDropped(job, kD, found);
  uint2 raw[2][kGroups];
  int token[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = 16 * warp + 8 * half + g;
    token[half] = r < rows ? TokenOfRow(job.live, r) : 64;
#pragma unroll
    for (int G = 0; G < kGroups; ++G) raw[half][G] = make_uint2(0, 0);
    if (token[half] == 64) continue;
    if (job.from.at != nullptr) {
      const int from = TokenOfRow(job.narrow, r);
      const float gain = GainOf(job.from, *job.from.v_exp, codec::TokenSlot(from));
#pragma unroll
      for (int G = 0; G < kGroups; ++G)
        raw[half][G] = QuadOfV(CodesOfV(job.from), kGroups, job.from.bits, from, G, q, gain);
    } else if (job.dtype != DType::kF32) {
      LoadRaw<kGroups>(RowAt(job.rows, token[half]), q, raw[half]);
    }
  }
  RowSums sums[2][2];
  float most = 0;
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    uint2 mine[kGroups];
#pragma unroll
    for (int G = 0; G < kGroups; ++G) mine[G] = half == 0 ? raw[0][G] : raw[1][G];
    const int t = half == 0 ? token[0] : token[1];
    const std::byte* wide_row =
        job.from.at == nullptr && job.dtype == DType::kF32 && t < 64 ? RowAt(job.rows, t) : nullptr;
    if (t < 64 && (job.pinned >> t & 1) != 0 && job.from.at == nullptr)
      KeepPinnedV<kGroups>(job, mine, wide_row, t, q, found);
    uint32_t z[kGroups][2];
    bool finite = true;
    RotateRows<kGroups>(job, mine, wide_row, g, q, z, &finite);
    const int r0 = 16 * warp + 8 * half + 2 * q;
    const bool counts[2] = {(job.counted >> r0 & 1) != 0, (job.counted >> (r0 + 1) & 1) != 0};
    if (!finite && t < 64) FoundBadToken(found, t);
    RowSums now[2];
    __syncwarp();
    if (bits == 1) QuantiseRows<kGroups, 1>(z, 1, counts, g, q, strip, codes, CodeStrideV(kD), now);
    if (bits == 2) QuantiseRows<kGroups, 2>(z, 2, counts, g, q, strip, codes, CodeStrideV(kD), now);
    if (bits > 2)
      QuantiseRows<kGroups, 8>(z, bits, counts, g, q, strip, codes, CodeStrideV(kD), now);
    __syncwarp();
    PackRows<kGroups>(codes, CodeStrideV(kD), bits, lane,
                      words + (2 * warp + half) * kGroups * 16 * bits);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (half == 0) sums[0][j] = now[j];
      if (half == 1) sums[1][j] = now[j];
      most = fmaxf(most, now[j].gain);
      if (!codec::IsFiniteBits(now[j].zz)) {
        FoundBadToken(found, TokenOfRow(job.live, r0 + j));
      } else if (g == 0) {
        gain_of[codec::TokenSlot(r0 + j)] = now[j].gain;
      }
    }
  }
  most = fmaxf(most, Xor(most, 1));
  most = fmaxf(most, Xor(most, 2));
  if (lane == 0) most_gain[warp] = most;
  __syncthreads();
  most = fmaxf(fmaxf(most_gain[0], most_gain[1]), fmaxf(most_gain[2], most_gain[3]));
  const int v_exp = codec::GainExponent(most);
  if (threadIdx.x == 0) *v_exp_out = static_cast<int8_t>(v_exp);
  if (threadIdx.x < 64) {
    const float gain = gain_of[threadIdx.x];
    if (bits == 8) {
      reinterpret_cast<uint16_t*>(job.tile.at)[threadIdx.x] =
          codec::F32ToF16(gain * codec::Power2(-v_exp));
    } else {
      job.tile.at[threadIdx.x] = static_cast<std::byte>(codec::Log8eEncode(gain, v_exp));
    }
  }
  // What was lost, from the sums: |z - g' u|^2.
  float energy = 0, error = 0;
  if (g < 4) {
    const RowSums& s = g == 0 ? sums[0][0] : g == 1 ? sums[0][1] : g == 2 ? sums[1][0] : sums[1][1];
    if (s.gain > 0) {
      const float coded = bits == 8
                              ? codec::F16ToF32(codec::F32ToF16(s.gain * codec::Power2(-v_exp))) *
                                    codec::Power2(v_exp)
                              : codec::Log8eDecode(codec::Log8eEncode(s.gain, v_exp), v_exp);
      error = fmaxf(s.zz - 2 * coded * s.zu + coded * coded * s.uu, 0.0f);
      if (!codec::IsFiniteBits(codec::RoundF16(coded * s.max_unit)))
        atomicOr(&found->flags, kBadScale);
    }
    energy = s.zz;
  }
  energy = WarpSum(energy);
  error = WarpSum(error);
  if (lane == 0) {
    atomicAdd(&found->energy, energy);
    atomicAdd(&found->error, error);
  }
}

}  // namespace dyna::cuda
