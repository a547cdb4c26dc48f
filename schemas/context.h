// A context is one model as the cache sees it (design 2): what a client declares once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "schemas/status.h"
#include "schemas/types.h"

namespace dyna {

// Rotary embedding of a layer: pair i of the first rotary_dim channels turns by
// position * inv_freq[i]. kHalf pairs channel i with i + rotary_dim/2 (GPT-NeoX, Llama);
// kInterleaved pairs 2i with 2i + 1.
struct Rope {
  RopeKind kind = RopeKind::kNone;
  uint16_t rotary_dim = 0;
  std::vector<float> inv_freq;  // [rotary_dim / 2]
  bool operator==(const Rope&) const = default;
};

struct LayerShape {
  LayerKind kind = LayerKind::kFull;
  uint16_t kv_heads = 0;
  uint16_t q_heads = 0;  // a multiple of kv_heads; 0: no query windows will come
  uint16_t head_dim = 0;
  uint16_t rope = 0;    // index into ContextSpec::ropes
  uint32_t window = 0;  // kSliding: tokens
  uint32_t max_position = 0;
  bool operator==(const LayerShape&) const = default;

  // Of a run of `run` blocks the first that somebody who goes on at its end needs of this layer
  // (design 5): of a sliding one the window's, and one more, so that the last may be computed
  // again.
  uint32_t FirstBlockNeeded(uint32_t run) const {
    if (kind != LayerKind::kSliding) return 0;
    const uint32_t blocks = WindowBlocks();
    return run > blocks ? run - blocks : 0;
  }
  uint32_t WindowBlocks() const { return window / kBlockTokens + (window % kBlockTokens != 0) + 1; }
};

struct ContextSpec {
  std::string model;     // 1..256 bytes of printable text
  std::string revision;  // of the weights
  std::string adapter;   // LoRA or other; part of the fingerprint
  DType dtype = DType::kBf16;
  bool attend = false;  // tiles will be attended to in place: `post` bases, runs of 16
  bool masks = false;   // readers understand live masks
  std::vector<LayerShape> layers;
  std::vector<Rope> ropes;  // outside the fingerprint (formats 7)
};

// Checks every bound of design 2 and formats; the message names the field.
Status Validate(const ContextSpec& spec);
// The canonical bytes whose SHA-256 names the context: everything but the rope frequencies.
std::string CanonicalBytes(const ContextSpec& spec);
Fingerprint FingerprintOf(const ContextSpec& spec);
// INVALID naming the field where `later`'s ropes differ from `first`'s by more than 1e-5 relative.
Status CheckRopesJoin(const ContextSpec& first, const ContextSpec& later);

// What a client holds of a context: half-open ranges.
struct Shard {
  uint16_t layer_begin = 0, layer_end = 0;
  uint16_t head_begin = 0, head_end = 0;  // kv heads, the same range in each layer
  bool operator==(const Shard&) const = default;
};
Status Validate(const Shard& shard, const ContextSpec& spec);

}  // namespace dyna
