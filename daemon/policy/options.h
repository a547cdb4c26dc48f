// What the policy is told at start, defaults in place; the operator's options are mapped to it.
//
// Thread rule: plain values.
#pragma once

#include <cstdint>
#include <string>

namespace dyna {

enum class HistoryGrain : uint8_t { kGroup = 8, kToken = 64 };  // bytes of a (layer, kv head)

struct HistoryOptions {
  double half_life_tokens = 4096;
  double max_step = 6;           // octaves that one report may move r by, the first from r = 1
  uint32_t max_advance = 65536;  // a report that claims more tokens counts as this many
};

struct HedgeOptions {
  double hedge = 0.5;              // share of importance that history decides
  double gamma = 0.5;              // g
  double half_life_tokens = 4096;  // of Z
};

struct PriceOptions {
  // A resident tile is demoted only when the price is this far above its threshold, so that a
  // price or a weight that wobbles does not wear tiles down. Eighths of an octave.
  int resident_bonus = 2;
  double slack = 1.0 / 256;  // a solve that must demote goes this far below the budget
  double band = 1.0 / 16;    // the price falls only when more than this is free
};

// Policies that drop tokens (policy.md 7).
struct DropOptions {
  double keep = 0.25;  // of a chain's tokens, of each (layer, kv head), or of their mean
  // A chain is decided this long after its last block or report: what looks like its end now is
  // then its end, and methods that look at a whole prompt see one.
  uint32_t after_ms = 1000;
  int window = 0;  // last tokens kept whatever their score; 0: the paper's own
  int pool = 0;    // tokens of the pooling kernel, odd; 0: the paper's own
};

// `printed` and `printed_corrected` (policy.md 6). A is a share of attention, r relative to it.
struct PrintedOptions {
  double b_min = 2, b_max = 8;  // bits an element
  double gamma = 1;
  double lambda = 4;
  double tau = 0.5;  // of A as printed, of log2 r corrected
};

// omega of a profile (policy.md 4): of each head, of each layer (its heads' mean), or not at all.
enum class OmegaGrain : uint8_t { kOff, kLayer, kHead };

struct PolicyOptions {
  std::string name = "dynacompress";
  std::string score_source = "auto";  // auto, keys_only, query_window, column_mass
  HistoryGrain grain = HistoryGrain::kGroup;
  HistoryOptions history;
  HedgeOptions hedge;
  PriceOptions price;
  double uniform_k_bits = 2;  // `uniform`: a level's target; 4 and 8 are plain without a basis
  int uniform_v_bits = 2;
  DropOptions drop;
  PrintedOptions printed;
  OmegaGrain omega = OmegaGrain::kHead;
};

struct LearnerOptions {
  bool enabled = true;
  uint32_t min_tokens = 2048;        // unpinned, before a layer's first basis
  uint32_t keys_only_tokens = 4096;  // without any query: a basis of keys alone
  uint32_t queries_per_dim = 4;
  uint32_t sample_every = 64;     // after the first basis one block in this many
  uint32_t window_tokens = 8192;  // of the second accumulator
  double min_gain = 0.10;         // a new basis must promise this much less error
  uint32_t bases_per_layer = 4;
  double codec_share = 0.02;  // of codec time, after the first basis; the caller's to keep
  // Windows of each layer that omega is measured on where no profile says it; 0: it is not.
  uint32_t omega_windows = 16;
  uint64_t tenant_bytes = 256ull << 20;  // of accumulators; the caller's to keep (MomentsBytes)
};

}  // namespace dyna
