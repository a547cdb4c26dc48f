// kvdistill: KV-Distill (arXiv 2503.10337), its choice of tokens. A learned scorer on hidden states
// ranks tokens, and the same top C stay in all layers and heads; the prompt's first tokens always
// do (ours 4, its own 10). Its adapters of K and V belong to the model and are not here: without
// them this is a learned eviction, weaker than the paper's distilled cache.
//
// Statistics: the worker runs the scorer and sends its scores as `column_mass`, the same for every
// layer and head, any number >= 0. What differs between them is averaged over all layers and heads,
// which also takes most of the grain out of the byte that each passes through. Decided once every
// full layer has been reported.
#include <algorithm>

#include "daemon/policy/policies.h"
#include "daemon/policy/token_policy.h"

namespace dyna {
namespace {

class KvDistill final : public TokenPolicy {
 public:
  using TokenPolicy::TokenPolicy;
  std::string_view name() const override { return "kvdistill"; }
  ScoreSource scores() const override { return ScoreSource::kReports; }

  Status SelectLive(const ChainView& chain, ChainChoice* choice) const override {
    DYNA_RETURN_IF_ERROR(Begin(chain, choice));
    const size_t blocks = chain.tokens / kBlockTokens;
    std::vector<double> sum(chain.tokens);
    for (size_t l = 0; l < choice->live.size(); ++l) {
      if (chain.spec->layers[l].kind != LayerKind::kFull) continue;
      if (!Decides(chain, static_cast<int>(l))) return {};
      for (size_t i = 0; i < chain.importance[l].size(); ++i)
        sum[i % chain.tokens] += double{chain.importance[l][i]};
    }
    const std::vector<float> score(sum.begin(), sum.end());
    for (size_t l = 0; l < choice->live.size(); ++l) {
      if (chain.spec->layers[l].kind != LayerKind::kFull) continue;
      std::fill(choice->live[l].begin(), choice->live[l].end(), uint64_t{0});
      for (int head = 0; head < chain.spec->layers[l].kv_heads; ++head)
        KeepBest(HeadOf(chain, static_cast<int>(l), head), score, Window(0), Budget(chain),
                 std::span(choice->live[l]).subspan(static_cast<size_t>(head) * blocks, blocks));
    }
    return {};
  }
};

}  // namespace

Result<std::unique_ptr<Policy>> MakeKvDistillPolicy(const PolicyOptions& options) {
  return MakeTokenPolicy<KvDistill>(options);
}

}  // namespace dyna
