// Second moments of blocks and of windows: rows to the device, where they are not there already,
// sums back, and there they are added to what the jobs hold. Nothing of a refused job is added.
#include <bit>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "kernels/cuda/host_rows.h"
#include "kernels/cuda/lane.h"
#include "kernels/moments_plan.h"

namespace dyna::cuda {
namespace {

void Add(std::span<const float> from, float* to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] += from[i];
}

size_t RowBytes(const MomentsJob& job) {
  return static_cast<size_t>(job.head_dim * DTypeBytes(job.source.dtype));
}
std::byte* OnDevice(const MomentsJob& job) {
  return job.source.on_device ? const_cast<std::byte*>(job.source.k) : nullptr;  // only read
}
size_t StagedBytes(const MomentsJob& job) {
  if (job.source.on_device) return 0;
  return static_cast<size_t>(job.kv_heads * kBlockTokens) * RowBytes(job);
}
void Stage(const MomentsJob& job, std::byte* host) {
  if (job.source.on_device) return;
  for (int h = 0; h < job.kv_heads; ++h, host += kBlockTokens * RowBytes(job))
    GatherTile(job.source.k + h * job.source.k_head_stride, job.source.k_token_stride,
               RowBytes(job), host);
}
void Describe(const MomentsJob& job, DeviceMoments* out) {
  const auto row = static_cast<int64_t>(RowBytes(job));
  out->rows.token_stride = job.source.on_device ? job.source.k_token_stride : row;
  out->rows.head_stride = job.source.on_device ? job.source.k_head_stride : kBlockTokens * row;
  out->dtype = job.source.dtype;
  out->first_position = uint64_t{job.block_index} * kBlockTokens;
  out->counted = ~job.pins;
  out->heads = job.kv_heads;
  out->sum_of = job.scatter.data();
}
Status Refusal(const MomentsJob&, const DeviceMoments& of) {
  return Invalid("head " + std::to_string(of.bad_head) + ", token " + std::to_string(of.bad_token) +
                 ": K is not finite");
}
void AddSum(const DeviceMomentsBatch::Sum& sum, MomentsJob* job) {
  const auto head = static_cast<size_t>(sum.head);
  Add(sum.x, &job->sum[head * sum.x.size()]);
  Add(sum.triangle, &job->scatter[head * sum.triangle.size()]);
}
void AddCount(MomentsJob* job) {
  for (uint32_t& n : job->count) n += static_cast<uint32_t>(std::popcount(~job->pins));
}

std::byte* OnDevice(const QueryMomentsJob&) { return nullptr; }
size_t StagedBytes(const QueryMomentsJob& job) { return job.queries.size_bytes(); }
void Stage(const QueryMomentsJob& job, std::byte* host) {
  std::memcpy(host, job.queries.data(), job.queries.size_bytes());
}
void Describe(const QueryMomentsJob& job, DeviceMoments* out) {
  out->rows.head_stride = 4 * int64_t{job.head_dim};
  out->rows.token_stride = job.q_heads * out->rows.head_stride;
  out->dtype = DType::kF32;
  out->first_position = job.first_query_position;
  out->present = out->counted = ~uint64_t{0} >> (kBlockTokens - WindowOf(job));
  out->heads = job.kv_heads;
  out->group = job.q_heads / job.kv_heads;
  out->sum_of = job.second.data();
}
Status Refusal(const QueryMomentsJob&, const DeviceMoments&) {
  return Invalid("queries: not finite");
}
void AddSum(const DeviceMomentsBatch::Sum& sum, QueryMomentsJob* job) {
  Add(sum.triangle, &job->second[static_cast<size_t>(sum.head) * sum.triangle.size()]);
}
void AddCount(QueryMomentsJob* job) {
  for (uint32_t& n : job->count)
    n += static_cast<uint32_t>(WindowOf(*job) * (job->q_heads / job->kv_heads));
}

}  // namespace

// Jobs of one head_dim, checked.
template <typename Job>
Status Lane::MomentsOf(std::vector<Job*> jobs, bool centred) {
  size_t bytes = 0;
  for (const Job* job : jobs) bytes += Staging::RoundUp(StagedBytes(*job));
  DYNA_RETURN_IF_ERROR(in_.Begin(bytes));
  std::vector<DeviceMoments> batch(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    const size_t at = in_.Take(StagedBytes(*jobs[i]));
    Stage(*jobs[i], in_.host(at));
    Describe(*jobs[i], &batch[i]);
    std::byte* there = OnDevice(*jobs[i]);
    batch[i].rows.base = there != nullptr ? there : in_.device(at);
    DYNA_ASSIGN_OR_RETURN(batch[i].rope, cache_.Get(jobs[i]->rope));
  }
  DYNA_RETURN_IF_ERROR(in_.In(stream_.get()));
  // Once more without those that are refused, as they may be in others' sums.
  for (bool again = true; again && !jobs.empty();) {
    moments_.Plan(batch, jobs[0]->head_dim, centred);
    DYNA_RETURN_IF_ERROR(moments_.Upload(stream_.get()));
    DYNA_RETURN_IF_ERROR(moments_.Launch(stream_.get()));
    DYNA_RETURN_IF_ERROR(moments_.Collect(stream_.get()));
    size_t kept = 0;
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (batch[i].refused) {
        jobs[i]->status = Refusal(*jobs[i], batch[i]);
        continue;
      }
      jobs[kept] = jobs[i];
      batch[kept++] = batch[i];
    }
    again = kept < jobs.size();
    jobs.resize(kept);
    batch.resize(kept);
  }
  if (jobs.empty()) return {};
  for (size_t i = 0; i < moments_.sums(); ++i) {
    const auto sum = moments_.sum(i);
    AddSum(sum, jobs[sum.job]);
  }
  for (Job* job : jobs) {
    AddCount(job);
    job->status = {};
  }
  return {};
}

template <typename Job>
Status Lane::MomentsByDim(std::span<Job*> jobs, bool centred) {
  std::map<int, std::vector<Job*>> of_dim;
  for (Job* job : jobs) of_dim[job->head_dim].push_back(job);
  for (auto& [d, some] : of_dim) {
    const Status s = MomentsOf(some, centred);
    if (s.ok()) continue;
    // Not the call's: what other head sizes found is added already, and must not be again.
    for (Job* job : some) job->status = s;
  }
  return {};
}

Status Lane::Moments(std::span<MomentsJob*> jobs) { return MomentsByDim(jobs, true); }
Status Lane::QueryMoments(std::span<QueryMomentsJob*> jobs) { return MomentsByDim(jobs, false); }

}  // namespace dyna::cuda
