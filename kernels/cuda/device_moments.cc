#include "kernels/cuda/device_moments.h"

#include <algorithm>
#include <cstring>

namespace dyna::cuda {
namespace {

constexpr size_t Up(size_t n) { return (n + 255) / 256 * 256; }

}  // namespace

int DeviceMomentsBatch::BaseOf(const DeviceRope* rope, uint64_t first) {
  const auto [it, is_new] = base_of_.try_emplace({rope, first}, static_cast<int>(bases_.size()));
  if (!is_new) return it->second;
  RopeTable::Angle at[kMaxHeadDim / 2];
  const auto pairs = std::span(at).first(static_cast<size_t>(rope->pairs()));
  rope->table().FirstAngles(first, pairs);
  for (const RopeTable::Angle& a : pairs) bases_.push_back({a.cos, a.sin});
  return it->second;
}

void DeviceMomentsBatch::Plan(std::span<DeviceMoments> jobs, int head_dim, bool centred) {
  jobs_ = jobs;
  d_ = head_dim;
  centred_ = centred;
  tiles_.clear();
  sums_.clear();
  open_.clear();
  base_of_.clear();
  bases_.clear();
  for (size_t j = 0; j < jobs.size(); ++j) {
    DeviceMoments& job = jobs[j];
    job.refused = false;
    Planned planned;
    planned.job = static_cast<uint32_t>(j);
    planned.tile.present = job.present;
    planned.tile.counted = job.counted & job.present;
    planned.tile.dtype = job.dtype;
    if (job.rope != nullptr && job.rope->table().kind() != RopeKind::kNone &&
        job.rope->pairs() > 0) {
      planned.tile.table = job.rope->turns();
      planned.tile.pairs = static_cast<uint16_t>(job.rope->pairs());
      planned.tile.rope = job.rope->table().kind();
      planned.base = BaseOf(job.rope, job.first_position);
    }
    const void* key = job.sum_of != nullptr ? job.sum_of : &job;
    for (int head = 0; head < job.heads; ++head) {
      planned.head = static_cast<uint32_t>(head);
      auto [at, is_new] = open_.try_emplace({key, head}, 0);
      if (is_new || sums_[at->second].tiles.count >= kTilesOfSum) {
        at->second = static_cast<uint32_t>(sums_.size());
        sums_.push_back({planned.job, planned.head, {}});
      }
      planned.sum = at->second;
      for (int g = 0; g < job.group; ++g) {
        planned.tile.rows = RowsOf(job.rows, head * job.group + g);
        ++sums_[planned.sum].tiles.count;
        tiles_.push_back(planned);
      }
    }
  }
  // Tiles of a sum beside each other, in the order of jobs.
  uint32_t first = 0;
  for (PlannedSum& sum : sums_) {
    sum.tiles.first = first;
    first += sum.tiles.count;
    sum.tiles.count = 0;
  }
  order_.resize(tiles_.size());
  for (size_t i = 0; i < tiles_.size(); ++i) {
    MomentSum& of = sums_[tiles_[i].sum].tiles;
    order_[of.first + of.count++] = static_cast<uint32_t>(i);
  }
}

Status DeviceMomentsBatch::Upload(CUstream_st* stream) {
  const size_t sums_at = Up(tiles_.size() * sizeof(MomentTile));
  const size_t bases_at = sums_at + Up(sums_.size() * sizeof(MomentSum));
  const size_t size = bases_at + Up(bases_.size() * sizeof(Turn));
  out_at_ = size;
  DYNA_RETURN_IF_ERROR(image_.Reserve(size));
  DYNA_RETURN_IF_ERROR(device_.Reserve(size + Up(tiles_.size() * sizeof(uint32_t)) +
                                       sums_.size() * Stride(d_) * sizeof(float)));
  auto* tiles = reinterpret_cast<MomentTile*>(image_.data());
  for (const uint32_t index : order_) {
    const Planned& planned = tiles_[index];
    MomentTile tile = planned.tile;
    if (planned.base >= 0)
      tile.base = reinterpret_cast<const Turn*>(device_.data() + bases_at) + planned.base;
    *tiles++ = tile;
  }
  auto* sums = reinterpret_cast<MomentSum*>(image_.data() + sums_at);
  for (const PlannedSum& sum : sums_) *sums++ = sum.tiles;
  if (!bases_.empty())
    std::memcpy(image_.data() + bases_at, bases_.data(), bases_.size() * sizeof(Turn));
  return CopyToDevice(device_.data(), image_.data(), size, stream);
}

Status DeviceMomentsBatch::Launch(CUstream_st* stream) {
  const size_t bad = Up(tiles_.size() * sizeof(uint32_t));
  DYNA_RETURN_IF_ERROR(ZeroDevice(device_.data() + out_at_, bad, stream));
  MomentLaunch launch;
  launch.tiles = reinterpret_cast<const MomentTile*>(device_.data());
  launch.sums =
      reinterpret_cast<const MomentSum*>(device_.data() + Up(tiles_.size() * sizeof(MomentTile)));
  launch.count = static_cast<int>(sums_.size());
  launch.d = d_;
  launch.centred = centred_;
  launch.out = reinterpret_cast<float*>(device_.data() + out_at_ + bad);
  launch.stride = static_cast<int>(Stride(d_));
  launch.bad = reinterpret_cast<uint32_t*>(device_.data() + out_at_);
  if (!LaunchMoments(launch, stream)) return LastError("launch of moments");
  return {};
}

Status DeviceMomentsBatch::Collect(CUstream_st* stream) {
  const size_t bytes =
      Up(tiles_.size() * sizeof(uint32_t)) + sums_.size() * Stride(d_) * sizeof(float);
  DYNA_RETURN_IF_ERROR(results_.Reserve(bytes));
  DYNA_RETURN_IF_ERROR(CopyToHost(results_.data(), device_.data() + out_at_, bytes, stream));
  DYNA_RETURN_IF_ERROR(WaitFor(stream));
  const auto* bad = reinterpret_cast<const uint32_t*>(results_.data());
  for (size_t i = 0; i < order_.size(); ++i) {
    if (bad[i] == 0) continue;
    const Planned& planned = tiles_[order_[i]];
    DeviceMoments& job = jobs_[planned.job];
    const int head = static_cast<int>(planned.head);
    if (job.refused && job.bad_head <= head) continue;
    job.refused = true;
    job.bad_head = head;
    job.bad_token = 64 - static_cast<int>(bad[i]);
  }
  return {};
}

DeviceMomentsBatch::Sum DeviceMomentsBatch::sum(size_t index) const {
  const auto* out =
      reinterpret_cast<const float*>(results_.data() + Up(tiles_.size() * sizeof(uint32_t))) +
      index * Stride(d_);
  const auto d = static_cast<size_t>(d_);
  return {sums_[index].job, static_cast<int>(sums_[index].head), std::span(out, centred_ ? d : 0),
          std::span(out + d, UpperTriangle(d_))};
}

}  // namespace dyna::cuda
