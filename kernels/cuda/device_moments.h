// A batch of second moments over rows in device memory: planned on the host, launched once for all
// of it, collected. What lane_moments.cc stages host memory through, and benchmarks use.
//
// Jobs that name one `sum_of` are added on the device, kTilesOfSum tiles at a time and in their
// order: a triangle is twice the bytes of the tile that it comes from.
//
// Thread rule: a batch belongs to one thread at a time; what jobs point to outlives it.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "kernels/cuda/device_basis.h"
#include "kernels/cuda/device_batch.h"
#include "kernels/cuda/moments_kernels.h"
#include "kernels/moments_plan.h"

namespace dyna::cuda {

// 64 rows each of `heads` x `group` heads; sums are per head, over its group.
struct DeviceMoments {
  DeviceRows rows;  // any strides; aligned as their elements are
  DType dtype = DType::kBf16;
  const DeviceRope* rope = nullptr;  // null: frame `post`
  uint64_t first_position = 0;
  uint64_t present = ~uint64_t{0};  // rows that are there
  uint64_t counted = ~uint64_t{0};  // of those, the ones that count
  int heads = 0, group = 1;
  const void* sum_of = nullptr;  // null: of this job alone
  // Result: the first row that is not finite. The sums that it is in are then of no use.
  bool refused = false;
  int bad_head = 0, bad_token = 0;
};

class DeviceMomentsBatch {
 public:
  static constexpr uint32_t kTilesOfSum = 32;

  // Replaces what was planned. `centred`: about each tile's mean, and sums of x besides.
  void Plan(std::span<DeviceMoments> jobs, int head_dim, bool centred);
  Status Upload(CUstream_st* stream);  // once after a plan
  Status Launch(CUstream_st* stream);  // may be repeated
  Status Collect(CUstream_st* stream);

  // After Collect, of the jobs that were not refused.
  struct Sum {
    size_t job;  // one of those in it: all of a `sum_of`
    int head;
    std::span<const float> x;  // [d], where centred
    std::span<const float> triangle;
  };
  size_t sums() const { return sums_.size(); }
  Sum sum(size_t index) const;
  size_t tiles() const { return tiles_.size(); }

  // Floats of one sum, with room.
  static size_t Stride(int head_dim) {
    return (static_cast<size_t>(head_dim) + UpperTriangle(head_dim) + 63) / 64 * 64;
  }

 private:
  struct Planned {
    MomentTile tile;
    uint32_t sum, job, head;
    int base = -1;  // first turn of its rope
  };
  struct PlannedSum {
    uint32_t job, head;
    MomentSum tiles;
  };
  int BaseOf(const DeviceRope* rope, uint64_t first);

  std::span<DeviceMoments> jobs_;
  int d_ = 0;
  bool centred_ = false;
  std::vector<Planned> tiles_;   // in the order of jobs
  std::vector<uint32_t> order_;  // place on the device -> tile
  std::vector<PlannedSum> sums_;
  std::map<std::pair<const void*, int>, uint32_t> open_;  // sums that have room
  std::map<std::pair<const DeviceRope*, uint64_t>, int> base_of_;
  std::vector<Turn> bases_;
  size_t out_at_ = 0;  // of what the kernels write, from there on
  PinnedMemory image_, results_;
  DeviceMemory device_;
};

}  // namespace dyna::cuda
