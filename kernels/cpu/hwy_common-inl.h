// Vectors of 8 lanes, whatever the target: trees over 64 rows, 8 x 8 transposes, f16 rounding.
// Included once per target by hwy_ops.cc.
#if defined(DYNA_KERNELS_HWY_COMMON_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DYNA_KERNELS_HWY_COMMON_INL_H_
#undef DYNA_KERNELS_HWY_COMMON_INL_H_
#else
#define DYNA_KERNELS_HWY_COMMON_INL_H_
#endif

#include <bit>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/codec_math.h"
#include "kernels/cpu/tile_ops.h"

HWY_BEFORE_NAMESPACE();
namespace dyna::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// What is exact works on 8 lanes: one group of 8 rows, or 8 channels' scalars.
using F8 = hn::FixedTag<float, 8>;
using U8x32 = hn::FixedTag<uint32_t, 8>;
using I8x32 = hn::FixedTag<int32_t, 8>;
using H8 = hn::FixedTag<hwy::float16_t, 8>;
using U8x16 = hn::FixedTag<uint16_t, 8>;
using U4x32 = hn::FixedTag<uint32_t, 4>;
using VF = hn::Vec<F8>;
using VU = hn::Vec<U8x32>;
using VI = hn::Vec<I8x32>;
inline constexpr int kGroups = kLanes / 8;

HWY_INLINE VF Load8(const float* p) { return hn::Load(F8(), p); }
HWY_INLINE void Store8(VF v, float* p) { hn::Store(v, F8(), p); }
HWY_INLINE VF Set8(float v) { return hn::Set(F8(), v); }
HWY_INLINE VU Bits(VF v) { return hn::BitCast(U8x32(), v); }
HWY_INLINE VF FloatOf(VU v) { return hn::BitCast(F8(), v); }

HWY_INLINE VF RoundF16(VF v) { return hn::PromoteTo(F8(), hn::DemoteTo(H8(), v)); }
HWY_INLINE hn::Vec<U8x16> F16Bits(VF v) { return hn::BitCast(U8x16(), hn::DemoteTo(H8(), v)); }
HWY_INLINE VF FromF16Bits(const uint16_t* p) {
  return hn::PromoteTo(F8(), hn::BitCast(H8(), hn::LoadU(U8x16(), p)));
}
HWY_INLINE bool AllFiniteLanes(VF v) {  // infinity and NaN have all exponent bits set
  const VU exponent = hn::Set(U8x32(), 0x7f800000u);
  return hn::AllFalse(U8x32(), hn::Eq(hn::And(Bits(v), exponent), exponent));
}
// Any order.
HWY_INLINE float SumLanes(VF v) { return hn::GetLane(hn::SumOfLanes(F8(), v)); }

// The rows that count as vectors of 0 and all ones.
struct RowMask {
  explicit RowMask(uint64_t rows) : all(rows == ~uint64_t{0}) {
    for (int t = 0; t < kLanes; ++t) bits[t] = (rows >> t & 1) != 0 ? ~0u : 0u;
  }
  VF Keep(int group, VF v) const {  // +0 in the others
    return FloatOf(hn::And(hn::Load(U8x32(), bits + 8 * group), Bits(v)));
  }
  VF KeepOr(int group, VF v, VF other) const {
    return hn::IfThenElse(hn::MaskFromVec(FloatOf(hn::Load(U8x32(), bits + 8 * group))), v, other);
  }
  HWY_ALIGN uint32_t bits[kLanes];
  bool all;
};

