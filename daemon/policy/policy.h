// A policy: which kinds tiles may take, and which tokens live. One file and one row of the table
// in policy.cc each. Most policies only make ladders and let the price decide; one that drops
// tokens answers live masks with the whole chain in view.
//
// Thread rule: const after Create; MakeLadders on the loop, SelectLive on any thread.
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

// A chain from the root as a policy that drops tokens sees it; r as in policy.md 3.
struct ChainView {
  const ContextSpec* spec = nullptr;
  uint32_t tokens = 0;                             // a multiple of 64
  uint32_t pinned = 4;                             // first tokens, kept whatever is answered
  std::vector<std::span<const float>> importance;  // [layer]: [kv_heads][tokens], or empty
};
// [layer]: [kv_heads][tokens / 64] masks; bit t is token t of the block.
using LiveMasks = std::vector<std::vector<uint64_t>>;

class Policy {
 public:
  virtual ~Policy() = default;
  virtual std::string_view name() const = 0;
  // The ladder of one kv head for a class. UNSUPPORTED where the policy cannot serve the class.
  virtual Result<CellLadder> MakeCell(const LayerModel& layer, int head,
                                      QualityClass quality) const = 0;
  // False: `live` stays all ones and SelectLive is never called.
  virtual bool drops_tokens() const { return false; }
  virtual Status SelectLive(const ChainView& chain, LiveMasks* live) const;

  // The ladders of a layer: MakeCell of each head.
  Result<std::shared_ptr<const LadderSet>> MakeLadders(const LayerModel& layer,
                                                       QualityClass quality) const;
};

// dynacompress, full, uniform.
std::vector<std::string_view> PolicyNames();
// INVALID naming the option or the nearest known name.
Result<std::unique_ptr<Policy>> MakePolicy(const PolicyOptions& options);

}  // namespace dyna
