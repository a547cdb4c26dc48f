// The copies of one batch between the device and host memory that the device reaches by itself
// (HostPins), as one launch.
//
// Thread rule: belongs to one thread at a time; a batch's copies are over before the next begins.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/cuda/copy_spans.h"
#include "kernels/cuda/device_memory.h"

namespace dyna::cuda {

class SpanCopier {
 public:
  void Begin() { spans_.clear(); }
  void Add(std::byte* to, const std::byte* from, size_t bytes) {
    spans_.push_back({to, from, bytes});
  }
  Status Launch(CUstream_st* stream);

 private:
  std::vector<CopySpan> spans_;
  PinnedMemory list_;  // the device reads it where it is
};

// Host memory of this process that the device reads and writes by itself: one range, which grows at
// its end. CUDA's own state of this process, like DeviceLost(). Covers(): any thread.
class HostPins {
 public:
  // Pins `memory`, the next piece of the range. INTERNAL, UNSUPPORTED: it stays as it was.
  static Status Add(std::span<std::byte> memory);
  static void RemoveAll();  // REQUIRES that no job uses it
  // True for whole pieces of 16 bytes.
  static bool Covers(std::span<const std::byte> memory);
};

}  // namespace dyna::cuda
