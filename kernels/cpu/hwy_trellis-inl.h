// The trellis of V at 1 and 2 bits (trellis.h), eight rows at a time forwards and all 64 at once
// backwards: what a step decided is one bit a row, and a path is followed by logic on words of 64.
#if defined(DYNA_KERNELS_HWY_TRELLIS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DYNA_KERNELS_HWY_TRELLIS_INL_H_
#undef DYNA_KERNELS_HWY_TRELLIS_INL_H_
#else
#define DYNA_KERNELS_HWY_TRELLIS_INL_H_
#endif

#include <cstring>

#include "kernels/cpu/hwy_common-inl.h"
#include "kernels/trellis.h"

HWY_BEFORE_NAMESPACE();
namespace dyna::HWY_NAMESPACE {

// Units of all levels, by level; those of 1 bit twice.
template <int kBits>
struct TrellisTable {
  static constexpr int kMask = (2 << kBits) - 1;
  alignas(32) static constexpr float kUnits[8] = {
      codec::TrellisUnit(kBits, 0),         codec::TrellisUnit(kBits, 1),
      codec::TrellisUnit(kBits, 2),         codec::TrellisUnit(kBits, 3),
      codec::TrellisUnit(kBits, 4 & kMask), codec::TrellisUnit(kBits, 5 & kMask),
      codec::TrellisUnit(kBits, 6 & kMask), codec::TrellisUnit(kBits, 7 & kMask)};
};

// z' of the codes of eight rows, given in the order of channels.
template <int kBits>
class TrellisReader {
 public:
  HWY_INLINE explicit TrellisReader(VF gain)
      : x1_(hn::Zero(U8x32())),
        x2_(hn::Zero(U8x32())),
        gain_(gain),
        units_(Load8(TrellisTable<kBits>::kUnits)) {}

  HWY_INLINE VF Next(VU stored) {
    const U8x32 du;
    const VU x = hn::And(stored, hn::Set(du, 1u));
    VU level = hn::Add(hn::ShiftLeft<1>(hn::Xor(x, x2_)), x1_);
    if constexpr (kBits == 2) level = hn::Or(level, hn::ShiftLeft<1>(hn::Xor(stored, x)));
    x2_ = x1_;
    x1_ = x;
    const VF unit = hn::TableLookupLanes(units_, hn::IndicesFromVec(F8(), level));
    return RoundF16(hn::Mul(gain_, unit));
  }

 private:
  VU x1_, x2_;
  VF gain_, units_;
};

template <int kBits>
class TrellisPaths {
 public:
  // Forwards over the channels of group `g`, whose values are [channel][8 rows].
  HWY_INLINE void Search(int g, const float* value, int d, VF energy) {
    constexpr int kHalf = codec::TrellisMagnitudes(kBits);
    const F8 df;
    const VF rms = hn::Sqrt(hn::Div(energy, Set8(static_cast<float>(d))));
    VF square[kHalf], twice[kHalf];
    for (int i = 0; i < kHalf; ++i) {
      const VF scaled = hn::Mul(Set8(codec::TrellisMagnitude(kBits, i)), rms);
      square[i] = hn::Mul(scaled, scaled);
      twice[i] = hn::Add(scaled, scaled);
    }
    const VF unreached = Set8(codec::kTrellisUnreached);
    VF c0 = hn::Zero(df), c1 = unreached, c2 = unreached, c3 = unreached;
    const auto bits = [](auto mask) HWY_ATTR {
      uint8_t out[8];
      hn::StoreMaskBits(F8(), mask, out);
      return out[0];
    };
    for (int c = 0; c < d; ++c) {
      const VF z = Load8(value + 8 * c);
      VF metric[2 * kHalf];
      for (int i = 0; i < kHalf; ++i) {
        const VF product = hn::Mul(twice[i], z);
        metric[kHalf - 1 - i] = hn::Add(square[i], product);
        metric[kHalf + i] = hn::Sub(square[i], product);
      }
      if constexpr (kBits == 2) {
        for (int k = 0; k < 4; ++k) {
          upper_[c][k][g] = bits(hn::Lt(metric[k + 4], metric[k]));
          metric[k] = hn::Min(metric[k], metric[k + 4]);
        }
      }
      const VF z0 = hn::Add(c0, metric[0]), o0 = hn::Add(c2, metric[2]);  // to state 0: x, x1 = 0
      const VF z1 = hn::Add(c0, metric[2]), o1 = hn::Add(c2, metric[0]);  // x = 1
      const VF z2 = hn::Add(c1, metric[1]), o2 = hn::Add(c3, metric[3]);  // x1 = 1
      const VF z3 = hn::Add(c1, metric[3]), o3 = hn::Add(c3, metric[1]);
      from_[c][0][g] = bits(hn::Lt(o0, z0));
      from_[c][1][g] = bits(hn::Lt(o1, z1));
      from_[c][2][g] = bits(hn::Lt(o2, z2));
      from_[c][3][g] = bits(hn::Lt(o3, z3));
      c0 = hn::Min(z0, o0);
      c1 = hn::Min(z1, o1);
      c2 = hn::Min(z2, o2);
      c3 = hn::Min(z3, o3);
    }
    const VF low = hn::Min(c0, c1), high = hn::Min(c2, c3);
    const auto in_high = hn::Lt(high, low);
    end_x1_[g] = bits(in_high);
    end_x_[g] = bits(hn::Or(hn::And(in_high, hn::Lt(c3, c2)), hn::AndNot(in_high, hn::Lt(c1, c0))));
  }

