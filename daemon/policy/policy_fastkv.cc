// fastkv: FastKV (arXiv 2502.01068 v3), its KV part. Attention of the last 8 queries, summed over
// them, max-pooled over 7, summed over the query heads of a kv head, top C - 8 of each kv head and
// the last 8 tokens. Its token-selective propagation gathers hidden states in the worker and is no
// business of a cache's.
//
// Statistics: a `query_window` report of the last 8 queries, or `column_mass` that the worker
// summed itself, which then follows the paper to the letter but for the order of pooling and sum.
// Weaker than the paper: with `query_window` a group is reduced by max instead of summed, and
// before the pooling; scores pass through a byte of an eighth of an octave.
#include "daemon/policy/policies.h"
#include "daemon/policy/token_policy.h"

namespace dyna {
namespace {

class FastKv final : public HeadPolicy {
 public:
  using HeadPolicy::HeadPolicy;
  std::string_view name() const override { return "fastkv"; }
  ScoreSource scores() const override { return ScoreSource::kReports; }

 protected:
  void SelectHead(const HeadTokens& head, std::span<uint64_t> keep) const override {
    KeepBest(head, Pool(head.score, Pooling::kMax, Kernel(7)), Window(8), Budget(head.chain), keep);
  }
};

}  // namespace

Result<std::unique_ptr<Policy>> MakeFastKvPolicy(const PolicyOptions& options) {
  return MakeTokenPolicy<FastKv>(options);
}

}  // namespace dyna
