// The V quantiser (formats 2) and its cells (formats 4), eight rows at a time: sums over channels
// are trees of vectors, so nothing is reduced across lanes.
#if defined(DYNA_KERNELS_HWY_QUANTISE_V_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DYNA_KERNELS_HWY_QUANTISE_V_INL_H_
#undef DYNA_KERNELS_HWY_QUANTISE_V_INL_H_
#else
#define DYNA_KERNELS_HWY_QUANTISE_V_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cpu/hwy_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace dyna::HWY_NAMESPACE {

// Eight rows: their d values rounded to f16, [channel][row].
using EightRows = float[kMaxHeadDim * 8];

// The pairwise tree over d channels of at(c), for eight rows at once: eight leaves in registers,
// then a tree of those. Channels beyond d are +0.
template <class At>
HWY_INLINE VF ChannelTree(int d, const At& at) {
  const int eighth = codec::TreeSize(d) / 8;
  VF partial[kMaxHeadDim / 8];
  const bool full = 8 * eighth == d;
  for (int o = 0; o < eighth; ++o) {
    VF x[8];
    for (int k = 0; k < 8; ++k)
      x[k] = full || o + k * eighth < d ? at(o + k * eighth) : hn::Zero(F8());
    partial[o] = FoldRows(x, AddOp());
  }
  for (int half = eighth / 2; half > 0; half /= 2)
    for (int o = 0; o < half; ++o) partial[o] = hn::Add(partial[o], partial[o + half]);
  return partial[0];
}

// floor(z / step) in -half .. half - 1, as f32. Thresholds of b = 2 and 1 are exact in z itself.
template <int kBits>
HWY_INLINE VI SignedCode(VF z, VF step) {
  const I8x32 di;
  const auto minus = [&](auto mask)
                         HWY_ATTR { return hn::BitCast(di, hn::VecFromMask(F8(), mask)); };
  if constexpr (kBits == 1) {
    return minus(hn::Lt(z, hn::Zero(F8())));
  } else if constexpr (kBits == 2) {  // -2 + (z >= -step) + (z >= 0) + (z >= step)
    const VI a = minus(hn::Ge(z, hn::Neg(step))), b = minus(hn::Ge(z, hn::Zero(F8())));
    return hn::Sub(hn::Sub(hn::Set(di, -2), a), hn::Add(b, minus(hn::Ge(z, step))));
  } else {
    constexpr int kHalf = 1 << (kBits - 1);
    const VI code = hn::ConvertTo(di, hn::Floor(hn::Div(z, step)));
    return hn::Min(hn::Max(code, hn::Set(di, -kHalf)), hn::Set(di, kHalf - 1));
  }
}

// kBits words of a cell (16 channels): word w holds channels w n .. w n + n - 1 of eight rows.
template <int kBits>
HWY_INLINE void StoreCell(const VU* words, std::byte* to) {
  const U4x32 d;
  hn::Vec<U4x32> w[kBits];  // lane = pair of rows
  for (int i = 0; i < kBits; ++i)
    w[i] = hn::BitCast(d, hn::DemoteTo(U8x16(), hn::BitCast(I8x32(), words[i])));
  auto* at = reinterpret_cast<uint32_t*>(to);
  if constexpr (kBits == 1) {
    hn::StoreU(w[0], d, at);
  } else if constexpr (kBits == 2) {
    hn::StoreU(hn::InterleaveLower(d, w[0], w[1]), d, at);
    hn::StoreU(hn::InterleaveUpper(d, w[0], w[1]), d, at + 4);
  } else {
    const hn::FixedTag<uint64_t, 2> d64;
    for (int i = 0; i < kBits; i += 4) {
      const auto a = hn::BitCast(d64, hn::InterleaveLower(d, w[i], w[i + 1]));
      const auto b = hn::BitCast(d64, hn::InterleaveLower(d, w[i + 2], w[i + 3]));
      const auto p = hn::BitCast(d64, hn::InterleaveUpper(d, w[i], w[i + 1]));
      const auto q = hn::BitCast(d64, hn::InterleaveUpper(d, w[i + 2], w[i + 3]));
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, a, b)), d, at + i);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, a, b)), d, at + kBits + i);
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, p, q)), d, at + 2 * kBits + i);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, p, q)), d, at + 3 * kBits + i);
    }
  }
}
template <int kBits>
HWY_INLINE void LoadCell(const std::byte* from, VU* words) {
  const U4x32 d;
  const auto* at = reinterpret_cast<const uint32_t*>(from);
  hn::Vec<U4x32> w[kBits];
  if constexpr (kBits == 1) {
    w[0] = hn::LoadU(d, at);
  } else if constexpr (kBits == 2) {
    const auto a = hn::LoadU(d, at), b = hn::LoadU(d, at + 4);
    w[0] = hn::ConcatEven(d, b, a);
    w[1] = hn::ConcatOdd(d, b, a);
  } else {
    const hn::FixedTag<uint64_t, 2> d64;
    for (int i = 0; i < kBits; i += 4) {
      const auto r0 = hn::LoadU(d, at + i), r1 = hn::LoadU(d, at + kBits + i);
      const auto r2 = hn::LoadU(d, at + 2 * kBits + i), r3 = hn::LoadU(d, at + 3 * kBits + i);
      const auto a = hn::BitCast(d64, hn::InterleaveLower(d, r0, r1));
      const auto b = hn::BitCast(d64, hn::InterleaveLower(d, r2, r3));
      const auto p = hn::BitCast(d64, hn::InterleaveUpper(d, r0, r1));
      const auto q = hn::BitCast(d64, hn::InterleaveUpper(d, r2, r3));
      w[i] = hn::BitCast(d, hn::InterleaveLower(d64, a, b));
      w[i + 1] = hn::BitCast(d, hn::InterleaveUpper(d64, a, b));
      w[i + 2] = hn::BitCast(d, hn::InterleaveLower(d64, p, q));
      w[i + 3] = hn::BitCast(d, hn::InterleaveUpper(d64, p, q));
    }
  }
  for (int i = 0; i < kBits; ++i) words[i] = hn::PromoteTo(U8x32(), hn::BitCast(U8x16(), w[i]));
}

