// The transforms: matrix products over planes, Walsh-Hadamard, RoPE. Any order, fused
// multiply-add; held to 2^-10 of the row's rms (formats 2), which f32 keeps by far.
#if defined(DYNA_KERNELS_HWY_TRANSFORM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DYNA_KERNELS_HWY_TRANSFORM_INL_H_
#undef DYNA_KERNELS_HWY_TRANSFORM_INL_H_
#else
#define DYNA_KERNELS_HWY_TRANSFORM_INL_H_
#endif

#include <cmath>

#include "kernels/cpu/hwy_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace dyna::HWY_NAMESPACE {

using FN = hn::ScalableTag<float>;  // the widest: 8 or 16 lanes
using VN = hn::Vec<FN>;
inline constexpr int kWide = HWY_TARGET == HWY_AVX2 ? 8 : 16;

// kOut outputs x two vectors of rows in registers; x is read once per kOut outputs.
template <int kOut>
HWY_INLINE void TransformBlock(const float* HWY_RESTRICT m, int ld, int in,
                               const float* HWY_RESTRICT bias, const float* HWY_RESTRICT x,
                               float* HWY_RESTRICT y) {
  const FN d;
  VN low[kOut], high[kOut];
  for (int o = 0; o < kOut; ++o) low[o] = high[o] = hn::Set(d, bias != nullptr ? bias[o] : 0.0f);
  for (int i = 0; i < in; ++i) {
    const VN a = hn::Load(d, x + i * kLanes), b = hn::Load(d, x + i * kLanes + kWide);
    for (int o = 0; o < kOut; ++o) {
      const VN w = hn::Set(d, m[o * ld + i]);
      low[o] = hn::MulAdd(w, a, low[o]);
      high[o] = hn::MulAdd(w, b, high[o]);
    }
  }
  for (int o = 0; o < kOut; ++o) {
    hn::Store(low[o], d, y + o * kLanes);
    hn::Store(high[o], d, y + o * kLanes + kWide);
  }
}

inline void Transform(const float* m, int ld, int out, int in, const float* bias, const float* x,
                      float* y) {
  for (int t = 0; t < kLanes; t += 2 * kWide) {  // a strip of x stays in the first-level cache
    int o = 0;
    const auto block = [&]<int kOut>() HWY_ATTR {
      TransformBlock<kOut>(m + o * ld, ld, in, bias != nullptr ? bias + o : nullptr, x + t,
                           y + o * kLanes + t);
      o += kOut;
    };
    while (out - o >= 6 && out - o != 8) block.template operator()<6>();
    while (out - o >= 4) block.template operator()<4>();
    while (out - o >= 1) block.template operator()<1>();
  }
}

inline void Matvec(const float* m, int ld, int out, int in, const float* bias, const float* x,
                   float* y) {
  for (int o = 0; o < out; ++o) {
    const float* row = m + o * ld;
    VF sum = hn::Zero(F8());
    int i = 0;
    for (; i + 8 <= in; i += 8)
      sum = hn::MulAdd(hn::LoadU(F8(), row + i), hn::LoadU(F8(), x + i), sum);
    float total = SumLanes(sum) + (bias != nullptr ? bias[o] : 0.0f);
    for (; i < in; ++i) total += row[i] * x[i];
    y[o] = total;
  }
}

// log2(kN) butterflies over kN planes, `step` planes apart, in registers.
template <int kN>
HWY_INLINE void Butterflies(float* planes, int step, VN scale) {
  const FN d;
  for (int t = 0; t < kLanes; t += kWide) {
    VN v[kN];
    for (int i = 0; i < kN; ++i) v[i] = hn::Load(d, planes + i * step * kLanes + t);
    for (int h = 1; h < kN; h *= 2) {
      for (int i = 0; i < kN; ++i) {
        if ((i & h) != 0) continue;
        const VN a = v[i], b = v[i + h];
        v[i] = hn::Add(a, b);
        v[i + h] = hn::Sub(a, b);
      }
    }
    for (int i = 0; i < kN; ++i) hn::Store(hn::Mul(v[i], scale), d, planes + i * step * kLanes + t);
  }
}

inline void Hadamard(float* planes, int d) {
  const int n = codec::HadamardSize(d);
  const VN last = hn::Set(FN(), 1.0f / std::sqrt(static_cast<float>(n)));
  const VN one = hn::Set(FN(), 1.0f);
  for (int block = 0; block < d; block += n) {
    float* base = planes + block * kLanes;
    for (int step = 1; step < n;) {
      const int left = n / step, radix = left >= 8 && left != 16 ? 8 : left >= 4 ? 4 : 2;
      const VN scale = step * radix == n ? last : one;
      for (int i = 0; i < n; i += step * radix) {
        for (int j = i; j < i + step; ++j) {
          float* at = base + j * kLanes;
          if (radix == 8) Butterflies<8>(at, step, scale);
          if (radix == 4) Butterflies<4>(at, step, scale);
          if (radix == 2) Butterflies<2>(at, step, scale);
        }
      }
      step *= radix;
    }
  }
}

inline void Rotate(float* planes, const RopeBlock& rope, bool undo) {
  if (rope.kind == RopeKind::kNone) return;
  const FN d;
  const bool half = rope.kind == RopeKind::kHalf;
  const VN sign = hn::Set(d, undo ? -1.0f : 1.0f);
  for (int p = 0; p < rope.pairs; ++p) {
    float* x = planes + (half ? p : 2 * p) * kLanes;
    float* y = planes + (half ? p + rope.pairs : 2 * p + 1) * kLanes;
    for (int t = 0; t < kLanes; t += kWide) {
      const VN c = hn::Load(d, rope.cos[p] + t);
      const VN s = hn::Mul(sign, hn::Load(d, rope.sin[p] + t));
      const VN u = hn::Load(d, x + t), v = hn::Load(d, y + t);
      hn::Store(hn::NegMulAdd(v, s, hn::Mul(u, c)), d, x + t);
      hn::Store(hn::MulAdd(u, s, hn::Mul(v, c)), d, y + t);
    }
  }
}

inline void Shift(float* planes, int d, const float* value, float sign) {
  const FN tag;
  for (int c = 0; c < d; ++c) {
    const VN by = hn::Set(tag, sign * value[c]);
    for (int t = 0; t < kLanes; t += kWide) {
      float* at = planes + c * kLanes + t;
      hn::Store(hn::Add(hn::Load(tag, at), by), tag, at);
    }
  }
}

}  // namespace dyna::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
