#include "kernels/cuda/ipc_device.h"

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/span_copier.h"

namespace dyna {
namespace cuda {
namespace {

// A function of libcuda.so.1, which this program does not link, as of that version of its
// interface.
template <typename F>
Status Driver(const char* name, unsigned version, F* f) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  if (cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result) !=
          cudaSuccess ||
      found == nullptr) {
    cudaGetLastError();
    return Unsupported(std::string("the driver has no ") + name);
  }
  *f = reinterpret_cast<F>(found);
  return {};
}

std::string Hex(std::span<const uint8_t> bytes) {
  std::string text;
  for (uint8_t b : bytes) {
    text += "0123456789abcdef"[b >> 4];
    text += "0123456789abcdef"[b & 15];
  }
  return text;
}

class IpcDevice final : public SharedDevice {
 public:
  Status Find() {
    DYNA_RETURN_IF_ERROR(SleepWhileWaiting());  // before anything makes the context
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return LastError("device");
    CUresult (*uuid_of)(CUuuid*, CUdevice) = nullptr;
    DYNA_RETURN_IF_ERROR(Driver("cuDeviceGetUuid", 11040, &uuid_of));  // of the MIG slice, if any
    DYNA_RETURN_IF_ERROR(Driver("cuMemGetAddressRange", 3020, &range_of_));
    CUuuid uuid;
    if (const CUresult e = uuid_of(&uuid, device); e != CUDA_SUCCESS)
      return Internal("cuda: UUID of the device: CUresult " + std::to_string(e));
    std::memcpy(uuid_.data(), uuid.bytes, uuid_.size());
    return {};
  }

  Result<std::unique_ptr<Mapping>> Open(const Handle& handle) override {
    if (handle.device != uuid_)
      return Unsupported("memory of GPU " + Hex(handle.device) + "; this daemon codes on " +
                         Hex(uuid_));
    cudaIpcMemHandle_t ipc;
    if (handle.handle.size() != sizeof ipc)
      return Invalid("handle: of " + std::to_string(handle.handle.size()) + " bytes, CUDA's has " +
                     std::to_string(sizeof ipc));
    if (DeviceLost()) return Internal("device lost");
    std::memcpy(&ipc, handle.handle.data(), sizeof ipc);
    void* base = nullptr;
    if (const cudaError_t e = cudaIpcOpenMemHandle(&base, ipc, cudaIpcMemLazyEnablePeerAccess);
        e != cudaSuccess) {
      (void)LastError("open");  // where that loses the device it is remembered
      if (DeviceLost()) return Internal("device lost");
      return Invalid(std::string("handle: cannot be opened: ") + cudaGetErrorString(e));
    }
    auto opened = std::unique_ptr<Opened>(new Opened(base));
    // What the client says of its memory is checked against what the driver knows of it.
    CUdeviceptr begin = 0;
    size_t size = 0;
    if (const CUresult e = range_of_(&begin, &size, reinterpret_cast<CUdeviceptr>(base));
        e != CUDA_SUCCESS)
      return Internal("size of a client's memory: CUresult " + std::to_string(e));
    if (handle.offset > size || handle.bytes > size - handle.offset)
      return Invalid("region: " + std::to_string(handle.bytes) + " bytes at offset " +
                     std::to_string(handle.offset) + " of an allocation of " +
                     std::to_string(size));
    opened->MoveTo(handle.offset);
    return std::unique_ptr<Mapping>(std::move(opened));
  }

  Status PinHost(std::span<std::byte> next) override { return HostPins::Add(next); }
  void UnpinHost() override { HostPins::RemoveAll(); }

  Status ToHost(const std::byte* from, int64_t stride, size_t row, size_t rows,
                std::byte* to) override {
    return CopyRows(to, static_cast<int64_t>(row), from, stride, row, rows);
  }
  Status ToDevice(const std::byte* from, size_t row, size_t rows, std::byte* to,
                  int64_t stride) override {
    return CopyRows(to, stride, from, static_cast<int64_t>(row), row, rows);
  }

 private:
  struct Opened final : Mapping {
    explicit Opened(void* b) : base(b) { data_ = static_cast<std::byte*>(b); }
    ~Opened() override {
      if (cudaIpcCloseMemHandle(base) != cudaSuccess) (void)LastError("close");
    }
    void MoveTo(uint64_t offset) { data_ += offset; }
    void* base;
  };

  std::array<uint8_t, 16> uuid_{};
  CUresult (*range_of_)(CUdeviceptr*, size_t*, CUdeviceptr) = nullptr;
};

}  // namespace
}  // namespace cuda

Result<std::unique_ptr<SharedDevice>> MakeIpcDevice() {
  if (cuda::DeviceCount() == 0) return Unsupported("there is no CUDA device");
  auto device = std::make_unique<cuda::IpcDevice>();
  DYNA_RETURN_IF_ERROR(device->Find());
  return std::unique_ptr<SharedDevice>(std::move(device));
}

}  // namespace dyna
