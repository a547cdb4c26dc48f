#include "kernels/moments_plan.h"

namespace dyna {
namespace {

Status CheckShape(int kv_heads, int head_dim) {
  if (kv_heads > 0 && head_dim >= 16 && head_dim <= kMaxHeadDim && head_dim % 16 == 0) return {};
  return Invalid("moments: kv_heads or head_dim");
}

}  // namespace

Status CheckMoments(const MomentsJob& job) {
  DYNA_RETURN_IF_ERROR(CheckShape(job.kv_heads, job.head_dim));
  if (DTypeBytes(job.source.dtype) == 1) return Unsupported("moments: fp8 contexts");
  if (job.source.k == nullptr) return Invalid("source: no memory");
  const size_t heads = job.kv_heads;
  if (job.count.size() != heads || job.sum.size() != heads * job.head_dim ||
      job.scatter.size() != heads * UpperTriangle(job.head_dim))
    return Invalid("moments: sizes of count, sum or scatter");
  return {};
}

Status CheckMoments(const QueryMomentsJob& job) {
  DYNA_RETURN_IF_ERROR(CheckShape(job.kv_heads, job.head_dim));
  if (job.q_heads == 0 || job.q_heads % job.kv_heads != 0)
    return Invalid("q_heads: not a multiple of kv_heads");
  if (job.queries.empty() || job.queries.size() % (size_t{job.q_heads} * job.head_dim) != 0)
    return Invalid("queries: not [W][q_heads][head_dim]");
  if (WindowOf(job) > kBlockTokens) return TooLarge("queries: more than 64 positions");
  if (job.count.size() != job.kv_heads ||
      job.second.size() != job.kv_heads * UpperTriangle(job.head_dim))
    return Invalid("moments: sizes of count or second");
  return {};
}

int WindowOf(const QueryMomentsJob& job) {
  return static_cast<int>(job.queries.size() / (size_t{job.q_heads} * job.head_dim));
}

}  // namespace dyna
