#include "kernels/score_plan.h"

#include <cmath>
#include <string>

namespace dyna {

Result<ScorePlan> ScorePlan::Of(const ScoreJob& job) {
  ScorePlan plan;
  if (job.chain.empty()) return Invalid("chain: empty");
  for (size_t i = 0; i < job.chain.size(); ++i) {
    DYNA_ASSIGN_OR_RETURN(SegmentView view, ParseSegment(job.chain[i].segment, job.chain[i].basis));
    const SegmentId& id = view.id();
    if (id.block_index != i)
      return Invalid("chain: block " + std::to_string(id.block_index) + " where " +
                     std::to_string(i) + " belongs");
    if (!plan.views.empty()) {
      const SegmentId& first = plan.views[0].id();
      if (id.layer != first.layer || id.head0 != first.head0 || id.kv_heads != first.kv_heads ||
          id.head_dim != first.head_dim)
        return Invalid("chain: blocks of several layers or head ranges");
    }
    if (DTypeBytes(id.dtype) == 1) return Unsupported("chain: fp8 contexts are not scored");
    plan.views.push_back(view);
  }
  plan.d = plan.views[0].id().head_dim;
  plan.kv_heads = plan.views[0].id().kv_heads;
  const size_t row = static_cast<size_t>(job.q_heads) * static_cast<size_t>(plan.d);
  if (job.q_heads == 0 || job.q_heads % plan.kv_heads != 0)
    return Invalid("q_heads: not a multiple of kv_heads");
  if (job.queries.empty() || job.queries.size() % row != 0)
    return Invalid("queries: not [W][q_heads][head_dim]");
  const size_t queries = job.queries.size() / row;
  if (queries > kBlockTokens) return TooLarge("queries: more than 64 positions");
  if (!job.lse.empty() && job.lse.size() != queries * job.q_heads)
    return Invalid("lse: not [W][q_heads]");
  if (job.relative.size() != static_cast<size_t>(plan.kv_heads) * plan.views.size() * kBlockTokens)
    return Invalid("relative: not [kv_heads][chain * 64]");
  for (const float q : job.queries)
    if (!std::isfinite(q)) return Invalid("queries: not finite");
  for (const float l : job.lse)
    if (!std::isfinite(l)) return Invalid("lse: not finite");
  plan.queries = static_cast<int>(queries);
  plan.group = job.q_heads / plan.kv_heads;
  plan.first_position = job.first_query_position;
  plan.window = job.window;
  return plan;
}

}  // namespace dyna
