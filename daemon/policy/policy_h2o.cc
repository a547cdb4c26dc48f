// h2o: H2O (arXiv 2306.14048). Attention accumulated over all queries so far; half of the budget
// are the tokens with most of it (heavy hitters), half the most recent ones.
//
// Statistics: reports, accumulated by the history without decay (its half-life is set out of
// reach). A worker that has the whole attention matrix sends its column sums as `column_mass` and
// gets the paper's sum; with `query_window` it is the sum over the windows that were sent.
// Weaker than the paper: a group is reduced by max; reports of several calls are averaged by the
// tokens between them, not added, so that the paper's bias to old tokens is only what the worker's
// own sum has; scores pass through a byte of an eighth of an octave. policy.window sets the recent
// half.
#include "daemon/policy/policies.h"
#include "daemon/policy/token_policy.h"

namespace dyna {
namespace {

constexpr double kNoDecay = 1 << 30;  // tokens

class H2o final : public HeadPolicy {
 public:
  using HeadPolicy::HeadPolicy;
  std::string_view name() const override { return "h2o"; }
  ScoreSource scores() const override { return ScoreSource::kReports; }
  void Imply(PolicyOptions* options) const override {
    Policy::Imply(options);
    options->history.half_life_tokens = kNoDecay;
  }

 protected:
  void SelectHead(const HeadTokens& head, std::span<uint64_t> keep) const override {
    const uint32_t budget = Budget(head.chain);
    KeepBest(head, head.score, Window(static_cast<int>(budget / 2)), budget, keep);
  }
};

}  // namespace

Result<std::unique_ptr<Policy>> MakeH2oPolicy(const PolicyOptions& options) {
  return MakeTokenPolicy<H2o>(options);
}

}  // namespace dyna
