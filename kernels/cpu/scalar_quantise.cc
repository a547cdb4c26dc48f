// The quantisers in plain loops: the reference that every other table is compared with.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "kernels/codec_math.h"
#include "kernels/cpu/scalar_ops.h"
#include "kernels/trellis.h"

namespace dyna::scalar {
namespace {

bool Counts(uint64_t rows, int r) { return (rows >> r & 1) != 0; }

// Packs the codes of one channel into its run's planes, which the caller has zeroed.
void PackChannel(const uint8_t* code, int k, int run, int width, std::byte* codes) {
  const int n = codec::PlaneChannels(run, width);
  const int bytes = n * width / 8;  // of an element: 2 or 4
  const int bit = codec::PlaneBit(k % n, n, width);
  std::byte* plane = codes + (k / n) * kLanes * bytes;
  for (int t = 0; t < kLanes; ++t) {
    uint32_t element = 0;
    std::byte* at = plane + codec::TokenSlot(t) * bytes;
    std::memcpy(&element, at, static_cast<size_t>(bytes));
    element |= static_cast<uint32_t>(code[t]) << bit;
    std::memcpy(at, &element, static_cast<size_t>(bytes));
  }
}

void UnpackChannel(const std::byte* codes, int k, int run, int width, uint8_t* code) {
  const int n = codec::PlaneChannels(run, width);
  const int bytes = n * width / 8;
  const int bit = codec::PlaneBit(k % n, n, width);
  const std::byte* plane = codes + (k / n) * kLanes * bytes;
  for (int t = 0; t < kLanes; ++t) {
    uint32_t element = 0;
    std::memcpy(&element, plane + codec::TokenSlot(t) * bytes, static_cast<size_t>(bytes));
    code[t] = static_cast<uint8_t>(element >> bit & ((1u << width) - 1));
  }
}

struct Range {
  float lo = 0, hi = 0, mean = 0;
};
Range RangeOf(const float* y, uint64_t rows) {
  Range range;
  const int n = std::popcount(rows);
  if (n == 0) return range;
  range.lo = std::numeric_limits<float>::infinity();
  range.hi = -range.lo;
  for (int t = 0; t < kLanes; ++t) {
    if (!Counts(rows, t)) continue;
    range.lo = std::min(range.lo, y[t]);
    range.hi = std::max(range.hi, y[t]);
  }
  const float sum = codec::TreeSum(kLanes, [&](int t) { return Counts(rows, t) ? y[t] : 0.0f; });
  range.mean = sum / static_cast<float>(n);
  return range;
}

codec::KScale Coarse(const float* y, const Range& range, uint64_t rows, uint8_t* code) {
  const float step = codec::CoarseStep(range.lo, range.hi);
  for (int t = 0; t < kLanes; ++t)
    if (Counts(rows, t)) code[t] = static_cast<uint8_t>(codec::CoarseCode(y[t], range.lo, step));
  const float mean_code =
      codec::TreeSum(kLanes, [&](int t) { return static_cast<float>(code[t]); }) /
      static_cast<float>(std::popcount(rows));
  const auto deviation = [&](int t) { return Counts(rows, t) ? y[t] - range.mean : 0.0f; };
  const float yy = codec::TreeSum(kLanes, [&](int t) { return deviation(t) * deviation(t); });
  const float yc = codec::TreeSum(kLanes, [&](int t) {
    return Counts(rows, t) ? deviation(t) * (static_cast<float>(code[t]) - mean_code) : 0.0f;
  });
  const codec::KScale k = codec::CoarseScale(yy, yc, range.mean, mean_code);
  if (k.scale == 0) std::fill_n(code, kLanes, uint8_t{0});
  return k;
}

// One channel: scale, offset and codes. `y` holds f16 values.
codec::KScale QuantiseChannel(const float* y, int width, uint64_t rows, uint8_t* code) {
  const Range range = RangeOf(y, rows);
  codec::KScale k;
  if (width == 0 || range.lo == range.hi) {
    k.m_bits = codec::MeanOffset(range.mean);
    k.offset = codec::F16ToF32(k.m_bits);
    return k;
  }
  if (width == 2) return Coarse(y, range, rows, code);
  k = codec::UniformScale(range.lo, range.hi, range.mean, width);
  for (int t = 0; t < kLanes; ++t)
    if (Counts(rows, t)) code[t] = static_cast<uint8_t>(codec::UniformCode(y[t], k, width));
  return k;
}

}  // namespace

QuantiseResult QuantiseK(const float* y, int channels, int run, int width, uint64_t rows,
                         uint16_t* m, std::byte* scales, std::byte* codes, ErrorSums* sums) {
  const size_t run_bytes = static_cast<size_t>(8 * run * width);
  if (width > 0) std::memset(codes, 0, run_bytes * static_cast<size_t>(channels / run));
  for (int c = 0; c < channels; ++c) {
    float value[kLanes];
    uint8_t code[kLanes] = {};
    for (int t = 0; t < kLanes; ++t) {
      value[t] = codec::RoundF16(y[c * kLanes + t]);
      if (Counts(rows, t) && !codec::IsFiniteBits(value[t])) return QuantiseResult::kNotF16;
    }
    const codec::KScale k = QuantiseChannel(value, width, rows, code);
    if (width == 2 && k.scale_bits == codec::kAboveLog8) return QuantiseResult::kAboveLog8;
    float error = 0, energy = 0, mean = 0;
    Mean(value, 1, rows, &mean);
    for (int t = 0; t < kLanes; ++t) {
      if (!Counts(rows, t)) continue;
      const float e = value[t] - codec::DecodeK(code[t], k);
      error += e * e;
      energy += (value[t] - mean) * (value[t] - mean);
    }
    if (!codec::IsFiniteBits(error)) return QuantiseResult::kNotF16;  // decodes to infinity
    sums->error += error;
    sums->energy += energy;
    m[c] = k.m_bits;
    if (width == 0) continue;
    if (width == 2) {
      scales[c] = static_cast<std::byte>(k.scale_bits);
    } else {
      const uint16_t bits = static_cast<uint16_t>(k.scale_bits);
      std::memcpy(scales + 2 * c, &bits, 2);
    }
    PackChannel(code, c % run, run, width, codes + run_bytes * static_cast<size_t>(c / run));
  }
  return QuantiseResult::kOk;
}

void DequantiseK(const uint16_t* m, const std::byte* scales, const std::byte* codes, int channels,
                 int run, int width, float* y) {
  const size_t run_bytes = static_cast<size_t>(8 * run * width);
  for (int c = 0; c < channels; ++c) {
    codec::KScale k;
    k.offset = codec::F16ToF32(m[c]);
    uint8_t code[kLanes] = {};
    if (width == 2) k.scale = codec::Log8Decode(static_cast<int>(scales[c]));
    if (width > 2) {
      uint16_t bits;
      std::memcpy(&bits, scales + 2 * c, 2);
      k.scale = codec::F16ToF32(bits);
    }
    if (width > 0)
      UnpackChannel(codes + run_bytes * static_cast<size_t>(c / run), c % run, run, width, code);
    for (int t = 0; t < kLanes; ++t) y[c * kLanes + t] = codec::DecodeK(code[t], k);
  }
}

namespace {

// Codes of one row v[d] and what they stand for before the gain.
void CodeRow(const float* v, int d, int bits, float sum_zz, float max_abs, uint8_t* stored,
             float* unit) {
  if (!codec::IsTrellis(bits)) {
    const float step = codec::VStep(bits, max_abs);
    for (int c = 0; c < d; ++c) {
      const int code = codec::VCode(v[c], bits, step);
      stored[c] = static_cast<uint8_t>(code);
      unit[c] = codec::VUnit(code, bits);
    }
    return;
  }
  float scaled[4];
  const float rms = codec::TrellisRms(sum_zz, d);
  for (int i = 0; i < codec::TrellisMagnitudes(bits); ++i)
    scaled[i] = codec::TrellisMagnitude(bits, i) * rms;
  float cost[codec::kTrellisStates] = {0, codec::kTrellisUnreached, codec::kTrellisUnreached,
                                       codec::kTrellisUnreached};
  uint8_t from[kMaxHeadDim], upper[kMaxHeadDim];
  for (int c = 0; c < d; ++c) {
    int best, high;
    codec::TrellisStep(bits, v[c], scaled, cost, &best, &high);
    from[c] = static_cast<uint8_t>(best);
    upper[c] = static_cast<uint8_t>(high);
  }
  codec::TrellisTrace(bits, d, cost, from, upper, stored);
  codec::TrellisDecode(
      bits, d, [&](int c) { return int{stored[c]}; }, [&](int c, float u) { unit[c] = u; });
}

}  // namespace

QuantiseResult QuantiseV(const float* z, int d, int bits, uint64_t rows, std::byte* gains,
                         std::byte* codes, int8_t* v_exp, ErrorSums* sums) {
  std::memset(codes, 0, static_cast<size_t>(8 * d * bits));
  float gain[kLanes] = {};
  float value[kLanes][kMaxHeadDim];
  float max_gain = 0;
  for (int r = 0; r < kLanes; ++r) {
    if (!Counts(rows, r)) continue;
    float max_abs = 0;
    for (int c = 0; c < d; ++c) {
      value[r][c] = codec::RoundF16(z[c * kLanes + r]);
      if (!codec::IsFiniteBits(value[r][c])) return QuantiseResult::kNotF16;
      max_abs = std::max(max_abs, std::abs(value[r][c]));
    }
    const float* v = value[r];
    const float zz = codec::TreeSum(d, [&](int c) { return v[c] * v[c]; });
    sums->energy += zz;
    if (zz == 0) continue;
    uint8_t stored[kMaxHeadDim];
    float unit[kMaxHeadDim];
    CodeRow(v, d, bits, zz, max_abs, stored, unit);
    const float zu = codec::TreeSum(d, [&](int c) { return v[c] * unit[c]; });
    const float uu = codec::TreeSum(d, [&](int c) { return unit[c] * unit[c]; });
    gain[r] = codec::VGain(zz, zu, uu);
    max_gain = std::max(max_gain, gain[r]);
    for (int c = 0; c < d; ++c) {
      uint32_t word;
      std::byte* at = codes + codec::VWordByte(r, c, d, bits);
      std::memcpy(&word, at, 4);
      word |= uint32_t{stored[c]} << codec::VWordBit(r, c, bits);
      std::memcpy(at, &word, 4);
    }
  }
  const int exponent = codec::GainExponent(max_gain);
  *v_exp = static_cast<int8_t>(exponent);
  for (int r = 0; r < kLanes; ++r) {
    const int slot = codec::TokenSlot(r);
    if (bits == 8) {
      const uint16_t g = codec::F32ToF16(gain[r] * codec::Power2(-exponent));
      std::memcpy(gains + 2 * slot, &g, 2);
    } else {
      gains[slot] = static_cast<std::byte>(codec::Log8eEncode(gain[r], exponent));
    }
  }
  float decoded[kMaxHeadDim * kLanes];
  DequantiseV(gains, codes, d, bits, *v_exp, decoded);
  float error = 0;
  for (int r = 0; r < kLanes; ++r) {
    if (!Counts(rows, r)) continue;
    for (int c = 0; c < d; ++c) {
      const float e = value[r][c] - decoded[c * kLanes + r];
      error += e * e;
    }
  }
  if (!codec::IsFiniteBits(error)) return QuantiseResult::kNotF16;
  sums->error += error;
  return QuantiseResult::kOk;
}

void DequantiseV(const std::byte* gains, const std::byte* codes, int d, int bits, int8_t v_exp,
                 float* z) {
  const uint32_t mask = (1u << bits) - 1;
  for (int r = 0; r < kLanes; ++r) {
    const int slot = codec::TokenSlot(r);
    float gain;
    if (bits == 8) {
      uint16_t g;
      std::memcpy(&g, gains + 2 * slot, 2);
      gain = codec::F16ToF32(g) * codec::Power2(v_exp);
    } else {
      gain = codec::Log8eDecode(static_cast<int>(gains[slot]), v_exp);
    }
    const auto stored = [&](int c) {
      uint32_t word;
      std::memcpy(&word, codes + codec::VWordByte(r, c, d, bits), 4);
      return static_cast<int>(word >> codec::VWordBit(r, c, bits) & mask);
    };
    const auto put = [&](int c, float unit) { z[c * kLanes + r] = codec::DecodeV(unit, gain); };
    if (codec::IsTrellis(bits)) {
      codec::TrellisDecode(bits, d, stored, put);
    } else {
      for (int c = 0; c < d; ++c) put(c, codec::VUnit(stored(c), bits));
    }
  }
}

}  // namespace dyna::scalar
