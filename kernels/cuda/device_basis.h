// What kernels read besides the jobs: a basis, a rope's table, and the plain kinds' runs, in device
// memory. Made once, const afterwards; whoever has work in flight keeps them alive.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "kernels/basis.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/tile_job.h"
#include "kernels/rope.h"

namespace dyna::cuda {

// Places of the runs of a K tile of these widths (formats 3).
std::vector<RunPlace> PlaceRuns(std::span<const uint8_t> widths, int run, int head_dim);

class DeviceBasis {
 public:
  // A and B as f16 in the order of the matrix instructions, mu, and every level's runs.
  static Result<std::shared_ptr<const DeviceBasis>> Create(std::shared_ptr<const Basis> basis);

  const Basis& basis() const { return *basis_; }
  // `head` absolute, REQUIRES basis().Covers(head).
  const BasisCell* cell(int head) const;
  const RunPlace* runs(int head, int level) const;

 private:
  DeviceBasis() = default;
  std::shared_ptr<const Basis> basis_;
  DeviceMemory memory_;
  size_t runs_at_ = 0;
};

class DeviceRope {
 public:
  static Result<std::shared_ptr<const DeviceRope>> Create(std::shared_ptr<const RopeTable> table);
  const RopeTable& table() const { return *table_; }
  const Turn* turns() const { return reinterpret_cast<const Turn*>(memory_.data()); }
  int pairs() const { return table_->rotary_dim() / 2; }

 private:
  DeviceRope() = default;
  std::shared_ptr<const RopeTable> table_;
  DeviceMemory memory_;
};

// plain8 and plain4 of every head_dim.
class PlainRuns {
 public:
  Status Open();
  const RunPlace* of(int head_dim, uint8_t k_kind) const;

 private:
  DeviceMemory memory_;
};

}  // namespace dyna::cuda