  // Backwards, all rows.
  void Trace(int d) {
    uint64_t x = Word(end_x_), x1 = Word(end_x1_);
    for (int c = d - 1; c >= 0; --c) {
      const uint64_t x2 = Select(from_[c], x, x1);
      x_[c] = x;
      if constexpr (kBits == 2) w_[c] = Select(upper_[c], x1, x ^ x2);
      x = x1;
      x1 = x2;
    }
  }

  // REQUIRES Trace. The stored codes of channel c of group g, and what they stand for.
  HWY_INLINE VU Stored(int g, int c, VF* unit) const {
    const U8x32 du;
    const int shift = 8 * g;
    const auto byte = [&](uint64_t word) { return static_cast<uint32_t>(word >> shift & 0xff); };
    const uint32_t x = byte(x_[c]), w = kBits == 2 ? byte(w_[c]) : 0;
    const uint32_t x1 = c > 0 ? byte(x_[c - 1]) : 0, x2 = c > 1 ? byte(x_[c - 2]) : 0;
    const VU all = hn::Shr(hn::Set(du, x | w << 8 | x1 << 16 | (x ^ x2) << 24), hn::Iota(du, 0));
    const VU one = hn::Set(du, 1u), two = hn::Set(du, 2u);
    const VU second = hn::And(hn::ShiftRight<7>(all), two);
    VU level = hn::Or(hn::And(hn::ShiftRight<16>(all), one), hn::And(hn::ShiftRight<23>(all), two));
    level = hn::Or(level, hn::ShiftLeft<1>(second));
    *unit =
        hn::TableLookupLanes(Load8(TrellisTable<kBits>::kUnits), hn::IndicesFromVec(F8(), level));
    return hn::Or(hn::And(all, one), second);
  }

 private:
  using RowBits = uint8_t[8];  // a bit a row: byte = group

  static uint64_t Word(const RowBits& bytes) {
    uint64_t word;
    std::memcpy(&word, bytes, 8);
    return word;
  }
  // Of four words the bit of number low + 2 high.
  static uint64_t Select(const RowBits* of, uint64_t low, uint64_t high) {
    const uint64_t even = (Word(of[0]) & ~high) | (Word(of[2]) & high);
    const uint64_t odd = (Word(of[1]) & ~high) | (Word(of[3]) & high);
    return (even & ~low) | (odd & low);
  }

  RowBits from_[kMaxHeadDim][4], upper_[kBits == 2 ? kMaxHeadDim : 1][4], end_x_, end_x1_;
  uint64_t x_[kMaxHeadDim], w_[kBits == 2 ? kMaxHeadDim : 1];
};

}  // namespace dyna::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
