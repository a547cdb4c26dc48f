// For tests: a driver whose GPU is a FakeMemory (kernels/testing_device.h).
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "client/device_api.h"
#include "kernels/testing_device.h"

namespace dyna::testing {

class FakeDriver final : public DeviceApi {
 public:
  explicit FakeDriver(FakeMemory* memory) : memory_(*memory) {}
  std::atomic<bool> no_handle{false};
  std::atomic<bool> other_gpu{false};
  std::atomic<int> waits{0};
  std::atomic<void*> waited{nullptr};  // the last stream

  Result<wire::RegisterRegion> Export(const std::byte* memory, uint64_t bytes) override {
    if (no_handle) return Unsupported("memory: it has no handle");
    wire::RegisterRegion m;
    m.kind = wire::RegionKind::kDevice;
    m.size = bytes;
    m.device = FakeMemory::kDevice;
    if (other_gpu) m.device[0] ^= 1;
    m.handle = memory_.handle();
    m.offset = static_cast<uint64_t>(memory - memory_.device());
    return m;
  }
  Status Wait(const std::byte*, void* stream) override {
    ++waits;
    waited = stream;
    return {};
  }
  Status ToHost(const std::byte* from, int64_t stride, size_t row, size_t rows,
                std::byte* to) override {
    return memory_.ToHost(from, stride, row, rows, to);
  }
  Status ToDevice(const std::byte* from, size_t row, size_t rows, std::byte* to,
                  int64_t stride) override {
    return memory_.ToDevice(from, row, rows, to, stride);
  }

 private:
  FakeMemory& memory_;
};

}  // namespace dyna::testing
