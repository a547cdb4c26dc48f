// Sums over a tile: means (exact trees), energies, second moments, and the softmax of scores.
#if defined(DYNA_KERNELS_HWY_MOMENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DYNA_KERNELS_HWY_MOMENTS_INL_H_
#undef DYNA_KERNELS_HWY_MOMENTS_INL_H_
#else
#define DYNA_KERNELS_HWY_MOMENTS_INL_H_
#endif

#include <algorithm>

#include "hwy/contrib/math/math-inl.h"
#include "kernels/cpu/hwy_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace dyna::HWY_NAMESPACE {

inline void Mean(const float* planes, int d, uint64_t rows, float* mean) {
  if (rows == 0) {
    std::fill_n(mean, d, 0.0f);
    return;
  }
  const RowMask mask(rows);
  const VF count = Set8(static_cast<float>(std::popcount(rows)));
  int c = 0;
  const auto fold = [&](int channel) HWY_ATTR {
    VF x[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      x[g] = Load8(planes + channel * kLanes + 8 * g);
      if (!mask.all) x[g] = mask.Keep(g, x[g]);
    }
    return FoldRows(x, AddOp());
  };
  for (; c < d; c += 8) {
    VF sums[8];
    const int some = std::min(8, d - c);
    for (int i = 0; i < 8; ++i) sums[i] = i < some ? fold(c + i) : hn::Zero(F8());
    HWY_ALIGN float out[8];
    Store8(hn::Div(FoldLanes(sums, AddOp()), count), out);
    std::copy_n(out, some, mean + c);
  }
}

inline float Energy(const float* planes, int d, uint64_t rows, const float* mean) {
  const RowMask mask(rows);
  VF total = hn::Zero(F8());
  for (int g = 0; g < kGroups; ++g) {
    VF a = hn::Zero(F8()), b = a;
    const auto add = [&](int c, VF sum) HWY_ATTR {
      const VF x = Load8(planes + c * kLanes + 8 * g);
      const VF e = mean != nullptr ? hn::Sub(x, Set8(mean[c])) : x;
      return hn::MulAdd(e, e, sum);
    };
    for (int c = 0; c + 1 < d; c += 2) {
      a = add(c, a);
      b = add(c + 1, b);
    }
    if (d % 2 != 0) a = add(d - 1, a);
    total = hn::Add(total, mask.Keep(g, hn::Add(a, b)));
  }
  return SumLanes(total);
}

inline void Rank64(const float* planes, int d, float* upper) {
  for (int i = 0; i < d; ++i) {
    const float* x = planes + i * kLanes;
    for (int j = i; j < d; j += 8) {
      const int some = std::min(8, d - j);
      VF sums[8];
      for (int k = 0; k < 8; ++k) sums[k] = hn::Zero(F8());
      for (int g = 0; g < kGroups; ++g) {
        const VF a = Load8(x + 8 * g);
        if (some == 8) {
          for (int k = 0; k < 8; ++k)
            sums[k] = hn::MulAdd(a, Load8(planes + (j + k) * kLanes + 8 * g), sums[k]);
        } else {
          for (int k = 0; k < some; ++k)
            sums[k] = hn::MulAdd(a, Load8(planes + (j + k) * kLanes + 8 * g), sums[k]);
        }
      }
      HWY_ALIGN float out[8];
      Store8(FoldLanes(sums, AddOp()), out);
      for (int k = 0; k < some; ++k) upper[k] += out[k];
      upper += some;
    }
  }
}

inline void SoftmaxReduce(const float* scores, int begin, int end, float* max, float* sum) {
  if (begin >= end) return;
  const F8 d;
  const float top = std::max(*max, *std::max_element(scores + begin, scores + end));
  float total = *sum == 0 ? 0.0f : *sum * std::exp(*max - top);
  VF sums = hn::Zero(d);
  int t = begin;
  for (; t + 8 <= end; t += 8)
    sums = hn::Add(sums, hn::Exp(d, hn::Sub(hn::LoadU(d, scores + t), Set8(top))));
  total += SumLanes(sums);
  for (; t < end; ++t) total += std::exp(scores[t] - top);
  *max = top;
  *sum = total;
}

inline void SoftmaxMax(const float* scores, int begin, int end, float lse, float* weight) {
  const F8 d;
  int t = begin;
  for (; t + 8 <= end; t += 8) {
    const VF e = hn::Exp(d, hn::Sub(hn::LoadU(d, scores + t), Set8(lse)));
    hn::StoreU(hn::Max(hn::LoadU(d, weight + t), e), d, weight + t);
  }
  for (; t < end; ++t) weight[t] = std::max(weight[t], std::exp(scores[t] - lse));
}

}  // namespace dyna::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
