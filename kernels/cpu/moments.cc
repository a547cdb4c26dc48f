// Sums that a basis is made of (policy 2).
#include <bit>
#include <cmath>
#include <string>

#include "kernels/cpu/jobs.h"

namespace dyna::cpu {
namespace {

size_t Triangle(int d) { return static_cast<size_t>(d) * static_cast<size_t>(d + 1) / 2; }

bool IsShape(int kv_heads, int head_dim) {
  return kv_heads > 0 && head_dim >= 16 && head_dim <= kMaxHeadDim && head_dim % 16 == 0;
}

Status Run(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, MomentsJob& job) {
  const int d = job.head_dim;
  const size_t heads = job.kv_heads, n = static_cast<size_t>(d);
  if (!IsShape(job.kv_heads, d)) return Invalid("moments: kv_heads or head_dim");
  if (DTypeBytes(job.source.dtype) == 1) return Unsupported("moments: fp8 contexts");
  if (job.source.k == nullptr) return Invalid("source: no memory");
  if (job.count.size() != heads || job.sum.size() != heads * n ||
      job.scatter.size() != heads * Triangle(d))
    return Invalid("moments: sizes of count, sum or scatter");
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
    ops.rank64(x, d, &job.scatter[i * Triangle(d)]);
    for (size_t c = 0; c < n; ++c)
      job.sum[i * n + c] += scratch.mean[c] * static_cast<float>(tokens);
    job.count[i] += static_cast<uint32_t>(tokens);
  }
  return {};
}

Status Run(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, QueryMomentsJob& job) {
  const int d = job.head_dim;
  const size_t heads = job.kv_heads, n = static_cast<size_t>(d);
  if (!IsShape(job.kv_heads, d)) return Invalid("moments: kv_heads or head_dim");
  if (job.q_heads == 0 || job.q_heads % job.kv_heads != 0)
    return Invalid("q_heads: not a multiple of kv_heads");
  const size_t row = job.q_heads * n;
  if (job.queries.empty() || job.queries.size() % row != 0)
    return Invalid("queries: not [W][q_heads][head_dim]");
  const int window = static_cast<int>(job.queries.size() / row);
  if (window > kBlockTokens) return TooLarge("queries: more than 64 positions");
  if (job.count.size() != heads || job.second.size() != heads * Triangle(d))
    return Invalid("moments: sizes of count or second");
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
    ops.rank64(x, d, &job.second[static_cast<size_t>(q / group) * Triangle(d)]);
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
