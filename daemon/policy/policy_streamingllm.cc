// streamingllm: StreamingLLM (arXiv 2309.17453). The first 4 tokens and the most recent ones. Needs
// no statistics. Positions stay those of the text; the paper renumbers them within the cache, which
// is the attention kernel's to do.
#include "daemon/policy/policies.h"
#include "daemon/policy/token_policy.h"

namespace dyna {
namespace {

class StreamingLlm final : public HeadPolicy {
 public:
  using HeadPolicy::HeadPolicy;
  std::string_view name() const override { return "streamingllm"; }

 protected:
  void SelectHead(const HeadTokens& head, std::span<uint64_t> keep) const override {
    const std::vector<float> alike(head.chain.tokens);
    KeepBest(head, alike, head.chain.tokens, Budget(head.chain), keep);
  }
};

}  // namespace

Result<std::unique_ptr<Policy>> MakeStreamingLlmPolicy(const PolicyOptions& options) {
  return MakeTokenPolicy<StreamingLlm>(options);
}

}  // namespace dyna
