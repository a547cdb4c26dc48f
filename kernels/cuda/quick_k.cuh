// Quantiser of K, the quick way: codes as in quantise_k.cuh, but the sums behind scale and offset
// come from the tensor cores, in whatever order those add. Scale and offset are rounded to a few
// bits, so an approximate sum almost always gives the bytes of the exact one: QuickFinish says
// where it might not, and those channels are done again the exact way.
#pragma once

#include "kernels/cuda/quantise_k.cuh"
#include "kernels/cuda/quick_sums.cuh"

namespace dyna::cuda {

// Sums over the rows of one channel that count.
struct alignas(16) QuickSums {
  float y;       // exact: the pairwise tree
  float yy, yc;  // of y^2, and y code
  float error;   // of widths 4 and 8
  float c, cc;   // of width 2: sum of code, of code^2. Of widths 4 and 8: lo, hi
  float unused[2];
};

// CodeUniform without the sums: the error is that of y' before its rounding to f16.
template <bool kAll>
__device__ inline uint4 QuickUniform(const float (&v)[16], const LaneRows& rows, int width,
                                     const LoHi& range, float* error_out) {
  const codec::KScale scale = codec::UniformScale(range.lo, range.hi, 0, width);
  const float s = scale.scale, m = scale.offset;
  const float inverse = s == 0 ? 0.0f : __frcp_rn(s), half_step = .5f * s;
  const float magic = kCodeZero, top = static_cast<float>((1 << width) - 1);
  uint32_t bits[16];
  float worst = 0, error = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float u = Counts<kAll>(rows, i) ? v[i] - m : 0.0f;
    const float t = __fmaf_rn(u, inverse, magic);
    const float rest = __fmaf_rn(-(t - magic), s, u);
    worst = fmaxf(worst, fabsf(rest));
    error = __fmaf_rn(rest, rest, error);
    bits[i] = __float_as_uint(t);
  }
  // Codes do not fall as y grows: the highest is that of hi.
  const bool unsure = worst >= half_step || __fmaf_rn(range.hi - m, inverse, magic) - magic > top;
  if (unsure) {
    ExactCodes(v, scale, width, bits);
    if constexpr (!kAll) {
#pragma unroll
      for (int i = 0; i < 16; ++i)
        if (!Counts<false>(rows, i)) bits[i] = __float_as_uint(kCodeZero);
    }
  }
  *error_out = QuadSum(error);
  return BytesOfFloats(bits);
}

// One octet of channels: h[4 j + i] of lane (g, q) holds rows 8 n + 2 q + j, n = 2 i and 2 i + 1,
// of channel g. All lanes of the warp, one width. Writes the lane's codes, and sums[g].
template <bool kAll>
__device__ inline void CodeOctet(const uint32_t (&h)[8], int width, const LaneRows& rows, int g,
                                 int q, uint4* codes, QuickSums* sums) {
  uint32_t y[8], c[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    y[i] = kAll ? h[i]
                : h[i] & ((Counts<false>(rows, 2 * i) ? 0xffffu : 0) |
                          (Counts<false>(rows, 2 * i + 1) ? 0xffff0000u : 0));
    c[i] = 0;
  }
  float v[16];
  LanesOf(y, v);
  // What is stored of the mean is more than a quick sum would give.
  const float mean_sum = TreeOfRows(v);
  LoHi range{0, 0};
  float error = 0;
  *codes = make_uint4(0, 0, 0, 0);
  float sum[4] = {}, square[4] = {}, cross[4] = {};
  if (width > 0) {
    range = RangeOf<kAll>(h, rows);
    if (width == 2) {
      CoarseCodes(h, range.lo, codec::CoarseStep(range.lo, range.hi), q, c);
      if constexpr (!kAll) {
#pragma unroll
        for (int i = 0; i < 8; ++i)
          c[i] &= (Counts<false>(rows, 2 * i) ? 0xffffu : 0) |
                  (Counts<false>(rows, 2 * i + 1) ? 0xffff0000u : 0);
      }
      *codes = BytesOf(c);
      // Rows 0..7 of the products are sums with y, rows 8..15 with codes; of columns that are
      // channels too, a channel's own is on the diagonal.
      constexpr uint32_t kOnes = 0x3c003c00u;
#pragma unroll
      for (int s = 0; s < 8; s += 2) {
        const uint32_t a[4] = {y[s], c[s], y[s + 1], c[s + 1]};
        MmaF16(cross, a, c[s], c[s + 1]);
        MmaF16(sum, a, kOnes, kOnes);
      }
    } else {
      *codes = QuickUniform<kAll>(v, rows, width, range, &error);
    }
  }
#pragma unroll
  for (int s = 0; s < 8; s += 2) MmaF16(square, {y[s], 0, y[s + 1], 0}, y[s], y[s + 1]);
  if (q == g >> 1) {
    const bool odd = (g & 1) != 0;
    auto* out = reinterpret_cast<float4*>(sums + g);
    out[0] = make_float4(mean_sum, odd ? square[1] : square[0], odd ? cross[1] : cross[0], error);
    reinterpret_cast<float2*>(out + 1)[0] = width == 2
                                                ? make_float2(sum[2], odd ? cross[3] : cross[2])
                                                : make_float2(range.lo, range.hi);
  }
}

