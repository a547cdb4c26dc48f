// expected_attention: Expected Attention (arXiv 2510.00636). From mean and covariance of the
// queries before RoPE, turned by the mean rotation of the next 512 positions:
//   z_j = k_j . mu / sqrt d + k_j' Sigma k_j / 2d;   score_j = (softmax_j z + eps) |v_j|
// and the top C of each kv head stay; the first 4 tokens always do.
//
// Statistics: the scores themselves, made by the worker and sent as `column_mass` (any number >= 0
// a token and kv head; 0 for the first 4). The worker has mu and Sigma for each query head; what
// this side learns of queries is their second moment without a mean, over a group, which is not
// enough for z. Their order is all that matters here, and it is kept to an eighth of an octave.
#include "daemon/policy/policies.h"
#include "daemon/policy/token_policy.h"

namespace dyna {
namespace {

class ExpectedAttention final : public HeadPolicy {
 public:
  using HeadPolicy::HeadPolicy;
  std::string_view name() const override { return "expected_attention"; }
  ScoreSource scores() const override { return ScoreSource::kReports; }

 protected:
  void SelectHead(const HeadTokens& head, std::span<uint64_t> keep) const override {
    KeepBest(head, head.score, Window(0), Budget(head.chain), keep);
  }
};

}  // namespace

Result<std::unique_ptr<Policy>> MakeExpectedAttentionPolicy(const PolicyOptions& options) {
  return MakeTokenPolicy<ExpectedAttention>(options);
}

}  // namespace dyna
