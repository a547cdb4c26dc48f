// A policy: which kinds tiles may take, and which tokens live. One file and one row of the table
// in policy.cc each. Most policies only make ladders and let the price decide; one that drops
// tokens answers live masks with the whole chain in view.
//
// Thread rule: const after Create; MakeLadders on the loop, ScoreKeys and SelectLive on any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/policy/ladder_set.h"
#include "daemon/policy/options.h"
#include "schemas/context.h"
#include "schemas/status.h"

namespace dyna {

// Whose numbers ChainView::importance holds.
enum class ScoreSource : uint8_t {
  kNone,     // nobody's: the policy looks at places alone
  kReports,  // r of policy.md 3, a token each; whatever per-token score >= 0 a worker sent
  kKeys,     // the policy's own ScoreKeys
};

// A chain from the root as a policy that drops tokens sees it.
struct ChainView {
  const ContextSpec* spec = nullptr;
  uint32_t tokens = 0;                             // a multiple of 64
  uint32_t pinned = 4;                             // first tokens, kept whatever is answered
  std::vector<std::span<const float>> importance;  // [layer]: [kv_heads][tokens], or empty
  // [layer]: [kv_heads][tokens / 64]: who lives today; empty: all. None comes back.
  std::vector<std::span<const uint64_t>> live;
  std::span<const uint64_t> blocks;  // [tokens / 64]: a word of each block's hash
};
// [layer]: [kv_heads][tokens / 64] masks; bit t is token t of the block.
using LiveMasks = std::vector<std::vector<uint64_t>>;
struct ChainChoice {
  LiveMasks live;
  // [layer]: [kv_heads][tokens / 64] bits an element of K and V; empty: kinds stay.
  std::vector<std::vector<float>> bits;
};

class Policy {
 public:
  virtual ~Policy() = default;
  virtual std::string_view name() const = 0;
  // The ladder of one kv head for a class. UNSUPPORTED where the policy cannot serve the class.
  virtual Result<CellLadder> MakeCell(const LayerModel& layer, int head,
                                      QualityClass quality) const = 0;
  // False: `live` stays all ones and nothing below is called.
  virtual bool drops_tokens() const { return false; }
  virtual ScoreSource scores() const { return ScoreSource::kNone; }
  // kKeys: one kv head's score from K as the engine stores it, k: [tokens][head_dim].
  virtual void ScoreKeys(std::span<const float> k, int head_dim, std::span<float> score) const;
  // Layers of which nothing is known, sliding ones (their window bounds them already) and opaque
  // ones stay whole. INVALID: the view is not of its spec's shape.
  virtual Status SelectLive(const ChainView& chain, ChainChoice* choice) const;
  // What it needs of the history whatever the operator said.
  virtual void Imply(PolicyOptions* options) const;

  // The ladders of a layer: MakeCell of each head.
  Result<std::shared_ptr<const LadderSet>> MakeLadders(const LayerModel& layer,
                                                       QualityClass quality) const;
};

std::vector<std::string_view> PolicyNames();
// INVALID naming the option or the nearest known name.
Result<std::unique_ptr<Policy>> MakePolicy(const PolicyOptions& options);

}  // namespace dyna
