// The K quantiser (formats 2) and its planes (formats 3), eight channels at a time: ranges and
// means of eight channels become one vector, so scales are computed for eight at once.
#if defined(DYNA_KERNELS_HWY_QUANTISE_K_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DYNA_KERNELS_HWY_QUANTISE_K_INL_H_
#undef DYNA_KERNELS_HWY_QUANTISE_K_INL_H_
#else
#define DYNA_KERNELS_HWY_QUANTISE_K_INL_H_
#endif

#include <bit>
#include <cstring>
#include <limits>

#include "kernels/cpu/hwy_common-inl.h"

HWY_BEFORE_NAMESPACE();
namespace dyna::HWY_NAMESPACE {

// Eight channels: their values rounded to f16, [channel][row], and a lane for each channel.
struct EightChannels {
  HWY_ALIGN float value[8 * kLanes];
  HWY_ALIGN float lo[8], hi[8], mean[8];
  HWY_ALIGN float scale[8], offset[8];  // as decoded
  HWY_ALIGN float inverse[8];           // of the scale; 0: take the exact way
  VF deviations;                        // sum (y - mean)^2 of each channel, any order
};

// Rounds to f16 and measures; false where a row that counts is outside f16.
template <bool kAll>
HWY_INLINE bool Measure(const float* HWY_RESTRICT y, const RowMask& mask, VF count,
                        EightChannels* e) {
  const VF infinity = Set8(std::numeric_limits<float>::infinity());
  VF sums[8], lows[8], highs[8];
  for (int c = 0; c < 8; ++c) {
    VF x[kGroups], lo = infinity, hi = hn::Neg(infinity);
    for (int g = 0; g < kGroups; ++g) {
      const VF v = RoundF16(Load8(y + c * kLanes + 8 * g));
      Store8(v, e->value + c * kLanes + 8 * g);
      x[g] = kAll ? v : mask.Keep(g, v);
      lo = hn::Min(lo, kAll ? v : mask.KeepOr(g, v, infinity));
      hi = hn::Max(hi, kAll ? v : mask.KeepOr(g, v, hn::Neg(infinity)));
    }
    sums[c] = FoldRows(x, AddOp());
    lows[c] = lo;
    highs[c] = hi;
  }
  const VF mean = hn::Div(FoldLanes(sums, AddOp()), count);
  Store8(FoldLanes(lows, MinOp()), e->lo);
  Store8(FoldLanes(highs, MaxOp()), e->hi);
  Store8(mean, e->mean);
  return AllFiniteLanes(mean);  // f16 values cannot overflow the sum: only Inf and NaN show here
}

HWY_INLINE void StoreOffsets(VF offset, uint16_t* m, EightChannels* e) {
  const auto bits = F16Bits(hn::Add(offset, hn::Zero(F8())));  // never -0
  hn::StoreU(bits, U8x16(), m);
  Store8(hn::PromoteTo(F8(), hn::BitCast(H8(), bits)), e->offset);
}

// Sum of (y - from)^2 of the rows that count, all channels.
template <bool kAll>
HWY_INLINE VF Deviations(const RowMask& mask, const EightChannels& e, const float* from) {
  VF total = hn::Zero(F8());
  for (int c = 0; c < 8; ++c) {
    const VF center = Set8(from[c]);
    VF sum = hn::Zero(F8());  // of one channel: short chains of additions overlap
    for (int g = 0; g < kGroups; ++g) {
      VF p = hn::Sub(Load8(e.value + c * kLanes + 8 * g), center);
      if (!kAll) p = mask.Keep(g, p);
      sum = hn::MulAdd(p, p, sum);
    }
    total = hn::Add(total, sum);
  }
  return total;
}

// ---- widths 4 and 8

HWY_INLINE void UniformScales(int width, uint16_t* m, std::byte* scales, EightChannels* e) {
  const VF lo = hn::Load(F8(), e->lo), hi = hn::Load(F8(), e->hi);
  const VF steps = Set8(static_cast<float>((1 << width) - 1));
  const auto bits = F16Bits(hn::Div(hn::Sub(hi, lo), steps));
  const VF scale = hn::PromoteTo(F8(), hn::BitCast(H8(), bits));
  hn::StoreU(bits, U8x16(), reinterpret_cast<uint16_t*>(scales));
  Store8(scale, e->scale);
  const VF zero = hn::Zero(F8()), mean = hn::Load(F8(), e->mean);
  const auto flat = hn::Eq(scale, zero);
  StoreOffsets(hn::IfThenElse(flat, mean, lo), m, e);
  // The fast way needs every code within its width and every value within f16 without looking.
  const VF divisor = hn::IfThenElse(flat, Set8(1.0f), scale);
  const auto clamps = hn::Ge(hn::Div(hn::Sub(hi, lo), divisor), hn::Add(steps, Set8(0.49f)));
  const auto far = hn::Ge(hn::MulAdd(steps, scale, lo), Set8(65000.0f));
  const VF inverse = hn::Div(Set8(1.0f), divisor);
  Store8(hn::IfThenElse(hn::Or(flat, hn::Or(clamps, far)), zero, inverse), e->inverse);
}

// Codes of channel c into `words` at `bit`, with what they miss; by divisions and as decoded.
template <int kWidth, bool kAll>
HWY_NOINLINE void UniformExactly(const RowMask& mask, const EightChannels& e, int c, int bit,
                                 VU* words, VF* error, VF* deviations) {
  const U8x32 du;
  const I8x32 di;
  const VF scale = Set8(e.scale[c]), offset = Set8(e.offset[c]), mean = Set8(e.mean[c]);
  // A scale of 0 divides by 1 instead, and every code is cleared.
  const bool flat = e.scale[c] == 0;
  const VF divisor = Set8(flat ? 1.0f : e.scale[c]);
  const VI top = hn::Set(di, flat ? 0 : (1 << kWidth) - 1);
  for (int g = 0; g < kGroups; ++g) {
    const VF y = Load8(e.value + c * kLanes + 8 * g);
    const VI near = hn::NearestInt(hn::Div(hn::Sub(y, offset), divisor));
    VI code = hn::Max(hn::Min(near, top), hn::Zero(di));
    if (!kAll) code = hn::BitCast(di, Bits(mask.Keep(g, hn::BitCast(F8(), code))));
    words[g] = hn::Or(words[g], hn::ShiftLeftSame(hn::BitCast(du, code), bit));
    const VF back = RoundF16(hn::Add(hn::Mul(scale, hn::ConvertTo(F8(), code)), offset));
    VF miss = hn::Sub(y, back), dev = hn::Sub(y, mean);
    if (!kAll) miss = mask.Keep(g, miss), dev = mask.Keep(g, dev);
    *error = hn::MulAdd(miss, miss, *error);
    *deviations = hn::MulAdd(dev, dev, *deviations);
  }
}

// Quotients are at most 2^8: a reciprocal errs by less than 2^-14.
inline constexpr float kFarFromTie = 0.5f - 0x1p-13f;

// The same by a reciprocal; false (and nothing done) where a quotient is so near a tie that the
// division could round the other way. *squares: sum (y - m)^2.
template <bool kAll>
HWY_INLINE bool UniformFast(const RowMask& mask, const EightChannels& e, int c, int bit, VU* words,
                            VF* error, VF* squares) {
  const VF scale = Set8(e.scale[c]), offset = Set8(e.offset[c]), inverse = Set8(e.inverse[c]);
  VF worst = hn::Zero(F8()), miss2 = worst, above2 = worst;
  VU codes[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    VF above = hn::Sub(Load8(e.value + c * kLanes + 8 * g), offset);
    if (!kAll) above = mask.Keep(g, above);
    const VF quotient = hn::Mul(above, inverse);
    const VI near = hn::NearestInt(quotient);
    const VF level = hn::ConvertTo(F8(), near);
    codes[g] = hn::BitCast(U8x32(), near);
    worst = hn::Max(worst, hn::Abs(hn::Sub(quotient, level)));
    VF miss = hn::Sub(Load8(e.value + c * kLanes + 8 * g),
                      RoundF16(hn::Add(hn::Mul(scale, level), offset)));
    if (!kAll) miss = mask.Keep(g, miss);
    miss2 = hn::MulAdd(miss, miss, miss2);
    above2 = hn::MulAdd(above, above, above2);
  }
  if (!hn::AllTrue(F8(), hn::Lt(worst, Set8(kFarFromTie)))) return false;
  for (int g = 0; g < kGroups; ++g) words[g] = hn::Or(words[g], hn::ShiftLeftSame(codes[g], bit));
  *error = hn::Add(*error, miss2);
  *squares = above2;
  return true;
}

// ---- width 2

// The least a with a / step >= 3 after rounding; 1 and 2 steps are exact (formats 2: floor).
HWY_INLINE VF ThirdThreshold(VF step) {
  const U8x32 du;
  const VF three = Set8(3.0f), guess = hn::Mul(three, step);
  VF least = FloatOf(hn::Add(Bits(guess), hn::Set(du, 1u)));
  least = hn::IfThenElse(hn::Ge(hn::Div(guess, step), three), guess, least);
  const VF below = FloatOf(hn::Sub(Bits(guess), hn::Set(du, 1u)));
  return hn::IfThenElse(hn::Ge(hn::Div(below, step), three), below, least);
}

// Codes (into code[8][64]), gains and offsets of eight channels; kAboveLog8 where a scale is.
template <bool kAll>
HWY_INLINE QuantiseResult CoarseScales(const RowMask& mask, VF count, uint16_t* m,
                                       std::byte* scales, uint32_t* HWY_RESTRICT code, VF* error,
                                       EightChannels* e) {
  const U8x32 du;
  const VF zero = hn::Zero(F8());
  const VF lo8 = hn::Load(F8(), e->lo), hi8 = hn::Load(F8(), e->hi);
  const VF step8 = hn::Mul(hn::Sub(hi8, lo8), Set8(0.25f));
  HWY_ALIGN float thresholds[3][8];
  Store8(step8, thresholds[0]);
  Store8(hn::Add(step8, step8), thresholds[1]);
  Store8(ThirdThreshold(step8), thresholds[2]);

  VF counts[8];
  for (int c = 0; c < 8; ++c) {
    const VF lo = Set8(e->lo[c]);
    const VF t1 = Set8(thresholds[0][c]), t2 = Set8(thresholds[1][c]), t3 = Set8(thresholds[2][c]);
    VU total = hn::Zero(du);
    for (int g = 0; g < kGroups; ++g) {
      const VF a = hn::Sub(Load8(e->value + c * kLanes + 8 * g), lo);
      const VU one = Bits(hn::VecFromMask(F8(), hn::Ge(a, t1)));  // all ones is -1
      const VU two = Bits(hn::VecFromMask(F8(), hn::Ge(a, t2)));
      const VU three = Bits(hn::VecFromMask(F8(), hn::Ge(a, t3)));
      VU k = hn::Sub(hn::Sub(hn::Zero(du), one), hn::Add(two, three));
      if (!kAll) k = Bits(mask.Keep(g, FloatOf(k)));
      hn::Store(k, du, code + c * kLanes + 8 * g);
      total = hn::Add(total, k);
    }
    counts[c] = hn::ConvertTo(F8(), hn::BitCast(I8x32(), total));
  }
  const VF mean_code8 = hn::Div(FoldLanes(counts, AddOp()), count);  // small integers: exact

  HWY_ALIGN float mean_code[8];
  Store8(mean_code8, mean_code);
  HWY_ALIGN const float digits[8] = {0, 1, 2, 3, 0, 1, 2, 3};
  VF yy[8], yc[8];
  for (int c = 0; c < 8; ++c) {
    const VF mean = Set8(e->mean[c]);
    const VF centred = hn::Sub(hn::Load(F8(), digits), Set8(mean_code[c]));  // of each code
    VF p[kGroups], q[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      const VU k = hn::Load(du, code + c * kLanes + 8 * g);
      VF dy = hn::Sub(Load8(e->value + c * kLanes + 8 * g), mean);
      if (!kAll) dy = mask.Keep(g, dy);
      const VF dc = hn::TableLookupLanes(centred, hn::IndicesFromVec(F8(), k));
      p[g] = hn::Mul(dy, dy);
      q[g] = hn::Mul(dy, dc);
    }
    yy[c] = FoldRows(p, AddOp());
    yc[c] = FoldRows(q, AddOp());
  }
  const VF yy8 = FoldLanes(yy, AddOp()), yc8 = FoldLanes(yc, AddOp());
  e->deviations = yy8;

  // CoarseScale of codec_math.h: no gain where the channel is flat or the sums are not positive.
  const I8x32 di;
  const auto gained = hn::And(hn::And(hn::Gt(yy8, zero), hn::Gt(yc8, zero)), hn::Ne(lo8, hi8));
  const VF one = Set8(1.0f);
  const VF gain = hn::Div(hn::IfThenElse(gained, yy8, one), hn::IfThenElse(gained, yc8, one));
  VI byte = hn::Add(Sixteenths(gain), hn::Set(di, codec::kLog8Bias));
  byte = hn::Max(byte, hn::Set(di, 1));
  byte = hn::BitCast(di, hn::And(hn::BitCast(U8x32(), byte), Bits(hn::VecFromMask(F8(), gained))));
  if (!hn::AllFalse(di, hn::Gt(byte, hn::Set(di, 255)))) return QuantiseResult::kAboveLog8;
  const VF scale8 = Log8Decode(byte, codec::kLog8Bias);
  Store8(scale8, e->scale);
  hn::StoreU(hn::DemoteTo(hn::FixedTag<uint8_t, 8>(), byte), hn::FixedTag<uint8_t, 8>(),
             reinterpret_cast<uint8_t*>(scales));
  StoreOffsets(hn::Sub(hn::Load(F8(), e->mean), hn::Mul(scale8, mean_code8)), m, e);
  *error = zero;
  for (int c = 0; c < 8; ++c) {
    // What the four codes decode to. Codes 0 and 3 always occur unless the scale is 0.
    const VF values =
        RoundF16(hn::Add(hn::Mul(Set8(e->scale[c]), hn::Load(F8(), digits)), Set8(e->offset[c])));
    VF sum = zero;
    if (e->scale[c] == 0) std::memset(code + c * kLanes, 0, sizeof(uint32_t) * kLanes);
    for (int g = 0; g < kGroups; ++g) {
      const VU k = hn::Load(du, code + c * kLanes + 8 * g);
      VF miss = hn::Sub(Load8(e->value + c * kLanes + 8 * g),
                        hn::TableLookupLanes(values, hn::IndicesFromVec(F8(), k)));
      if (!kAll) miss = mask.Keep(g, miss);
      sum = hn::MulAdd(miss, miss, sum);
    }
    *error = hn::Add(*error, sum);
  }
  return QuantiseResult::kOk;
}

// ---- planes

// Elements of one plane, rows in order, to their places: token t at (t & 7) * 8 + (t >> 3).
HWY_INLINE void StorePlane(VU* words, bool halves, std::byte* to) {
  Transpose8x8(words);
  for (int i = 0; i < 8; ++i) {
    if (halves) {
      hn::StoreU(hn::DemoteTo(U8x16(), hn::BitCast(I8x32(), words[i])), U8x16(),
                 reinterpret_cast<uint16_t*>(to) + 8 * i);
    } else {
      hn::StoreU(words[i], U8x32(), reinterpret_cast<uint32_t*>(to) + 8 * i);
    }
  }
}
HWY_INLINE void LoadPlane(const std::byte* from, bool halves, VU* words) {
  for (int i = 0; i < 8; ++i) {
    words[i] =
        halves ? hn::PromoteTo(U8x32(),
                               hn::LoadU(U8x16(), reinterpret_cast<const uint16_t*>(from) + 8 * i))
               : hn::LoadU(U8x32(), reinterpret_cast<const uint32_t*>(from) + 8 * i);
  }
  Transpose8x8(words);
}

template <int kWidth, bool kAll>
QuantiseResult QuantiseRuns(const float* y, int channels, int run, const RowMask& mask, VF count,
                            uint16_t* m, std::byte* scales, std::byte* codes, ErrorSums* sums) {
  const U8x32 du;
  const int n = kWidth == 0 ? 8 : codec::PlaneChannels(run, kWidth);
  const bool halves = n * kWidth == 16;
  EightChannels e;
  VU words[kGroups];
  VF error = hn::Zero(F8()), energy = error;
  float energy_shift = 0;
  for (int c0 = 0; c0 < channels; c0 += 8) {
    if (!Measure<kAll>(y + c0 * kLanes, mask, count, &e)) return QuantiseResult::kNotF16;
    if constexpr (kWidth == 0) {
      StoreOffsets(hn::Load(F8(), e.mean), m + c0, &e);
      energy = hn::Add(energy, Deviations<kAll>(mask, e, e.mean));
      error = hn::Add(error, Deviations<kAll>(mask, e, e.offset));
      continue;
    }
    HWY_ALIGN uint32_t code[kWidth == 2 ? 8 * kLanes : 1];
    if constexpr (kWidth == 2) {
      VF added;
      const QuantiseResult result =
          CoarseScales<kAll>(mask, count, m + c0, scales + c0, code, &added, &e);
      if (result != QuantiseResult::kOk) return result;
      error = hn::Add(error, added);
      energy = hn::Add(energy, e.deviations);
    } else {
      UniformScales(kWidth, m + c0, scales + 2 * c0, &e);
    }
    for (int c = 0; c < 8; ++c) {
      const int k = (c0 + c) % n;
      if (k == 0)
        for (int g = 0; g < kGroups; ++g) words[g] = hn::Zero(du);
      const int bit = kWidth == 0 ? 0 : codec::PlaneBit(k, n, kWidth);
      if constexpr (kWidth == 2) {
        for (int g = 0; g < kGroups; ++g)
          words[g] =
              hn::Or(words[g], hn::ShiftLeftSame(hn::Load(du, code + c * kLanes + 8 * g), bit));
      } else if constexpr (kWidth != 0) {
        VF squares;
        if (e.inverse[c] != 0 && UniformFast<kAll>(mask, e, c, bit, words, &error, &squares)) {
          // sum (y - mean)^2 from sum (y - m)^2.
          const float shift = e.mean[c] - e.offset[c], rows = hn::GetLane(count);
          energy = hn::Add(energy, squares);
          energy_shift += rows * shift * shift;
        } else {
          UniformExactly<kWidth, kAll>(mask, e, c, bit, words, &error, &energy);
        }
      }
      if (k == n - 1) {
        StorePlane(words, halves, codes);
        codes += kLanes * n * kWidth / 8;
      }
    }
  }
  const float total = SumLanes(error);
  if (!codec::IsFiniteBits(total)) return QuantiseResult::kNotF16;  // decodes to infinity
  sums->error += total;
  sums->energy += SumLanes(energy) - energy_shift;
  return QuantiseResult::kOk;
}

template <bool kAll>
QuantiseResult QuantiseWidth(const float* y, int channels, int run, int width, uint64_t rows,
                             uint16_t* m, std::byte* scales, std::byte* codes, ErrorSums* sums) {
  const RowMask mask(rows);
  const VF n = Set8(static_cast<float>(std::popcount(rows)));
  switch (width) {
    case 0:
      return QuantiseRuns<0, kAll>(y, channels, run, mask, n, m, scales, codes, sums);
    case 2:
      return QuantiseRuns<2, kAll>(y, channels, run, mask, n, m, scales, codes, sums);
    case 4:
      return QuantiseRuns<4, kAll>(y, channels, run, mask, n, m, scales, codes, sums);
    default:
      return QuantiseRuns<8, kAll>(y, channels, run, mask, n, m, scales, codes, sums);
  }
}

inline QuantiseResult QuantiseK(const float* y, int channels, int run, int width, uint64_t rows,
                                uint16_t* m, std::byte* scales, std::byte* codes, ErrorSums* sums) {
  if (rows == 0) {  // no live unpinned token
    std::memset(m, 0, sizeof(uint16_t) * static_cast<size_t>(channels));
    if (width > 0) {
      std::memset(scales, 0, static_cast<size_t>(channels * (width == 2 ? 1 : 2)));
      std::memset(codes, 0, static_cast<size_t>(8 * width * channels));
    }
    return QuantiseResult::kOk;
  }
  return rows == ~uint64_t{0}
             ? QuantiseWidth<true>(y, channels, run, width, rows, m, scales, codes, sums)
             : QuantiseWidth<false>(y, channels, run, width, rows, m, scales, codes, sums);
}

// ---- back

template <int kWidth>
HWY_INLINE void DequantiseRuns(const uint16_t* m, const std::byte* scales, const std::byte* codes,
                               int channels, int run, float* HWY_RESTRICT y) {
  const U8x32 du;
  const int n = codec::PlaneChannels(run, kWidth);
  const VU low = hn::Set(du, (1u << kWidth) - 1);
  HWY_ALIGN const float digits[8] = {0, 1, 2, 3, 0, 1, 2, 3};
  VU words[kGroups];
  for (int c = 0; c < channels; ++c) {
    const int k = c % n, bit = codec::PlaneBit(k, n, kWidth);
    if (k == 0) {
      LoadPlane(codes, n * kWidth == 16, words);
      codes += kLanes * n * kWidth / 8;
    }
    const VF offset = Set8(codec::F16ToF32(m[c]));
    float* to = y + c * kLanes;
    if constexpr (kWidth == 2) {  // four values, looked up
      const VF scale = Set8(codec::Log8Decode(static_cast<int>(scales[c])));
      const VF values = RoundF16(hn::Add(hn::Mul(scale, hn::Load(F8(), digits)), offset));
      for (int g = 0; g < kGroups; ++g) {
        const VU code = hn::And(hn::ShiftRightSame(words[g], bit), low);
        Store8(hn::TableLookupLanes(values, hn::IndicesFromVec(F8(), code)), to + 8 * g);
      }
    } else {
      uint16_t bits;
      std::memcpy(&bits, scales + 2 * c, 2);
      const VF scale = Set8(codec::F16ToF32(bits));
      for (int g = 0; g < kGroups; ++g) {
        const VU code = hn::And(hn::ShiftRightSame(words[g], bit), low);
        const VF level = hn::ConvertTo(F8(), hn::BitCast(I8x32(), code));
        Store8(RoundF16(hn::Add(hn::Mul(scale, level), offset)), to + 8 * g);
      }
    }
  }
}

inline void DequantiseK(const uint16_t* m, const std::byte* scales, const std::byte* codes,
                        int channels, int run, int width, float* y) {
  if (width == 2) return DequantiseRuns<2>(m, scales, codes, channels, run, y);
  if (width == 4) return DequantiseRuns<4>(m, scales, codes, channels, run, y);
  if (width == 8) return DequantiseRuns<8>(m, scales, codes, channels, run, y);
  for (int c = 0; c < channels; ++c) {
    const VF offset = Set8(codec::F16ToF32(m[c]) + 0.0f);  // as of a code 0: never -0
    for (int g = 0; g < kGroups; ++g) Store8(offset, y + c * kLanes + 8 * g);
  }
}

}  // namespace dyna::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