// The first three steps of the tree over 64 rows (halves 32, 16, 8), rows 8 g .. 8 g + 7 in x[g].
template <class Op>
HWY_INLINE VF FoldRows(const VF* x, Op op) {
  return op(op(op(x[0], x[4]), op(x[2], x[6])), op(op(x[1], x[5]), op(x[3], x[7])));
}
struct AddOp {
  HWY_INLINE VF operator()(VF a, VF b) const { return hn::Add(a, b); }
};
struct MinOp {
  HWY_INLINE VF operator()(VF a, VF b) const { return hn::Min(a, b); }
};
struct MaxOp {
  HWY_INLINE VF operator()(VF a, VF b) const { return hn::Max(a, b); }
};
// The last three (4, 2, 1) for eight trees at once: lane i of the result is the tree of x[i].
template <class Op>
HWY_INLINE VF FoldLanes(const VF* x, Op op) {
  const F8 d;
  const hn::FixedTag<double, 4> d64;
  const auto half = [&](VF a, VF b) HWY_ATTR {  // a's four sums, b's four sums
    return op(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a));
  };
  const auto quarter = [&](VF a, VF b) HWY_ATTR {  // within each half: two of a, two of b
    const auto p = hn::BitCast(d64, a), q = hn::BitCast(d64, b);
    return op(hn::BitCast(d, hn::InterleaveLower(d64, p, q)),
              hn::BitCast(d, hn::InterleaveUpper(d64, p, q)));
  };
  const VF low = quarter(half(x[0], x[2]), half(x[1], x[3]));  // 0 0 1 1 | 2 2 3 3
  const VF high = quarter(half(x[4], x[6]), half(x[5], x[7]));
  return op(hn::ConcatEven(d, high, low), hn::ConcatOdd(d, high, low));
}

// LOG8 and LOG8E of codec_math.h, eight at a time. Sixteenths REQUIRES positive normal lanes.
HWY_INLINE VI Sixteenths(VF x) {
  const U8x32 du;
  const I8x32 di;
  const VF mantissa =
      FloatOf(hn::Or(hn::And(Bits(x), hn::Set(du, 0x007fffffu)), hn::Set(du, 0x3f800000u)));
  VI count = hn::Zero(di);  // a mask is -1
  for (const float middle : codec::kLog8Middle) {
    const auto reached = hn::Ge(mantissa, Set8(middle));
    count = hn::Sub(count, hn::BitCast(di, hn::VecFromMask(F8(), reached)));
  }
  const VI exponent = hn::Sub(hn::BitCast(di, hn::ShiftRight<23>(Bits(x))), hn::Set(di, 127));
  return hn::Add(hn::ShiftLeft<4>(exponent), count);
}
HWY_INLINE VF PowerOfSixteenths(VI k) {
  const I8x32 di;
  const VI index = hn::And(k, hn::Set(di, 7));
  const auto at = hn::IndicesFromVec(F8(), index);
  const VF low = hn::TableLookupLanes(hn::LoadU(F8(), codec::kLog8Power), at);
  const VF high = hn::TableLookupLanes(hn::LoadU(F8(), codec::kLog8Power + 8), at);
  const auto upper = hn::MaskFromVec(hn::BitCast(F8(), hn::ShiftLeft<28>(k)));  // bit 3
  const VI exponent = hn::ShiftLeft<23>(hn::Add(hn::ShiftRight<4>(k), hn::Set(di, 127)));
  return hn::Mul(hn::IfThenElse(upper, high, low), hn::BitCast(F8(), exponent));
}
// The value of byte e with `bias` at 1; byte 0 is 0.
HWY_INLINE VF Log8Decode(VI e, int bias) {
  const auto zero = hn::VecFromMask(I8x32(), hn::Eq(e, hn::Zero(I8x32())));
  const VF value = PowerOfSixteenths(hn::Sub(e, hn::Set(I8x32(), bias)));
  return FloatOf(hn::AndNot(hn::BitCast(U8x32(), zero), Bits(value)));
}

// 8 x 8 transpose of 32-bit lanes.
HWY_INLINE void Transpose8x8(VU* r) {
  const U8x32 d;
  const hn::FixedTag<uint64_t, 4> d64;
  VU a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = hn::InterleaveLower(d, r[2 * i], r[2 * i + 1]);
    a[2 * i + 1] = hn::InterleaveUpper(d, r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      const auto p = hn::BitCast(d64, a[4 * i + j]), q = hn::BitCast(d64, a[4 * i + 2 + j]);
      b[4 * i + 2 * j] = hn::BitCast(d, hn::InterleaveLower(d64, p, q));
      b[4 * i + 2 * j + 1] = hn::BitCast(d, hn::InterleaveUpper(d64, p, q));
    }
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = hn::ConcatLowerLower(d, b[4 + i], b[i]);
    r[4 + i] = hn::ConcatUpperUpper(d, b[4 + i], b[i]);
  }
}

}  // namespace dyna::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
