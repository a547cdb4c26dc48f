// Rows of a dtype <-> f32 planes: 8 x 8 transposes in the narrow type.
#if defined(DYNA_KERNELS_HWY_LOAD_STORE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DYNA_KERNELS_HWY_LOAD_STORE_INL_H_
#undef DYNA_KERNELS_HWY_LOAD_STORE_INL_H_
#else
#define DYNA_KERNELS_HWY_LOAD_STORE_INL_H_
#endif

#include "kernels/cpu/hwy_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace dyna::HWY_NAMESPACE {

using U16x16 = hn::FixedTag<uint16_t, 16>;
using VU16 = hn::Vec<U16x16>;

// 8 x 8 transpose of 16-bit lanes in each half: row i's halves are two tokens (or channels).
HWY_INLINE void Transpose8x8(VU16* r) {
  const U16x16 d;
  const U8x32 d32;
  const hn::FixedTag<uint64_t, 4> d64;
  VU16 a[8], b[8];
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = hn::InterleaveLower(d, r[2 * i], r[2 * i + 1]);
    a[2 * i + 1] = hn::InterleaveUpper(d, r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      const VU p = hn::BitCast(d32, a[4 * i + j]), q = hn::BitCast(d32, a[4 * i + 2 + j]);
      b[4 * i + 2 * j] = hn::BitCast(d, hn::InterleaveLower(d32, p, q));
      b[4 * i + 2 * j + 1] = hn::BitCast(d, hn::InterleaveUpper(d32, p, q));
    }
  }
  for (int i = 0; i < 4; ++i) {
    const auto p = hn::BitCast(d64, b[i]), q = hn::BitCast(d64, b[4 + i]);
    r[2 * i] = hn::BitCast(d, hn::InterleaveLower(d64, p, q));
    r[2 * i + 1] = hn::BitCast(d, hn::InterleaveUpper(d64, p, q));
  }
}

struct F16Codec {
  static constexpr uint16_t kInfinity = 0x7c00;
  HWY_INLINE static VF Widen(hn::Vec<U8x16> v) { return hn::PromoteTo(F8(), hn::BitCast(H8(), v)); }
  HWY_INLINE static hn::Vec<U8x16> Narrow(VF v) { return F16Bits(v); }
};
struct Bf16Codec {
  static constexpr uint16_t kInfinity = 0x7f80;
  HWY_INLINE static VF Widen(hn::Vec<U8x16> v) {
    return FloatOf(hn::ShiftLeft<16>(hn::PromoteTo(U8x32(), v)));
  }
  HWY_INLINE static hn::Vec<U8x16> Narrow(VF v) {
    const U8x32 d;
    const VU bits = Bits(v);
    const VU odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 1u));
    const VU even = hn::ShiftRight<16>(hn::Add(bits, hn::Add(hn::Set(d, 0x7fffu), odd)));
    const VU quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(d, 0x40u));
    const auto magnitude = hn::BitCast(I8x32(), hn::And(bits, hn::Set(d, 0x7fffffffu)));
    const auto above = hn::Gt(magnitude, hn::Set(I8x32(), 0x7f800000));
    const VU is_nan = hn::BitCast(d, hn::VecFromMask(I8x32(), above));
    return hn::DemoteTo(U8x16(), hn::BitCast(I8x32(), hn::IfVecThenElse(is_nan, quiet, even)));
  }
};

// The first token of `planes` with a non-finite channel.
inline int FirstBadToken(const float* planes, int d) {
  for (int t = 0; t < kLanes; ++t)
    for (int c = 0; c < d; ++c)
      if (!codec::IsFiniteBits(planes[c * kLanes + t])) return t;
  return -1;
}

