// The decayed history of attention of one block (policy 3): per layer a token clock, per (kv head,
// group of tokens) one byte. It lies beside the block's segments and is spilled with them.
//
// A value m decays by rho^dt at each report that covers the block, and only then: time without
// readers changes nothing. What is stored is the bias-corrected r = m / (1 - rho^n), n the token
// clock: log2 in eighths, rounded up or down by a hash so that the mean of r stays right where
// rounding to nearest would stick.
//
// Thread rule: a value; whoever owns the block owns it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "daemon/policy/options.h"
#include "schemas/record.h"
#include "schemas/status.h"
#include "schemas/types.h"

namespace dyna {

// The tokens of one block as one report saw them: x[head][64], relative attention (policy 1).
struct BlockReport {
  int layer = 0;  // absolute
  int head_begin = 0, heads = 0;
  std::span<const float> x;  // [heads][64]; tokens beyond the window carry NaN: not covered
  uint32_t advance = 0;      // dt: tokens since this request's last report
};

class BlockHistory {
 public:
  BlockHistory() = default;
  // `seed` is of the block's hash: rounding depends on it.
  BlockHistory(const Shard& shard, HistoryGrain grain, uint64_t seed);

  const Shard& shard() const { return shard_; }
  bool Covers(int layer) const { return layer >= shard_.layer_begin && layer < shard_.layer_end; }
  // Folds the heads that both hold; REQUIRES Covers(layer). x must be finite and >= 0 or NaN
  // (scorers make it so); anything else is INVALID and changes nothing.
  Status Fold(const BlockReport& report, const HistoryOptions& options);

  bool observed(int layer) const { return clock(layer).reports > 0; }
  const record::LayerClock& clock(int layer) const {
    return clocks_[static_cast<size_t>(layer - shard_.layer_begin)];
  }
  // r of the 8 groups of a head; REQUIRES observed(layer). With grain kToken, means of 8 bytes.
  void Groups(int layer, int head, std::span<float, 8> r) const;
  // r of each token (a group's r with grain kGroup).
  void Tokens(int layer, int head, std::span<float, 64> r) const;

  // The bytes that lie beside the segments: header 16 B, clocks, values.
  size_t serialized_bytes() const;
  size_t memory_bytes() const { return sizeof *this + serialized_bytes(); }
  std::vector<std::byte> Serialize() const;
  // The door: length, version, grain, shard bounds, clocks. `seed` as above.
  static Result<BlockHistory> Parse(std::span<const std::byte> bytes, uint64_t seed);

 private:
  size_t heads() const { return static_cast<size_t>(shard_.head_end - shard_.head_begin); }
  size_t layers() const { return static_cast<size_t>(shard_.layer_end - shard_.layer_begin); }
  size_t offset(int layer, int head) const;

  Shard shard_;
  HistoryGrain grain_ = HistoryGrain::kGroup;
  uint64_t seed_ = 0;
  std::vector<record::LayerClock> clocks_;  // [layers]
  std::vector<uint8_t> values_;             // [layers][heads][grain]; b means 2^((b - 128) / 8)
};

}  // namespace dyna