struct VGroup {  // what one group of eight rows leaves for the gains
  HWY_ALIGN float energy[8], gain[8];
};

template <int kBits>
HWY_INLINE void CodeGroup(const EightRows& value, int d, VF energy, VF largest, VF counted,
                          std::byte* codes, VGroup* out) {
  const U8x32 du;
  const I8x32 di;
  constexpr int kWordChannels = 16 / kBits;
  const VF half = Set8(0.5f), zero = hn::Zero(F8());
  const auto empty = hn::Eq(energy, zero);
  VF step = kBits == 2
                ? hn::Mul(Set8(1.075f), hn::Sqrt(hn::Div(energy, Set8(static_cast<float>(d)))))
                : hn::Mul(largest, Set8(2.0f / static_cast<float>(1 << kBits)));
  step = hn::IfThenElse(empty, Set8(1.0f), step);
  HWY_ALIGN float product[kMaxHeadDim * 8];
  const VU keep = hn::AndNot(Bits(hn::VecFromMask(F8(), empty)), Bits(counted));
  VF squares = zero;  // quarters of small integers: exact in any order
  for (int cell = 0; cell < d / 16; ++cell) {
    VU words[kBits];
    for (int w = 0; w < kBits; ++w) {
      words[w] = hn::Zero(du);
      for (int k = 0; k < kWordChannels; ++k) {
        const int c = cell * 16 + w * kWordChannels + k;
        const VF z = Load8(value + 8 * c);
        const VI code = SignedCode<kBits>(z, step);
        const VF u = hn::Add(hn::ConvertTo(F8(), code), half);
        Store8(hn::Mul(z, u), product + 8 * c);
        squares = hn::MulAdd(u, u, squares);
        const VU stored = hn::BitCast(du, hn::Add(code, hn::Set(di, 1 << (kBits - 1))));
        words[w] = hn::Or(words[w], hn::ShiftLeftSame(stored, kBits * k));
      }
      words[w] = hn::And(words[w], keep);
    }
    StoreCell<kBits>(words, codes + cell * 16 * kBits);
  }
  const VF zu = ChannelTree(d, [&](int c) HWY_ATTR { return Load8(product + 8 * c); });
  const VF unbiased = hn::Div(energy, hn::IfThenElse(empty, Set8(1.0f), zu));
  const VF capped = hn::Div(hn::Mul(Set8(2.0f), zu), squares);
  const VF gain = hn::IfThenElse(hn::Lt(unbiased, capped), unbiased, capped);
  Store8(FloatOf(hn::And(keep, Bits(gain))), out->gain);
}

// z' = f16(gain u) of the codes just stored or of a tile's; eight rows.
template <int kBits, class Sink>
HWY_INLINE void DecodeGroup(const std::byte* codes, int d, VF gain, const Sink& sink) {
  const U8x32 du;
  constexpr int kWordChannels = 16 / kBits;
  const VU low = hn::Set(du, (1u << kBits) - 1);
  const VF shift = Set8(0.5f - static_cast<float>(1 << (kBits - 1)));
  for (int cell = 0; cell < d / 16; ++cell) {
    VU words[kBits];
    LoadCell<kBits>(codes + cell * 16 * kBits, words);
    for (int w = 0; w < kBits; ++w) {
      for (int k = 0; k < kWordChannels; ++k) {
        const VU stored = hn::And(hn::ShiftRightSame(words[w], kBits * k), low);
        const VF u = hn::Add(hn::ConvertTo(F8(), hn::BitCast(I8x32(), stored)), shift);
        sink(cell * 16 + w * kWordChannels + k, RoundF16(hn::Mul(gain, u)));
      }
    }
  }
}