template <class Codec>
int LoadHalves(const std::byte* src, int64_t stride, int d, float* HWY_RESTRICT planes) {
  const U16x16 d16;
  const U8x16 dh;
  const VU16 magnitude = hn::Set(d16, 0x7fffu);
  VU16 largest = hn::Zero(d16);
  for (int t = 0; t < kLanes; t += 16) {
    const std::byte* row = src + t * stride;
    for (int c = 0; c < d; c += 8) {
      VU16 r[8];
      for (int i = 0; i < 8; ++i) {
        const auto* low = reinterpret_cast<const uint16_t*>(row + i * stride) + c;
        const auto* high = reinterpret_cast<const uint16_t*>(row + (i + 8) * stride) + c;
        r[i] = hn::Combine(d16, hn::LoadU(dh, high), hn::LoadU(dh, low));
        largest = hn::Max(largest, hn::And(r[i], magnitude));
      }
      Transpose8x8(r);
      for (int i = 0; i < 8; ++i) {
        float* to = planes + (c + i) * kLanes + t;
        Store8(Codec::Widen(hn::LowerHalf(dh, r[i])), to);
        Store8(Codec::Widen(hn::UpperHalf(dh, r[i])), to + 8);
      }
    }
  }
  const VU16 top = hn::Set(d16, static_cast<uint16_t>(Codec::kInfinity - 1));
  if (hn::AllTrue(d16, hn::Eq(hn::Max(largest, top), top))) return -1;
  return FirstBadToken(planes, d);
}

template <class Codec>
void StoreHalves(const float* HWY_RESTRICT planes, int d, std::byte* dst, int64_t stride) {
  const U16x16 d16;
  const U8x16 dh;
  for (int t = 0; t < kLanes; t += 16) {
    std::byte* row = dst + t * stride;
    for (int c = 0; c < d; c += 8) {
      VU16 r[8];
      for (int i = 0; i < 8; ++i) {
        const float* from = planes + (c + i) * kLanes + t;
        r[i] = hn::Combine(d16, Codec::Narrow(Load8(from + 8)), Codec::Narrow(Load8(from)));
      }
      Transpose8x8(r);
      for (int i = 0; i < 8; ++i) {
        auto* low = reinterpret_cast<uint16_t*>(row + i * stride) + c;
        auto* high = reinterpret_cast<uint16_t*>(row + (i + 8) * stride) + c;
        hn::StoreU(hn::LowerHalf(dh, r[i]), dh, low);
        hn::StoreU(hn::UpperHalf(dh, r[i]), dh, high);
      }
    }
  }
}

inline int LoadFloats(const std::byte* src, int64_t stride, int d, float* HWY_RESTRICT planes) {
  const U8x32 du;
  VU largest = hn::Zero(du);
  for (int t = 0; t < kLanes; t += 8) {
    for (int c = 0; c < d; c += 8) {
      VU r[8];
      for (int i = 0; i < 8; ++i) {
        r[i] = hn::LoadU(du, reinterpret_cast<const uint32_t*>(src + (t + i) * stride) + c);
        largest = hn::Max(largest, hn::And(r[i], hn::Set(du, 0x7fffffffu)));
      }
      Transpose8x8(r);
      for (int i = 0; i < 8; ++i) Store8(FloatOf(r[i]), planes + (c + i) * kLanes + t);
    }
  }
  const VU top = hn::Set(du, 0x7f7fffffu);
  if (hn::AllTrue(du, hn::Eq(hn::Max(largest, top), top))) return -1;
  return FirstBadToken(planes, d);
}

inline void StoreFloats(const float* HWY_RESTRICT planes, int d, std::byte* dst, int64_t stride) {
  const U8x32 du;
  for (int t = 0; t < kLanes; t += 8) {
    for (int c = 0; c < d; c += 8) {
      VU r[8];
      for (int i = 0; i < 8; ++i) r[i] = Bits(Load8(planes + (c + i) * kLanes + t));
      Transpose8x8(r);
      for (int i = 0; i < 8; ++i)
        hn::StoreU(r[i], du, reinterpret_cast<uint32_t*>(dst + (t + i) * stride) + c);
    }
  }
}

inline int LoadTile(const std::byte* src, int64_t stride, DType dtype, int d, float* planes) {
  if (dtype == DType::kF16) return LoadHalves<F16Codec>(src, stride, d, planes);
  if (dtype == DType::kBf16) return LoadHalves<Bf16Codec>(src, stride, d, planes);
  return LoadFloats(src, stride, d, planes);
}
inline void StoreTile(const float* planes, int d, std::byte* dst, int64_t stride, DType dtype) {
  if (dtype == DType::kF16) return StoreHalves<F16Codec>(planes, d, dst, stride);
  if (dtype == DType::kBf16) return StoreHalves<Bf16Codec>(planes, d, dst, stride);
  StoreFloats(planes, d, dst, stride);
}

}  // namespace dyna::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
