#include "kernels/rope.h"

#include <cmath>

namespace dyna {

RopeTable::RopeTable(const Rope& rope)
    : kind_(rope.kind),
      rotary_dim_(rope.kind == RopeKind::kNone ? 0 : rope.rotary_dim),
      inv_freq_(rope.inv_freq.begin(), rope.inv_freq.end()) {
  inv_freq_.resize(static_cast<size_t>(rotary_dim_ / 2));
  for (const double f : inv_freq_) {
    for (int t = 0; t < kBlockTokens; ++t) {
      cos_.push_back(static_cast<float>(std::cos(t * f)));
      sin_.push_back(static_cast<float>(std::sin(t * f)));
    }
  }
  digits_.reserve(kDigits * kBlockTokens * inv_freq_.size());
  for (size_t i = 0; i < kDigits; ++i)
    for (uint64_t digit = 0; digit < kBlockTokens; ++digit)
      for (const double f : inv_freq_) {
        const double angle = static_cast<double>(digit << (6 * i)) * f;
        digits_.push_back({std::cos(angle), std::sin(angle)});
      }
}

void RopeTable::FirstAngles(uint64_t first, std::span<Angle> out) const {
  const size_t pairs = inv_freq_.size();
  const bool far = first >> (6 * kDigits) != 0;  // beyond the tables
  const Turn* rows[kDigits];
  size_t count = 0;
  for (size_t i = 0; i < kDigits && !far; ++i)
    if (const size_t digit = first >> (6 * i) & 63; digit != 0)
      rows[count++] = &digits_[(i * kBlockTokens + digit) * pairs];
  for (size_t p = 0; p < pairs; ++p) {
    Turn turn{1, 0};
    if (far) {
      const double angle = static_cast<double>(first) * inv_freq_[p];
      turn = {std::cos(angle), std::sin(angle)};
    }
    for (size_t i = 0; i < count; ++i) {
      const Turn& by = rows[i][p];
      turn = {turn.cos * by.cos - turn.sin * by.sin, turn.sin * by.cos + turn.cos * by.sin};
    }
    out[p] = {static_cast<float>(turn.cos), static_cast<float>(turn.sin)};
  }
}

void RopeTable::Fill(uint64_t first, RopeBlock* block) const {
  block->kind = kind_;
  block->pairs = rotary_dim_ / 2;
  Angle at[kMaxHeadDim / 2];
  FirstAngles(first, std::span(at).first(inv_freq_.size()));
  for (int p = 0; p < block->pairs; ++p) {
    const auto [c, s] = at[p];
    const float* from_cos = &cos_[static_cast<size_t>(p * kBlockTokens)];
    const float* from_sin = &sin_[static_cast<size_t>(p * kBlockTokens)];
    for (int t = 0; t < kBlockTokens; ++t) {
      block->cos[p][t] = c * from_cos[t] - s * from_sin[t];
      block->sin[p][t] = s * from_cos[t] + c * from_sin[t];
    }
  }
}

}  // namespace dyna
