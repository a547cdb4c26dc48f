// What a batch does with the device once it is planned: one upload, the launches, the results.
#include "kernels/cuda/device_batch.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <tuple>

namespace dyna::cuda {
namespace {

constexpr size_t Up(size_t n) { return (n + 255) / 256 * 256; }

template <typename T>
size_t Bytes(const std::vector<T>& v) {
  return v.size() * sizeof(T);
}

// The order of TileCounts.
int ClassOf(TileOp op) { return op == TileOp::kCodedK ? 0 : op == TileOp::kCodedV ? 1 : 2; }

}  // namespace

void DeviceBatch::Clear() {
  encodes_ = {};
  transcodes_ = {};
  quantises_ = {};
  first_results_.clear();
  for (Groups* groups : {&before_, &tiles_})
    for (auto& [d, group] : *groups) {
      group.tiles.clear();  // keeps its memory: the next plan is as large
      group.needs = {};
      group.count = {};
    }
  segments_.clear();
  heads_.clear();
  bases_.clear();
  own_runs_.clear();
  base_of_.clear();
  result_count_ = 0;
  workspace_bytes_ = 0;
}

void DeviceBatch::Add(Groups* groups, int head_dim, Planned planned) {
  Group& group = (*groups)[head_dim];
  const TileJob& job = planned.job;
  if (job.op == TileOp::kFp8 || job.op == TileOp::kMean) group.needs.staged = true;
  if (job.rope != RopeKind::kNone && planned.base >= 0) {
    const bool in_registers = job.rope == RopeKind::kInterleaved
                                  ? job.pairs % 2 == 0
                                  : head_dim % 32 == 0 && 2 * job.pairs == head_dim;
    if (!in_registers) group.needs.exchange = true;
  }
  int& most = job.is_v != 0 ? group.needs.v_bytes : group.needs.k_bytes;
  if (job.op == TileOp::kCodedK || job.op == TileOp::kCodedV)
    most = std::max(most, static_cast<int>(job.tile.bytes));
  ++(job.op == TileOp::kCodedK   ? group.count.k
     : job.op == TileOp::kCodedV ? group.count.v
                                 : group.count.other);
  group.tiles.push_back(std::move(planned));
}

// Tiles of a class together, and of those the ones of one basis cell. Places are sorted, not tiles:
// those are large.
void DeviceBatch::Sort(Group* group) {
  group->sorted.clear();
  for (const Planned& planned : group->tiles)
    group->sorted.push_back({planned.order, static_cast<uint32_t>(group->sorted.size()),
                             static_cast<uint32_t>(ClassOf(planned.job.op))});
  std::sort(group->sorted.begin(), group->sorted.end(), [](const Sorted& a, const Sorted& b) {
    return std::tie(a.kernel, a.order, a.index) < std::tie(b.kernel, b.order, b.index);
  });
}

Status DeviceBatch::Upload(CUstream_st* stream) {
  size_t size = 0;
  for (Groups* groups : {&before_, &tiles_})
    for (auto& [d, group] : *groups) {
      Sort(&group);
      group.at = size;
      size += Up(group.tiles.size() * sizeof(TileJob));
    }
  segments_at_ = size;
  const size_t heads_at = segments_at_ + Up(Bytes(segments_));
  const size_t bases_at = heads_at + Up(heads_.size());
  const size_t runs_at = bases_at + Up(Bytes(bases_));
  size = runs_at + Up(Bytes(own_runs_));
  results_at_ = size;
  DYNA_RETURN_IF_ERROR(image_.Reserve(size));
  DYNA_RETURN_IF_ERROR(results_.Reserve(result_count_ * sizeof(TileResult)));
  DYNA_RETURN_IF_ERROR(device_.Reserve(size + Up(result_count_ * sizeof(TileResult))));
  DYNA_RETURN_IF_ERROR(workspace_.Reserve(workspace_bytes_));
  std::byte* host = image_.data();
  std::byte* device = device_.data();
  for (Groups* groups : {&before_, &tiles_})
    for (auto& [d, group] : *groups) {
      auto* out = reinterpret_cast<TileJob*>(host + group.at);
      for (const Sorted& sorted : group.sorted) {
        const Planned& planned = group.tiles[sorted.index];
        TileJob job = planned.job;
        if (planned.base >= 0)
          job.base = reinterpret_cast<const Turn*>(device + bases_at) + planned.base;
        if (planned.workspace >= 0) job.rows.base = workspace_.data() + planned.workspace;
        if (planned.runs >= 0)
          job.tile.runs = reinterpret_cast<const RunPlace*>(device + runs_at) + planned.runs;
        *out++ = job;
      }
    }
  for (SegmentJob& segment : segments_)
    segment.head = device + heads_at + reinterpret_cast<size_t>(segment.head);
  std::memcpy(host + segments_at_, segments_.data(), Bytes(segments_));
  std::memcpy(host + heads_at, heads_.data(), heads_.size());
  std::memcpy(host + bases_at, bases_.data(), Bytes(bases_));
  std::memcpy(host + runs_at, own_runs_.data(), Bytes(own_runs_));
  return CopyToDevice(device, host, size, stream);
}

Status DeviceBatch::LaunchGroups(const Groups& groups, bool encode, CUstream_st* stream) const {
  for (const auto& [d, group] : groups) {
    const auto* jobs = reinterpret_cast<const TileJob*>(device_.data() + group.at);
    auto* results = reinterpret_cast<TileResult*>(device_.data() + results_at_);
    const bool ok = encode ? LaunchEncode(jobs, group.count, d, group.needs, results, stream)
                           : LaunchDecode(jobs, group.count, d, group.needs, stream);
    if (!ok) return LastError(encode ? "launch of encode" : "launch of decode");
  }
  return {};
}

Status DeviceBatch::Launch(CUstream_st* stream) {
  DYNA_RETURN_IF_ERROR(LaunchGroups(before_, false, stream));
  DYNA_RETURN_IF_ERROR(LaunchGroups(tiles_, encoding_, stream));
  const auto* jobs = reinterpret_cast<const SegmentJob*>(device_.data() + segments_at_);
  const auto* results = reinterpret_cast<const TileResult*>(device_.data() + results_at_);
  if (!LaunchFinish(jobs, static_cast<int>(segments_.size()), results, stream))
    return LastError("launch of finish");
  return {};
}

// Of 2 kv_heads results: the first error, as the CPU says it.
Status DeviceBatch::TileStatus(const SegmentId& id, uint32_t first, uint64_t* above_top) const {
  const auto* results = reinterpret_cast<const TileResult*>(results_.data()) + first;
  *above_top = 0;
  for (int i = 0; i < 2 * id.kv_heads; ++i) {
    const TileResult& r = results[i];
    if (r.flags == 0) continue;
    const std::string where =
        "layer " + std::to_string(id.layer) + ", head " + std::to_string(id.head0 + i / 2);
    const std::string side = i % 2 != 0 ? "V" : "K";
    if ((r.flags & kBadValue) != 0)
      return Invalid(where + ", token " + std::to_string(64 - r.bad_token) + ": " + side +
                     " is not finite, or outside the range of f16");
    if ((r.flags & kAboveTop) == 0)
      return Invalid(where + ": a scale of " + side + " is outside the range of f16");
    if (i / 2 < 64) *above_top |= uint64_t{1} << (i / 2);
  }
  if (*above_top != 0) return TooLarge("a scale is above the top of LOG8");
  return {};
}

Status DeviceBatch::Collect(CUstream_st* stream) {
  DYNA_RETURN_IF_ERROR(CopyToHost(results_.data(), device_.data() + results_at_,
                                  result_count_ * sizeof(TileResult), stream));
  DYNA_RETURN_IF_ERROR(WaitFor(stream));
  const auto* results = reinterpret_cast<const TileResult*>(results_.data());
  const auto finish = [&](auto& job, uint32_t first, float nmse_before) {
    if (!job.status.ok()) return;
    job.status = TileStatus(job.place.id, first, &job.above_top);
    float lost = 0;
    for (uint32_t i = 0; i < 2u * job.place.id.kv_heads; ++i)
      if (results[first + i].energy > 0)
        lost += results[first + i].error / results[first + i].energy;
    job.place.nmse = nmse_before + lost / static_cast<float>(2 * job.place.id.kv_heads);
  };
  for (size_t j = 0; j < encodes_.size(); ++j) {
    DeviceEncode& job = encodes_[j];
    finish(job, first_results_[j], 0);
    for (size_t i = 0; i < job.measure.size() && job.status.ok(); ++i) {
      const TileResult& k = results[first_results_[j] + 2 * i];
      const TileResult& v = results[first_results_[j] + 2 * i + 1];
      TileMeasure& m = job.measure[i];
      const TilePlan& plan = job.plan[i];
      m = {k.energy, k.error, v.energy, v.error};
      if (kind::IsLevel(plan.k_kind))
        m.k_energy = job.measure_x ? std::max(k.x_energy, 0.0f) : 0.0f;
      if (kind::IsLevel(plan.k_kind))
        m.k_error = k.energy > 0 ? m.k_energy * k.error / k.energy : 0;
      if (plan.k_kind == kind::kNone) m.k_energy = m.k_error = 0;  // as the CPU: nothing was coded
      if (plan.v_kind == kind::kNone) m.v_energy = m.v_error = 0;
    }
  }
  for (size_t j = 0; j < transcodes_.size(); ++j) {
    DeviceTranscode& job = transcodes_[j];
    finish(job, first_results_[j], job.from->nmse);
    for (size_t i = 0; i < job.measure.size() && job.status.ok(); ++i) {
      const TileResult& k = results[first_results_[j] + 2 * i];
      const TileResult& v = results[first_results_[j] + 2 * i + 1];
      job.measure[i] = {k.energy, k.error, v.energy, v.error};
    }
  }
  for (size_t j = 0; j < quantises_.size(); ++j) {
    quantises_[j].flags = results[first_results_[j]].flags;
    quantises_[j].v_exp = static_cast<int8_t>(results[first_results_[j]].v_exp);
  }
  return {};
}

}  // namespace dyna::cuda
