// What the store counts, by value: metrics and the status page read it, the store knows neither.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "schemas/types.h"

namespace dyna {

struct TierCount {
  uint64_t blocks = 0, bytes = 0;
};

struct StoreStats {
  // state
  uint64_t token_budget = 0;  // of one chain; 0: none
  uint64_t young_bytes = 0;   // in the nursery, beside what is charged
  uint64_t budget_bytes = 0, charged_bytes = 0, aux_bytes = 0, basis_bytes = 0, history_bytes = 0;
  uint64_t raw_bytes = 0;       // of resident blocks, had they stayed raw
  TierCount host, spill, bank;  // a block counts in each tier that has a copy
  uint64_t writing_blocks = 0, leases = 0, contexts = 0, leased_bytes = 0;
  double log2_price = 0;
  std::array<uint64_t, 256> k_tiles{}, v_tiles{};  // resident tiles by kind
  double mean_bits = 0, mean_nmse = 0;
  // counters since the start
  std::array<uint64_t, 5> hits{};  // by Tier
  uint64_t misses = 0, pending = 0, lookups = 0, exists = 0;
  uint64_t put_segments = 0, put_raw_bytes = 0, put_encoded_bytes = 0, put_rejected = 0;
  uint64_t fetch_segments = 0, fetch_raw_bytes = 0, fetch_encoded_bytes = 0;
  double put_error_sum = 0;  // nmse x segments
  uint64_t retries = 0, quota_refusals = 0, invalid = 0;
  uint64_t demoted_segments = 0, demoted_bytes = 0, spilled_blocks = 0, evicted_blocks = 0;
  uint64_t dropped_tokens = 0;  // each in each layer and kv head
  // Chains that the token budget was held against; those that stay above it, for what must stay
  // whole is more; what the last of them keeps, summed over layers.
  uint64_t fitted_chains = 0, overfull_chains = 0, kept_tokens = 0;
  uint64_t loaded_blocks = 0, load_failures = 0, damaged_segments = 0, expired_blocks = 0;
  uint64_t aborted_puts = 0, lost_leases = 0, compacted_bytes = 0;
  uint64_t illegal_transitions = 0;  // a defect of ours; each one cost a block
  uint64_t reports = 0, reports_dropped = 0, reports_folded = 0;
  uint64_t bases = 0, bases_learned = 0, learned_tokens = 0, learned_queries = 0;
  double learn_seconds = 0, codec_seconds = 0, predicted_bits_saved = 0;
  uint64_t ticks = 0, tick_ns_max = 0, tick_ns_sum = 0;
};

struct TenantUse {
  uint64_t tenant = 0;
  std::string name;  // empty: nobody configured it
  uint64_t bytes = 0, quota_bytes = 0;
};

// One basis in use, for the status page and `inspect`.
struct BasisFact {
  Fingerprint context = 0;
  uint16_t layer = 0;
  BasisName name = 0;
  BasisSource source = BasisSource::kLearned;
  uint32_t tokens = 0, queries = 0;
  uint64_t segments = 0, bytes = 0;
  double l2_error = 0;  // predicted relative error at L2
};

struct ContextFact {
  Fingerprint context = 0;
  uint64_t tenant = 0;
  std::string model, revision;
  uint64_t blocks = 0, encoded_bytes = 0, raw_bytes = 0, basis_bytes = 0;
  bool profile = false;
  bool omega_learned = false;  // sensitivities measured on its traffic since the start
  uint64_t learned_tokens = 0, learned_queries = 0;
  double learn_seconds = 0, predicted_bits_saved = 0;
  std::vector<BasisFact> bases;
};

// One block as `inspect` shows it. Cells are [segment][head].
struct BlockFact {
  Fingerprint context = 0;
  BlockHash hash, parent;
  uint32_t index = 0, generation = 0, revision = 0, leases = 0;
  Tier tier = Tier::kNone;
  QualityClass quality = QualityClass::kBalanced;
  bool persistent = false, pinned = false, opaque = false;
  float nmse = 0, reuse = 0;
  uint64_t bytes = 0, charged = 0;
  struct Row {
    uint16_t layer = 0, head_begin = 0, kv_heads = 0;
    uint32_t bytes = 0;
    BasisName basis = 0;
    float nmse = 0;
    std::vector<uint8_t> k_kind, v_kind;
    std::vector<float> k_bits, v_bits;
    std::vector<float> importance;  // [head][8 groups]: r, 1 where nothing was observed
  };
  std::vector<Row> rows;
};

}  // namespace dyna
