// Rotary embedding as tables (formats 7): no backend computes a sine. The host makes R(t) for
// t = 0..63 once per context and R(64 * index) once per block, in double, and combines them in f32.
//
// Thread rule: RopeTable is const after construction; RopeBlock belongs to its caller.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "schemas/context.h"
#include "schemas/types.h"

namespace dyna {

// cos and sin of 64 consecutive positions: plane p (channel pair p), lane t. Pair p is channels
// (p, p + rotary_dim / 2) for kHalf, (2 p, 2 p + 1) for kInterleaved; later channels do not turn.
struct RopeBlock {
  RopeKind kind = RopeKind::kNone;
  int pairs = 0;  // rotary_dim / 2
  alignas(64) float cos[kMaxHeadDim / 2][kBlockTokens];
  alignas(64) float sin[kMaxHeadDim / 2][kBlockTokens];
};

class RopeTable {
 public:
  explicit RopeTable(const Rope& rope);  // REQUIRES a validated one (schemas/context.h)

  // Positions first .. first + 63.
  void Fill(uint64_t first, RopeBlock* block) const;
  void FillBlock(uint32_t block_index, RopeBlock* block) const {
    Fill(uint64_t{block_index} * kBlockTokens, block);
  }
  // What the two tables that are combined hold, for backends that combine them themselves: position
  // t of 0..63, and the first of a block.
  float cos_at(int pair, int t) const { return cos_[At(pair, t)]; }
  float sin_at(int pair, int t) const { return sin_[At(pair, t)]; }
  struct Angle {
    float cos, sin;
  };
  // Of every pair at position `first`; `out` has rotary_dim / 2 entries. Products of a few tables
  // of doubles: a sine and cosine of each pair of each block were half of what planning a call
  // took.
  void FirstAngles(uint64_t first, std::span<Angle> out) const;
  std::span<const double> inv_freq() const { return inv_freq_; }

  RopeKind kind() const { return kind_; }
  int rotary_dim() const { return rotary_dim_; }

 private:
  static size_t At(int pair, int t) {
    return static_cast<size_t>(pair) * kBlockTokens + static_cast<size_t>(t);
  }
  RopeKind kind_;
  int rotary_dim_;
  std::vector<double> inv_freq_;
  std::vector<float> cos_, sin_;  // [pairs][64]
  struct Turn {
    double cos, sin;
  };
  // [kDigits][64][pairs]: of digit i of a position in base 64.
  static constexpr size_t kDigits = 4;
  std::vector<Turn> digits_;
};

}  // namespace dyna