template <int kBits>
QuantiseResult QuantiseRows(const float* z, int d, uint64_t rows, std::byte* gains,
                            std::byte* codes, int8_t* v_exp, ErrorSums* sums) {
  const RowMask mask(rows);
  HWY_ALIGN EightRows value;
  VGroup groups[kGroups];
  VF energies = hn::Zero(F8());
  float max_gain = 0;
  const size_t group_bytes = static_cast<size_t>(d * kBits);
  for (int g = 0; g < kGroups; ++g) {
    VF largest = hn::Zero(F8());
    const VF energy = ChannelTree(d, [&](int c) HWY_ATTR {
      const VF v = mask.Keep(g, RoundF16(Load8(z + c * kLanes + 8 * g)));
      Store8(v, value + 8 * c);
      largest = hn::Max(largest, hn::Abs(v));
      return hn::Mul(v, v);
    });
    if (!AllFiniteLanes(energy)) return QuantiseResult::kNotF16;  // f16 squares do not overflow
    energies = hn::Add(energies, energy);
    const VF counted = FloatOf(hn::Load(U8x32(), mask.bits + 8 * g));
    CodeGroup<kBits>(value, d, energy, largest, counted, codes + group_bytes * g, &groups[g]);
    for (int r = 0; r < 8; ++r) max_gain = std::max(max_gain, groups[g].gain[r]);
  }
  const int exponent = codec::GainExponent(max_gain);
  *v_exp = static_cast<int8_t>(exponent);
  VF error = hn::Zero(F8());
  for (int g = 0; g < kGroups; ++g) {
    HWY_ALIGN float decoded[8];
    for (int r = 0; r < 8; ++r) {
      const float gain = groups[g].gain[r];
      const int slot = codec::TokenSlot(8 * g + r);
      if constexpr (kBits == 8) {
        const uint16_t bits = codec::F32ToF16(gain * codec::Power2(-exponent));
        std::memcpy(gains + 2 * slot, &bits, 2);
        decoded[r] = codec::F16ToF32(bits) * codec::Power2(exponent);
      } else {
        const uint8_t byte = codec::Log8eEncode(gain, exponent);
        gains[slot] = static_cast<std::byte>(byte);
        decoded[r] = codec::Log8eDecode(byte, exponent);
      }
    }
    VF a = hn::Zero(F8());
    DecodeGroup<kBits>(codes + group_bytes * g, d, hn::Load(F8(), decoded),
                       [&](int c, VF back) HWY_ATTR {
                         const VF v = RoundF16(Load8(z + c * kLanes + 8 * g));
                         const VF miss = mask.Keep(g, hn::Sub(v, back));
                         a = hn::MulAdd(miss, miss, a);
                       });
    error = hn::Add(error, a);
  }
  const float total = SumLanes(error);
  if (!codec::IsFiniteBits(total)) return QuantiseResult::kNotF16;  // decodes to infinity
  sums->error += total;
  sums->energy += SumLanes(energies);
  return QuantiseResult::kOk;
}

inline QuantiseResult QuantiseV(const float* z, int d, int bits, uint64_t rows, std::byte* gains,
                                std::byte* codes, int8_t* v_exp, ErrorSums* sums) {
  switch (bits) {
    case 1:
      return QuantiseRows<1>(z, d, rows, gains, codes, v_exp, sums);
    case 2:
      return QuantiseRows<2>(z, d, rows, gains, codes, v_exp, sums);
    case 4:
      return QuantiseRows<4>(z, d, rows, gains, codes, v_exp, sums);
    default:
      return QuantiseRows<8>(z, d, rows, gains, codes, v_exp, sums);
  }
}

template <int kBits>
HWY_INLINE void DequantiseRows(const std::byte* gains, const std::byte* codes, int d, int8_t v_exp,
                               float* HWY_RESTRICT z) {
  for (int g = 0; g < kGroups; ++g) {
    HWY_ALIGN float gain[8];
    for (int r = 0; r < 8; ++r) {
      const int slot = codec::TokenSlot(8 * g + r);
      if constexpr (kBits == 8) {
        uint16_t bits;
        std::memcpy(&bits, gains + 2 * slot, 2);
        gain[r] = codec::F16ToF32(bits) * codec::Power2(v_exp);
      } else {
        gain[r] = codec::Log8eDecode(static_cast<int>(gains[slot]), v_exp);
      }
    }
    DecodeGroup<kBits>(codes + static_cast<size_t>(d * kBits * g), d, hn::Load(F8(), gain),
                       [&](int c, VF v) HWY_ATTR { Store8(v, z + c * kLanes + 8 * g); });
  }
}

inline void DequantiseV(const std::byte* gains, const std::byte* codes, int d, int bits,
                        int8_t v_exp, float* z) {
  switch (bits) {
    case 1:
      return DequantiseRows<1>(gains, codes, d, v_exp, z);
    case 2:
      return DequantiseRows<2>(gains, codes, d, v_exp, z);
    case 4:
      return DequantiseRows<4>(gains, codes, d, v_exp, z);
    default:
      return DequantiseRows<8>(gains, codes, d, v_exp, z);
  }
}

}  // namespace dyna::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
