// Memory of other processes on the GPU that this process codes on, for those who must not know
// CUDA. Made beside a device's backend; a machine without a GPU has none.
//
// An address of the device looks like any other: KvView::on_device tells, and only a backend that
// has a device (or HostCopyBackend) may follow it. Open() may be called from any thread. Segments
// that stay in device memory (a device arena) would be a second user of what lies behind this.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "schemas/status.h"

namespace dyna {

// Rows between a device and the host. Done on return; an error is the device's.
class DeviceCopier {
 public:
  virtual ~DeviceCopier() = default;
  // Rows of `row_bytes`, `stride` bytes apart on the device, dense on the host.
  virtual Status ToHost(const std::byte* from, int64_t stride, size_t row_bytes, size_t rows,
                        std::byte* to) = 0;
  virtual Status ToDevice(const std::byte* from, size_t row_bytes, size_t rows, std::byte* to,
                          int64_t stride) = 0;
};

class SharedDevice : public DeviceCopier {
 public:
  // What a process says of its memory (wire::RegisterRegion): `bytes` at `offset` of the allocation
  // that `handle` names, on the GPU of that UUID.
  struct Handle {
    std::array<uint8_t, 16> device{};
    std::span<const uint8_t> handle;
    uint64_t offset = 0, bytes = 0;
  };

  // The memory, addressable here while this lives. Making and destroying one calls the driver: not
  // on the loop. REQUIRES that nothing uses the memory when it is destroyed.
  class Mapping {
   public:
    virtual ~Mapping() = default;
    std::byte* data() const { return data_; }

   protected:
    std::byte* data_ = nullptr;  // of the range, not of its allocation
  };

  // UNSUPPORTED: memory of another GPU. INVALID: not a handle that can be opened, or a range beyond
  // its allocation. INTERNAL: the device failed.
  virtual Result<std::unique_ptr<Mapping>> Open(const Handle& handle) = 0;

  // Memory of this process that the device reads and writes by itself from now on, so that segments
  // in it need no copy on the way: the pieces of one range, in order. Takes its time, and takes the
  // memory. Not OK: it stays as it was.
  virtual Status PinHost(std::span<std::byte> next) = 0;
  virtual void UnpinHost() = 0;  // all of it. REQUIRES that no job uses it
};

}  // namespace dyna
