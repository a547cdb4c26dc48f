// Sums that a basis is made of (policy 2).
#include <bit>
#include <cmath>
#include <string>

#include "kernels/cpu/jobs.h"
#include "kernels/moments_plan.h"

namespace dyna::cpu {
namespace {

Status Run(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, MomentsJob& job) {
  DYNA_RETURN_IF_ERROR(CheckMoments(job));
  const int d = job.head_dim;
  const size_t heads = job.kv_heads, n = static_cast<size_t>(d);
  const RopeBlock* turn = rope.Get(job.rope, uint64_t{job.block_index} * kBlockTokens);
  const uint64_t counted = ~job.pins;
  float* x = scratch.x;
  for (size_t i = 0; i < heads; ++i) {
    const int bad = ops.load(job.source.k + static_cast<int64_t>(i) * job.source.k_head_stride,
                             job.source.k_token_stride, job.source.dtype, d, x);
    if (bad >= 0)
      return Invalid("head " + std::to_string(i) + ", token " + std::to_string(bad) +
                     ": K is not finite");
    if (turn != nullptr) ops.rotate(x, *turn, true);
    const int tokens = std::popcount(counted);
    ops.mean(x, d, counted, scratch.mean);
    ops.shift(x, d, scratch.mean, -1.0f);
    for (uint64_t left = job.pins; left != 0; left &= left - 1)
      for (int c = 0; c < d; ++c) x[c * kLanes + std::countr_zero(left)] = 0;
    ops.rank64(x, d, &job.scatter[i * UpperTriangle(d)]);
    for (size_t c = 0; c < n; ++c)
      job.sum[i * n + c] += scratch.mean[c] * static_cast<float>(tokens);
    job.count[i] += static_cast<uint32_t>(tokens);
  }
  return {};
}

Status Run(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, QueryMomentsJob& job) {
  DYNA_RETURN_IF_ERROR(CheckMoments(job));
  const int d = job.head_dim, window = WindowOf(job);
  const size_t row = size_t{job.q_heads} * job.head_dim;
  for (const float q : job.queries)
    if (!std::isfinite(q)) return Invalid("queries: not finite");
  const RopeBlock* turn = rope.Get(job.rope, job.first_query_position);
  const int group = job.q_heads / job.kv_heads;
  float* x = scratch.x;
  for (int q = 0; q < job.q_heads; ++q) {
    for (int c = 0; c < d; ++c)
      for (int w = 0; w < kLanes; ++w)
        x[c * kLanes + w] =
            w < window ? job.queries[static_cast<size_t>(w) * row + static_cast<size_t>(q * d + c)]
                       : 0.0f;
    if (turn != nullptr) ops.rotate(x, *turn, true);
    ops.rank64(x, d, &job.second[static_cast<size_t>(q / group) * UpperTriangle(d)]);
    job.count[static_cast<size_t>(q / group)] += static_cast<uint32_t>(window);
  }
  return {};
}

}  // namespace

void Moments(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, MomentsJob& job) {
  job.status = Run(ops, scratch, rope, job);
}

void QueryMoments(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, QueryMomentsJob& job) {
  job.status = Run(ops, scratch, rope, job);
}

}  // namespace dyna::cpu
