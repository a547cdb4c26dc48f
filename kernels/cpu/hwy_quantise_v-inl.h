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
#include "kernels/cpu/hwy_trellis-inl.h"

HWY_BEFORE_NAMESPACE();
namespace dyna::HWY_NAMESPACE {

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

// How a group's values become codes at 4 and 8 bits: reciprocals of the step, a little too large
// and too small.
struct VSteps {
  VF up, down;
};
template <int kBits>
HWY_INLINE VSteps MakeSteps(VF energy, VF largest) {
  const VF one = Set8(1.0f);
  const auto empty = hn::Eq(energy, hn::Zero(F8()));
  const VF step = hn::Mul(largest, Set8(2.0f / static_cast<float>(1 << kBits)));
  const VF inverse = hn::Div(one, hn::IfThenElse(empty, one, step));
  return {hn::Mul(inverse, Set8(1 + 0x1p-21f)), hn::Mul(inverse, Set8(1 - 0x1p-21f))};
}

// The stored code, floor(z / step) + half in 0 .. 2 half - 1, and u. Exact: z and the step have 11
// bits each, so a quotient that is no integer is at least 2^-18 of its size away from one, and the
// reciprocal's error of 2^-23 is covered by rounding it upwards.
template <int kBits>
HWY_INLINE VU StoredCode(VF z, const VSteps& steps, VF* u) {
  constexpr float kHalf = 1 << (kBits - 1);
  const VF quotient = hn::Max(hn::Mul(z, steps.up), hn::Mul(z, steps.down));
  const VF code = hn::Min(hn::Floor(quotient), Set8(kHalf - 1));  // never below -half
  *u = hn::Add(code, Set8(0.5f));
  return hn::BitCast(U8x32(), hn::ConvertTo(I8x32(), hn::Add(code, Set8(kHalf))));
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

struct VGroup {  // what eight rows leave for the gains: z z, z u, u u and the gain, a lane a row
  VF energy, zu, squares, gain;
};

// value: [channel][8 rows]. `coder(c, z, &u)`: the stored code of channel c, and u; called in the
// order of channels.
template <int kBits, class Coder>
HWY_INLINE void CodeGroup(const float* value, int d, VF energy, VF counted, const Coder& coder,
                          std::byte* codes, VGroup* out) {
  const U8x32 du;
  constexpr int kWordChannels = 16 / kBits;
  const VF zero = hn::Zero(F8());
  const auto empty = hn::Eq(energy, zero);
  HWY_ALIGN float product[kMaxHeadDim * 8];
  const VU keep = hn::AndNot(Bits(hn::VecFromMask(F8(), empty)), Bits(counted));
  VF squares = zero;  // small integers over 4 or 256: exact in any order
  for (int cell = 0; cell < d / 16; ++cell) {
    VU words[kBits];
    for (int w = 0; w < kBits; ++w) {
      words[w] = hn::Zero(du);
      VF of_word = zero;  // short chains of additions overlap
      for (int k = 0; k < kWordChannels; ++k) {
        const int c = cell * 16 + w * kWordChannels + k;
        const VF z = Load8(value + 8 * c);
        VF u;
        const VU stored = coder(c, z, &u);
        Store8(hn::Mul(z, u), product + 8 * c);
        of_word = hn::MulAdd(u, u, of_word);
        words[w] = hn::Or(words[w], hn::ShiftLeftSame(stored, kBits * k));
      }
      squares = hn::Add(squares, of_word);
      words[w] = hn::And(words[w], keep);
    }
    StoreCell<kBits>(words, codes + cell * 16 * kBits);
  }
  const VF zu = ChannelTree(d, [&](int c) HWY_ATTR { return Load8(product + 8 * c); });
  const auto some = hn::Gt(zu, zero);
  const VF unbiased = hn::Div(energy, hn::IfThenElse(some, zu, Set8(1.0f)));
  const VF capped = hn::Div(hn::Mul(Set8(2.0f), zu), squares);
  const VF gain = hn::IfThenElseZero(some, hn::Min(unbiased, capped));
  *out = {energy, zu, squares, FloatOf(hn::And(keep, Bits(gain)))};
}

// z' = f16(gain u) of the codes just stored or of a tile's; eight rows.
template <int kBits, class Sink>
HWY_INLINE void DecodeGroup(const std::byte* codes, int d, VF gain, const Sink& sink) {
  const U8x32 du;
  constexpr int kWordChannels = 16 / kBits;
  const VU low = hn::Set(du, (1u << kBits) - 1);
  [[maybe_unused]] const VF shift = Set8(0.5f - static_cast<float>(1 << (kBits - 1)));
  [[maybe_unused]] TrellisReader<kBits> trellis(gain);
  for (int cell = 0; cell < d / 16; ++cell) {
    VU words[kBits];
    LoadCell<kBits>(codes + cell * 16 * kBits, words);
    for (int w = 0; w < kBits; ++w) {
      for (int k = 0; k < kWordChannels; ++k) {
        const int c = cell * 16 + w * kWordChannels + k;
        const VU stored = hn::And(hn::ShiftRightSame(words[w], kBits * k), low);
        if constexpr (codec::IsTrellis(kBits)) {
          sink(c, trellis.Next(stored));
        } else {
          const VF u = hn::Add(hn::ConvertTo(F8(), hn::BitCast(I8x32(), stored)), shift);
          sink(c, RoundF16(hn::Mul(gain, u)));
        }
      }
    }
  }
}

// The gains of all rows as stored, and as they decode.
template <int kBits>
HWY_INLINE void StoreGains(const VGroup* groups, int exponent, std::byte* gains, VF* decoded) {
  const U8x32 du;
  const I8x32 di;
  const VF down = Set8(codec::Power2(-exponent)), up = Set8(codec::Power2(exponent));
  VU stored[kGroups];  // lane = row of the group
  for (int g = 0; g < kGroups; ++g) {
    const VF scaled = hn::Mul(groups[g].gain, down);
    if constexpr (kBits == 8) {
      const auto bits = F16Bits(scaled);
      stored[g] = hn::PromoteTo(du, bits);
      decoded[g] = hn::Mul(hn::PromoteTo(F8(), hn::BitCast(H8(), bits)), up);
    } else {
      const auto some = hn::Gt(groups[g].gain, hn::Zero(F8()));
      VI e = Sixteenths(hn::IfThenElse(some, scaled, Set8(1.0f)));
      e = hn::Add(e, hn::Set(di, codec::kLog8eBias));
      e = hn::Max(hn::Min(e, hn::Set(di, 255)), hn::Set(di, 1));
      stored[g] = hn::And(hn::BitCast(du, e), Bits(hn::VecFromMask(F8(), some)));
      decoded[g] = hn::Mul(Log8Decode(hn::BitCast(di, stored[g]), codec::kLog8eBias), up);
    }
  }
  Transpose8x8(stored);
  for (int r = 0; r < 8; ++r) {
    const VI row = hn::BitCast(di, stored[r]);
    if constexpr (kBits == 8) {
      hn::StoreU(hn::DemoteTo(U8x16(), row), U8x16(), reinterpret_cast<uint16_t*>(gains) + 8 * r);
    } else {
      const hn::FixedTag<uint8_t, 8> d8;
      hn::StoreU(hn::DemoteTo(d8, row), d8, reinterpret_cast<uint8_t*>(gains) + 8 * r);
    }
  }
}
template <int kBits>
HWY_INLINE void LoadGains(const std::byte* gains, int exponent, VF* decoded) {
  const U8x32 du;
  VU stored[8];
  for (int r = 0; r < 8; ++r) {
    if constexpr (kBits == 8) {
      const auto row = hn::LoadU(U8x16(), reinterpret_cast<const uint16_t*>(gains) + 8 * r);
      stored[r] = Bits(hn::PromoteTo(F8(), hn::BitCast(H8(), row)));
    } else {
      const hn::FixedTag<uint8_t, 8> d8;
      stored[r] = hn::PromoteTo(du, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(gains) + 8 * r));
    }
  }
  Transpose8x8(stored);
  const VF up = Set8(codec::Power2(exponent));
  for (int g = 0; g < kGroups; ++g) {
    const VI e = hn::BitCast(I8x32(), stored[g]);
    decoded[g] = hn::Mul(kBits == 8 ? FloatOf(stored[g]) : Log8Decode(e, codec::kLog8eBias), up);
  }
}

// Whether z' stays inside f16 for the rows of a group.
template <int kBits>
bool DecodesFinite(const std::byte* codes, int d, VF gain) {
  VF sum = hn::Zero(F8());
  DecodeGroup<kBits>(codes, d, gain, [&](int, VF z) HWY_ATTR { sum = hn::Max(sum, hn::Abs(z)); });
  return AllFiniteLanes(sum);
}

// Rounds a group's rows that count to f16, 0 in the others, into `value` [channel][8 rows]. Returns
// their sums of squares; *largest: magnitudes, of the widths whose step needs them.
template <int kBits>
HWY_INLINE VF RoundGroup(const float* z, int d, int group, VF counted, float* value, VF* largest) {
  VF most = hn::Zero(F8());
  const VF energy = ChannelTree(d, [&](int c) HWY_ATTR {
    const VF v = hn::And(counted, RoundF16(Load8(z + c * kLanes + 8 * group)));
    Store8(v, value + 8 * c);
    if (!codec::IsTrellis(kBits)) most = hn::Max(most, hn::Abs(v));
    return hn::Mul(v, v);
  });
  *largest = most;
  return energy;
}

template <int kBits>
QuantiseResult QuantiseRows(const float* z, int d, uint64_t rows, std::byte* gains,
                            std::byte* codes, int8_t* v_exp, ErrorSums* sums) {
  const RowMask mask(rows);
  VGroup groups[kGroups];
  VF max_gain = hn::Zero(F8());
  const size_t group_bytes = static_cast<size_t>(d * kBits);
  HWY_ALIGN float values[kMaxHeadDim * kLanes];  // [group][channel][8 rows]
  VF energy[kGroups], largest[kGroups], counted[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    counted[g] = FloatOf(hn::Load(U8x32(), mask.bits + 8 * g));
    energy[g] = RoundGroup<kBits>(z, d, g, counted[g], values + 8 * d * g, &largest[g]);
    if (!AllFiniteLanes(energy[g])) return QuantiseResult::kNotF16;  // f16 squares fit f32
  }
  [[maybe_unused]] TrellisPaths<kBits> paths;
  if constexpr (codec::IsTrellis(kBits)) {
    for (int g = 0; g < kGroups; ++g) paths.Search(g, values + 8 * d * g, d, energy[g]);
    paths.Trace(d);
  }
  for (int g = 0; g < kGroups; ++g) {
    const float* value = values + 8 * d * g;
    std::byte* at = codes + group_bytes * static_cast<size_t>(g);
    if constexpr (codec::IsTrellis(kBits)) {
      const auto coder = [&](int c, VF, VF* u) HWY_ATTR { return paths.Stored(g, c, u); };
      CodeGroup<kBits>(value, d, energy[g], counted[g], coder, at, &groups[g]);
    } else {
      const VSteps steps = MakeSteps<kBits>(energy[g], largest[g]);
      const auto coder = [&](int, VF v, VF* u) HWY_ATTR { return StoredCode<kBits>(v, steps, u); };
      CodeGroup<kBits>(value, d, energy[g], counted[g], coder, at, &groups[g]);
    }
    max_gain = hn::Max(max_gain, groups[g].gain);
  }
  const int exponent = codec::GainExponent(hn::GetLane(hn::MaxOfLanes(F8(), max_gain)));
  *v_exp = static_cast<int8_t>(exponent);
  VF gain[kGroups];
  StoreGains<kBits>(groups, exponent, gains, gain);
  const VF top =
      Set8(codec::IsTrellis(kBits) ? codec::kTrellisTop : static_cast<float>(1 << (kBits - 1)));
  const VF two = Set8(2.0f);
  VF error = hn::Zero(F8()), energies = error;
  for (int g = 0; g < kGroups; ++g) {
    if (!hn::AllTrue(F8(), hn::Lt(hn::Mul(gain[g], top), Set8(65504.0f))) &&
        !DecodesFinite<kBits>(codes + group_bytes * static_cast<size_t>(g), d, gain[g]))
      return QuantiseResult::kNotF16;
    // sum (z - gain u)^2 from its sums; the rounding of z' to f16 adds 1 % of it at 8 bits.
    const VGroup& v = groups[g];
    const VF inner = hn::Sub(hn::Mul(two, v.zu), hn::Mul(gain[g], v.squares));
    error = hn::Add(error, hn::Max(hn::Sub(v.energy, hn::Mul(gain[g], inner)), hn::Zero(F8())));
    energies = hn::Add(energies, v.energy);
  }
  sums->error += SumLanes(error);
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
  VF gain[kGroups];
  LoadGains<kBits>(gains, v_exp, gain);
  for (int g = 0; g < kGroups; ++g) {
    DecodeGroup<kBits>(codes + static_cast<size_t>(d * kBits * g), d, gain[g],
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
