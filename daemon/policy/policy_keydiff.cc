// keydiff: KeyDiff (arXiv 2504.15364). Needs keys alone: the anchor is the mean of the directions
// of a head's keys, the score of a token -cos(k, anchor), and the most atypical stay.
//
// Statistics: none from the worker; K is read back from the chain's tiles when it is decided. The
// whole chain is scored at once; the paper's own runs did it in blocks, as memory asked for. Tokens
// that were dropped before count in the anchor as the mean they are served as.
#include <algorithm>
#include <cmath>

#include "daemon/policy/policies.h"
#include "daemon/policy/token_policy.h"

namespace dyna {
namespace {

class KeyDiff final : public HeadPolicy {
 public:
  using HeadPolicy::HeadPolicy;
  std::string_view name() const override { return "keydiff"; }
  ScoreSource scores() const override { return ScoreSource::kKeys; }

  void ScoreKeys(std::span<const float> k, int head_dim, std::span<float> score) const override {
    const auto d = static_cast<size_t>(head_dim);
    std::vector<double> anchor(d), length(score.size());
    for (size_t t = 0; t < score.size(); ++t) {
      const float* row = k.data() + t * d;
      for (size_t c = 0; c < d; ++c) length[t] += double{row[c]} * double{row[c]};
      length[t] = std::sqrt(length[t]);
      if (length[t] == 0) continue;
      for (size_t c = 0; c < d; ++c) anchor[c] += double{row[c]} / length[t];
    }
    double norm = 0;  // the mean's length or the sum's: the cosine is the same
    for (double a : anchor) norm += a * a;
    norm = std::sqrt(norm);
    for (size_t t = 0; t < score.size(); ++t) {
      double dot = 0;
      for (size_t c = 0; c < d; ++c) dot += double{k[t * d + c]} * anchor[c];
      const double scale = length[t] * norm;
      score[t] = scale > 0 ? static_cast<float>(-dot / scale) : 0.0f;
    }
  }

 protected:
  void SelectHead(const HeadTokens& head, std::span<uint64_t> keep) const override {
    KeepBest(head, head.score, Window(0), Budget(head.chain), keep);
  }
};

}  // namespace

Result<std::unique_ptr<Policy>> MakeKeyDiffPolicy(const PolicyOptions& options) {
  return MakeTokenPolicy<KeyDiff>(options);
}

}  // namespace dyna
