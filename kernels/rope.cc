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
}

RopeTable::Angle RopeTable::FirstAngle(uint64_t first, int pair) const {
  const double angle = static_cast<double>(first) * inv_freq_[static_cast<size_t>(pair)];
  return {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
}

void RopeTable::Fill(uint64_t first, RopeBlock* block) const {
  block->kind = kind_;
  block->pairs = rotary_dim_ / 2;
  for (int p = 0; p < block->pairs; ++p) {
    const auto [c, s] = FirstAngle(first, p);
    const float* from_cos = &cos_[static_cast<size_t>(p * kBlockTokens)];
    const float* from_sin = &sin_[static_cast<size_t>(p * kBlockTokens)];
    for (int t = 0; t < kBlockTokens; ++t) {
      block->cos[p][t] = c * from_cos[t] - s * from_sin[t];
      block->sin[p][t] = s * from_cos[t] + c * from_sin[t];
    }
  }
}

}  // namespace dyna
