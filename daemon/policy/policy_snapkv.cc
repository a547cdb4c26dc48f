// snapkv: SnapKV (arXiv 2404.14469). Once, at the end of a prompt: attention of the last W queries,
// summed over them, average-pooled, top C - W of each head and all of the last W tokens.
//
// Statistics: a `query_window` report of the last W queries, or `column_mass` that the worker
// summed itself. W = 64 and a kernel of 5, the class defaults of its code; its LongBench runs used
// W = 32 and max-pooling over 7 (policy.window, policy.pool set the numbers). Weaker than the
// paper: with `query_window` a group's query heads are reduced by max before the pooling (the paper
// selects for each query head, which loses the sharing of a group); scores pass through a byte of
// an eighth of an octave; W counts from the last whole block, the open tail being the worker's.
#include "daemon/policy/policies.h"
#include "daemon/policy/token_policy.h"

namespace dyna {
namespace {

class SnapKv final : public HeadPolicy {
 public:
  using HeadPolicy::HeadPolicy;
  std::string_view name() const override { return "snapkv"; }
  ScoreSource scores() const override { return ScoreSource::kReports; }

 protected:
  void SelectHead(const HeadTokens& head, std::span<uint64_t> keep) const override {
    KeepBest(head, Pool(head.score, Pooling::kMean, Kernel(5)), Window(64), Budget(head.chain),
             keep);
  }
};

}  // namespace

Result<std::unique_ptr<Policy>> MakeSnapKvPolicy(const PolicyOptions& options) {
  return MakeTokenPolicy<SnapKv>(options);
}

}  // namespace dyna
