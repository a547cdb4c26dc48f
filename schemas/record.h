// The rows that outlive the daemon, as plain structs, and the one verified door to their bytes.
//
// A row is one FlatBuffer (record.fbs). Rows are self-sufficient: from the context, basis, block
// and learner rows of a store a new process re-creates all that the old one had acknowledged. What
// Parse returns may be trusted as far as its types and the bounds here go; whether a block's shards
// and segments fit its context is checked by whoever holds the context.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "schemas/context.h"
#include "schemas/status.h"
#include "schemas/types.h"

namespace dyna::record {

inline constexpr uint16_t kVersion = 1;
inline constexpr size_t kMaxRow = 64u << 20;   // bytes of one row; a basis object is the largest
inline constexpr size_t kMaxSegments = 65536;  // of one block
inline constexpr size_t kMaxCells = 1u << 20;  // (layer, kv head) pairs of one block
inline constexpr size_t kMaxShards = 1024;

// What names a block. The tenant is the first 8 bytes of a hash of uid or token.
struct BlockKey {
  uint64_t tenant = 0;
  Fingerprint context = 0;
  BlockHash hash;
  bool operator==(const BlockKey&) const = default;
  auto operator<=>(const BlockKey&) const = default;
};

// One stored segment: the unit of reading.
struct SegmentEntry {
  uint16_t layer = 0;
  uint16_t head_begin = 0, kv_heads = 0;
  BasisName basis = 0;  // 0: none
  uint32_t bytes = 0;   // encoded
  bool operator==(const SegmentEntry&) const = default;
};

// What the allocator needs of one (layer, kv head): 6 bytes on disk. The meaning of the logarithms
// is the store's (policy 3 and 4); here they are bytes.
struct Cell {
  uint8_t k_kind = 0, v_kind = 0;
  int8_t log2_w_k = 0, log2_w_v = 0;
  int8_t log2_energy_k = 0, log2_energy_v = 0;
  bool operator==(const Cell&) const = default;
};

// History's clock of one layer: it is exact and lazy (policy 3).
struct LayerClock {
  uint32_t tokens = 0;   // token clock of the last report
  uint32_t reports = 0;  // how many were folded
  bool operator==(const LayerClock&) const = default;
};

// A block as it is on disk. Persisted enums keep their numbers for ever.
struct BlockMeta {
  BlockKey key;
  BlockHash parent;         // zero at the root
  uint32_t index = 0;       // of the block in its sequence
  uint32_t generation = 0;  // another content
  uint32_t revision = 0;    // the same content at fewer bits
  QualityClass quality = QualityClass::kBalanced;
  Durability durability = Durability::kVolatile;
  bool pinned = false;
  bool dropped = false;                // some tokens are not live: their masks are in the segments
  bool drop_due = false;               // the chain that ends here waits for such a decision
  bool opaque = false;                 // a whole object of unknown meaning: one segment, layer 0
  float reuse = 0;                     // h, as of reuse_at_ms
  float nmse = 0;                      // of K and V over the whole block
  float mean_bits = 0;                 // of K and V codes, per element
  int64_t reuse_at_ms = 0;             // Unix time
  int64_t expires_at_ms = 0;           // Unix time, 0: never
  uint32_t history_bytes = 0;          // 0: no history is stored beside the segments
  std::vector<Shard> shards;           // complete ones, at least one unless opaque
  std::vector<SegmentEntry> segments;  // in the order of (layer, head_begin)
  std::vector<Cell> cells;             // [segment][head], or empty
  std::vector<LayerClock> clocks;      // of the layers that have segments, in order; or empty
  bool operator==(const BlockMeta&) const = default;
};
uint64_t SegmentBytes(const BlockMeta& meta);  // of all segments

struct ContextRow {
  uint64_t tenant = 0;
  Fingerprint context = 0;
  ContextSpec spec;  // with the first opener's ropes
  // Of the first profile, as given: [layer][kv head][omega_k, omega_v, k_error_l4, k_error_l2];
  // empty: none.
  std::vector<float> omega;
  bool operator==(const ContextRow& o) const;
};

// A basis object (formats 1), bytes as hashed; kernels/basis.h verifies them.
struct BasisRow {
  uint64_t tenant = 0;
  Fingerprint context = 0;
  BasisName name = 0;
  std::vector<uint8_t> object;
  bool operator==(const BasisRow&) const = default;
};

struct PriceRow {
  uint64_t tenant = 0;  // 0: the tier's own price
  Tier tier = Tier::kHost;
  double log2_price = 0;
  bool operator==(const PriceRow&) const = default;
};

// One layer's accumulators. Their layout belongs to the learner, and so does the version.
struct LearnerRow {
  uint64_t tenant = 0;
  Fingerprint context = 0;
  uint16_t layer = 0;
  uint16_t version = 0;
  std::vector<uint8_t> state;
  bool operator==(const LearnerRow&) const = default;
};

using Row = std::variant<BlockMeta, ContextRow, BasisRow, PriceRow, LearnerRow>;

// REQUIRES the bounds above.
std::vector<uint8_t> Serialize(const Row& row);

// The one door. INVALID for damaged or contradictory bytes, UNSUPPORTED for a version or a kind of
// row from the future, TOO_LARGE above a bound. Never reads outside `bytes`.
Result<Row> Parse(std::span<const uint8_t> bytes);

// The bounds that Parse holds a row to, for writers that want to check first.
Status Validate(const Row& row);

}  // namespace dyna::record
