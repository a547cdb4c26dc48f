// random: what choosing well is worth. A hash of (block, layer, head, token) ranks a head's tokens,
// the same on every run and however often the chain is decided; the first 4 tokens stay.
#include "daemon/policy/policies.h"
#include "daemon/policy/token_policy.h"

namespace dyna {
namespace {

class Random final : public HeadPolicy {
 public:
  using HeadPolicy::HeadPolicy;
  std::string_view name() const override { return "random"; }

 protected:
  void SelectHead(const HeadTokens& head, std::span<uint64_t> keep) const override {
    std::vector<float> score(head.chain.tokens);
    for (uint32_t t = 0; t < head.chain.tokens; ++t)
      score[t] = static_cast<float>(
          UniformOf(head.chain.blocks[t / kBlockTokens], head.layer, head.head, t % kBlockTokens));
    KeepBest(head, score, Window(0), Budget(head.chain), keep);
  }
};

}  // namespace

Result<std::unique_ptr<Policy>> MakeRandomPolicy(const PolicyOptions& options) {
  return MakeTokenPolicy<Random>(options);
}

}  // namespace dyna
