#include "daemon/store/sensitivity_job.h"

#include <vector>

namespace dyna {

Result<WindowSensitivity> MeasureChain(Backend& backend, const ScoreJob& score, int head_begin,
                                       int heads, int head_dim) {
  const auto d = static_cast<size_t>(head_dim);
  const size_t tokens = score.chain.size() * kBlockTokens;
  std::vector<float> k(static_cast<size_t>(heads) * tokens * d), v(k.size());
  std::vector<DecodeJob> jobs(score.chain.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    DecodeJob& job = jobs[i];
    job.segment = score.chain[i].segment;
    job.basis = score.chain[i].basis;
    job.rope = score.chain[i].rope;
    job.head_begin = static_cast<uint16_t>(head_begin);
    job.head_end = static_cast<uint16_t>(head_begin + heads);
    const size_t at = i * kBlockTokens * d;
    job.target.k = reinterpret_cast<std::byte*>(k.data() + at);
    job.target.v = reinterpret_cast<std::byte*>(v.data() + at);
    job.target.k_token_stride = job.target.v_token_stride = static_cast<int64_t>(d * sizeof(float));
    job.target.k_head_stride = job.target.v_head_stride =
        static_cast<int64_t>(tokens * d * sizeof(float));
    job.target.dtype = DType::kF32;
  }
  backend.Decode(jobs);
  for (const DecodeJob& job : jobs) DYNA_RETURN_IF_ERROR(job.status);
  QueryWindow window;
  window.queries = score.queries;
  window.k = k;
  window.v = v;
  window.q_heads = score.q_heads;
  window.kv_heads = heads;
  window.head_dim = head_dim;
  window.tokens = static_cast<uint32_t>(tokens);
  window.first_position = score.first_query_position;
  window.sliding = score.window;
  window.scale = score.scale;
  return MeasureWindow(window);
}

}  // namespace dyna
