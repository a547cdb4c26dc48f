// Host memory to the device and back: one pinned buffer and its image on the device, handed out in
// pieces of 256 bytes.
//
// Thread rule: belongs to one thread at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "kernels/cuda/device_memory.h"

namespace dyna::cuda {

class Staging {
 public:
  // Room for `bytes` in all, and nothing handed out.
  Status Begin(size_t bytes) {
    used_ = 0;
    bytes = RoundUp(std::max<size_t>(bytes, 1));  // of the only piece, or a sum of rounded ones
    DYNA_RETURN_IF_ERROR(host_.Reserve(bytes));
    return device_.Reserve(bytes);
  }
  static constexpr size_t RoundUp(size_t bytes) { return (bytes + 255) / 256 * 256; }
  size_t Take(size_t bytes) {  // an offset; REQUIRES room
    const size_t at = used_;
    used_ += RoundUp(bytes);
    return at;
  }
  std::byte* host(size_t at) const { return host_.data() + at; }
  std::byte* device(size_t at) const { return device_.data() + at; }
  Status In(CUstream_st* stream) const {
    return CopyToDevice(device_.data(), host_.data(), used_, stream);
  }
  // What was taken since `at` was the next to be: the rest is on its way already.
  Status InSince(size_t at, CUstream_st* stream) const {
    return CopyToDevice(device(at), host(at), used_ - at, stream);
  }
  size_t used() const { return used_; }
  // Nothing of what was there before comes back with what kernels write.
  Status Zero(CUstream_st* stream) const { return ZeroDevice(device_.data(), used_, stream); }
  Status Out(CUstream_st* stream) const {
    return CopyToHost(host_.data(), device_.data(), used_, stream);
  }

 private:
  PinnedMemory host_;
  DeviceMemory device_;
  size_t used_ = 0;
};

}  // namespace dyna::cuda
