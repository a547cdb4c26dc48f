// What policies that drop tokens share (policy.md 7): tokens stay raw, as in their papers, and each
// kv head keeps a budget of them. One file a method says which.
//
// What dropping saves: the sizes of tiles follow from their kinds alone (formats 4), raw ones too.
// So a tile with some dropped tokens has the bytes it had, and one without a live token becomes
// `none` and has none. Those are the bytes that the store counts; what a layout of single tokens
// would need can be read off the masks. Dropped rows are served as the mean of their tile's live
// ones, never as zeros, with the masks beside for readers that want them.
//
// Thread rule: const after it was made.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "daemon/policy/policy.h"

namespace dyna {

// One (layer, kv head) of a chain.
struct HeadTokens {
  const ChainView& chain;
  int layer = 0, head = 0;
  std::span<const float> score;  // [tokens]; empty: the policy asks for none

  bool lives(uint32_t token) const;  // today
};

enum class Pooling : uint8_t { kNone, kMean, kMax };
// Stride 1, `kernel` odd, zeros beyond both ends, as torch's pool1d with padding kernel / 2.
std::vector<float> Pool(std::span<const float> x, Pooling pooling, int kernel);

// The tokens that a head keeps, `budget` in all: the pinned ones and the last `window` first, then
// the best of `score`, the earlier of equals. Only tokens that live today. keep: [tokens / 64].
// With a budget below pinned + window the window gives way.
void KeepBest(const HeadTokens& head, std::span<const float> score, uint32_t window,
              uint32_t budget, std::span<uint64_t> keep);

class TokenPolicy : public Policy {
 public:
  explicit TokenPolicy(const PolicyOptions& options) : options_(options) {}
  bool drops_tokens() const override { return true; }
  Result<CellLadder> MakeCell(const LayerModel& layer, int head, QualityClass) const override {
    return OneRung(layer, head, kind::kRaw, kind::kRaw);
  }

 protected:
  // Checks the view; a mask of ones for every tile.
  Status Begin(const ChainView& chain, ChainChoice* choice) const;
  // Full attention, and its scores are there if the policy wants any.
  bool Decides(const ChainView& chain, int layer) const;
  HeadTokens HeadOf(const ChainView& chain, int layer, int head) const;
  uint32_t Budget(const ChainView& chain) const;  // C: tokens of a head
  uint32_t Window(int papers) const {
    return static_cast<uint32_t>(options_.drop.window > 0 ? options_.drop.window : papers);
  }
  int Kernel(int papers) const { return options_.drop.pool > 0 ? options_.drop.pool : papers; }

  const PolicyOptions options_;
};

// One that chooses for each kv head by itself.
class HeadPolicy : public TokenPolicy {
 public:
  using TokenPolicy::TokenPolicy;
  Status SelectLive(const ChainView& chain, ChainChoice* choice) const override;

 protected:
  // keep: [tokens / 64], zeros. Called where there is something to choose.
  virtual void SelectHead(const HeadTokens& head, std::span<uint64_t> keep) const = 0;
};

// Uniform in [0, 1), by hash: a decision that is repeated does not compound.
double UniformOf(uint64_t block, int layer, int head, uint32_t token);

// INVALID naming the option: keep within 0..1, window and pool not negative, pool odd.
Status CheckDropOptions(const DropOptions& options);

template <typename P>
Result<std::unique_ptr<Policy>> MakeTokenPolicy(const PolicyOptions& options) {
  DYNA_RETURN_IF_ERROR(CheckDropOptions(options.drop));
  return std::unique_ptr<Policy>(std::make_unique<P>(options));
}

}  // namespace dyna