// As FinishChannel, from approximate sums. False: they do not tell, or something is out of range.
__device__ inline bool QuickFinish(const QuickSums& sums, int width, int rows, ChannelScale* out) {
  const float n = static_cast<float>(rows), mean = sums.y / n;
  const float sum_error = kTreeError * ApproxSqrt(sums.yy);
  const float yy = __fmaf_rn(-mean, sums.y, sums.yy);
  const float yy_error = kSumError * sums.yy + 2 * fabsf(mean) * sum_error;
  // Also where all values are one, and where one is not finite.
  if (!(yy_error < 0x1p-6f * yy) || !codec::IsFiniteBits(sums.yy)) return false;
  out->energy = yy;
  out->clear = width == 0;
  if (width > 2) {
    out->scale = codec::UniformScale(sums.c, sums.cc, 0, width);
    out->error = sums.error;
    return out->scale.scale != 0 &&
           codec::IsFiniteBits(codec::DecodeK((1 << width) - 1, out->scale));
  }
  if (width == 0) {
    out->scale.m_bits = codec::MeanOffset(mean);
    out->scale.offset = codec::F16ToF32(out->scale.m_bits);
    out->error = yy + n * (mean - out->scale.offset) * (mean - out->scale.offset);
    return codec::IsFiniteBits(out->scale.offset);
  }
  const float mean_code = sums.c / n;
  const float yc = __fmaf_rn(-sums.y, mean_code, sums.yc);
  const float yc_error = kSumError * ApproxSqrt(sums.yy * sums.cc) + sum_error * mean_code;
  if (!(yc_error < 0x1p-6f * yc)) return false;
  const float log = 16 * ApproxLog2(__fdividef(yy, yc)), nearest = rintf(log);
  const float off = 24 * (__fdividef(yy_error, yy) + __fdividef(yc_error, yc)) + kLogError;
  if (!(.5f - fabsf(log - nearest) > off)) return false;
  codec::KScale& k = out->scale;
  k.scale_bits = static_cast<int>(nearest) + codec::kLog8Bias;
  if (k.scale_bits < 1 || k.scale_bits > 255) return false;
  k.scale = codec::Log8Decode(k.scale_bits);
  k.m_bits = codec::F32ToF16((mean - k.scale * mean_code) + 0.0f);
  k.offset = codec::F16ToF32(k.m_bits);
  const float shift = k.offset - (mean - k.scale * mean_code);
  out->error =
      fmaxf(yy - 2 * k.scale * yc + k.scale * k.scale * (sums.cc - n * mean_code * mean_code),
            0.0f) +
      n * shift * shift;
  return codec::IsFiniteBits(codec::DecodeK(0, out->scale)) &&
         codec::IsFiniteBits(codec::DecodeK(3, out->scale));
}

}  // namespace dyna::cuda
