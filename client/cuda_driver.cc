// DeviceApi over libcuda.so.1, found at run time; its interface as cuda.h has it, in the few calls
// that are needed: a client is built where there is no CUDA.
#include <dlfcn.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>

#include "client/device_api.h"
#include "client/kv_memory.h"

namespace dyna {
namespace {

using CuResult = int;
using CuDevice = int;
using CuAddress = unsigned long long;  // CUdeviceptr
using CuContext = void*;

constexpr int kMemoryHost = 1, kMemoryDevice = 2;  // CUmemorytype
enum Attribute : int {                             // CUpointer_attribute
  kContext = 1,
  kMemoryType = 2,
  kIsManaged = 8,
  kOrdinal = 9,
  kIpcCapable = 10,
  kRangeStart = 11,
  kRangeSize = 12,
};
struct CuUuid {
  uint8_t bytes[16];
};
struct CuIpcHandle {
  uint8_t bytes[64];
};
struct CuCopy2D {  // CUDA_MEMCPY2D
  size_t from_x = 0, from_y = 0;
  int from_type = 0;
  const void* from_host = nullptr;
  CuAddress from_device = 0;
  void* from_array = nullptr;
  size_t from_pitch = 0;
  size_t to_x = 0, to_y = 0;
  int to_type = 0;
  void* to_host = nullptr;
  CuAddress to_device = 0;
  void* to_array = nullptr;
  size_t to_pitch = 0;
  size_t width = 0, height = 0;
};

struct Library {
  CuResult (*Init)(unsigned) = nullptr;
  CuResult (*GetErrorString)(CuResult, const char**) = nullptr;
  CuResult (*PointerGetAttribute)(void*, int, CuAddress) = nullptr;
  CuResult (*DeviceGet)(CuDevice*, int) = nullptr;
  CuResult (*DeviceGetUuid)(CuUuid*, CuDevice) = nullptr;
  CuResult (*PrimaryCtxRetain)(CuContext*, CuDevice) = nullptr;
  CuResult (*CtxPush)(CuContext) = nullptr;
  CuResult (*CtxPop)(CuContext*) = nullptr;
  CuResult (*CtxSynchronize)() = nullptr;
  CuResult (*StreamSynchronize)(void*) = nullptr;
  CuResult (*Memcpy2D)(const CuCopy2D*) = nullptr;
  CuResult (*IpcGetMemHandle)(CuIpcHandle*, CuAddress) = nullptr;

  Status Open() {
    // Found by its name alone, and never closed: the program may use it, too.
    void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return Unsupported("there is no CUDA driver (libcuda.so.1)");
    const char* missing = nullptr;
    const auto find = [&](const char* name, auto* f) {
      *f = reinterpret_cast<std::remove_reference_t<decltype(*f)>>(::dlsym(library, name));
      if (*f == nullptr) missing = name;
    };
    find("cuInit", &Init);
    find("cuGetErrorString", &GetErrorString);
    find("cuPointerGetAttribute", &PointerGetAttribute);
    find("cuDeviceGet", &DeviceGet);
    find("cuDeviceGetUuid_v2", &DeviceGetUuid);  // of the MIG slice, if any
    find("cuDevicePrimaryCtxRetain", &PrimaryCtxRetain);
    find("cuCtxPushCurrent_v2", &CtxPush);
    find("cuCtxPopCurrent_v2", &CtxPop);
    find("cuCtxSynchronize", &CtxSynchronize);
    find("cuStreamSynchronize", &StreamSynchronize);
    find("cuMemcpy2DUnaligned_v2", &Memcpy2D);
    find("cuIpcGetMemHandle", &IpcGetMemHandle);
    if (missing != nullptr)
      return Unsupported(std::string("the CUDA driver is too old: it has no ") + missing);
    return Check(Init(0), "cuInit");
  }
  Status Check(CuResult e, const char* what) const {
    if (e == 0) return {};
    const char* text = nullptr;
    GetErrorString(e, &text);
    return Internal(std::string("cuda: ") + what + ": " + (text != nullptr ? text : "?") + " (" +
                    std::to_string(e) + ")");
  }
};

CuAddress AddressOf(const void* memory) { return reinterpret_cast<uintptr_t>(memory); }

class Driver final : public DeviceApi {
 public:
  Result<wire::RegisterRegion> Export(const std::byte* memory, uint64_t bytes) override {
    DYNA_RETURN_IF_ERROR(Ready());
    const CuAddress at = AddressOf(memory);
    int type = 0;
    if (cu_.PointerGetAttribute(&type, kMemoryType, at) != 0 || type != kMemoryDevice)
      return Invalid("memory: not of a GPU");
    unsigned managed = 0, shareable = 0;
    if (cu_.PointerGetAttribute(&managed, kIsManaged, at) == 0 && managed != 0)
      return Unsupported("memory: managed memory has no handle of CUDA IPC");
    if (cu_.PointerGetAttribute(&shareable, kIpcCapable, at) == 0 && shareable == 0)
      return Unsupported(
          "memory: it has no handle of CUDA IPC. cudaMalloc's has one; cudaMallocAsync's and that "
          "of "
          "PyTorch's expandable_segments have none");
    CuAddress start = 0;
    size_t size = 0;
    DYNA_RETURN_IF_ERROR(
        cu_.Check(cu_.PointerGetAttribute(&start, kRangeStart, at), "start of the allocation"));
    DYNA_RETURN_IF_ERROR(
        cu_.Check(cu_.PointerGetAttribute(&size, kRangeSize, at), "size of the allocation"));
    if (bytes == 0 || at - start > size || bytes > size - (at - start))
      return Invalid("memory: " + std::to_string(bytes) + " bytes at offset " +
                     std::to_string(at - start) + " of an allocation of " + std::to_string(size));
    DYNA_ASSIGN_OR_RETURN(const Current current, Enter(memory));
    CuIpcHandle handle;
    if (Status s = cu_.Check(cu_.IpcGetMemHandle(&handle, start), "cuIpcGetMemHandle"); !s.ok())
      return Unsupported("memory: it has no handle of CUDA IPC: " + std::string(s.message()));
    wire::RegisterRegion out;
    out.kind = wire::RegionKind::kDevice;
    out.size = bytes;
    out.offset = at - start;
    out.handle.assign(handle.bytes, handle.bytes + sizeof handle.bytes);
    int ordinal = 0;
    CuDevice device = 0;
    CuUuid uuid;
    DYNA_RETURN_IF_ERROR(
        cu_.Check(cu_.PointerGetAttribute(&ordinal, kOrdinal, at), "device of the memory"));
    DYNA_RETURN_IF_ERROR(cu_.Check(cu_.DeviceGet(&device, ordinal), "cuDeviceGet"));
    DYNA_RETURN_IF_ERROR(cu_.Check(cu_.DeviceGetUuid(&uuid, device), "cuDeviceGetUuid"));
    std::memcpy(out.device.data(), uuid.bytes, out.device.size());
    return out;
  }

  Status Wait(const std::byte* memory, void* stream) override {
    DYNA_RETURN_IF_ERROR(Ready());
    DYNA_ASSIGN_OR_RETURN(const Current current, Enter(memory));
    if (stream == KvMemory::kEveryStream)
      return cu_.Check(cu_.CtxSynchronize(), "cuCtxSynchronize");
    return cu_.Check(cu_.StreamSynchronize(stream), "cuStreamSynchronize");
  }

  Status ToHost(const std::byte* from, int64_t stride, size_t row, size_t rows,
                std::byte* to) override {
    CuCopy2D copy;
    copy.from_type = kMemoryDevice;
    copy.from_device = AddressOf(from);
    copy.to_type = kMemoryHost;
    copy.to_host = to;
    return Copy(from, copy, stride, static_cast<int64_t>(row), row, rows);
  }
  Status ToDevice(const std::byte* from, size_t row, size_t rows, std::byte* to,
                  int64_t stride) override {
    CuCopy2D copy;
    copy.from_type = kMemoryHost;
    copy.from_host = from;
    copy.to_type = kMemoryDevice;
    copy.to_device = AddressOf(to);
    return Copy(to, copy, static_cast<int64_t>(row), stride, row, rows);
  }

 private:
  // The context of some memory is the thread's while this lives.
  class Current {
   public:
    explicit Current(const Library* cu) : cu_(cu) {}
    Current(Current&& other) noexcept : cu_(std::exchange(other.cu_, nullptr)) {}
    ~Current() {
      CuContext unused;
      if (cu_ != nullptr) cu_->CtxPop(&unused);
    }

   private:
    const Library* cu_;
  };

  Status Ready() {
    const std::lock_guard lock(mutex_);
    if (!tried_) ready_ = cu_.Open();
    tried_ = true;
    return ready_;
  }
  Result<Current> Enter(const void* memory) {
    DYNA_RETURN_IF_ERROR(Ready());
    const CuAddress at = AddressOf(memory);
    CuContext context = nullptr;
    if (cu_.PointerGetAttribute(&context, kContext, at) != 0 || context == nullptr) {
      int ordinal = 0;  // of no context of its own: a pool's, or mapped
      if (cu_.PointerGetAttribute(&ordinal, kOrdinal, at) != 0)
        return Invalid("memory: not of a GPU");
      const std::lock_guard lock(mutex_);
      CuContext& primary = primary_[ordinal];  // kept: the program's own, as a rule
      CuDevice device = 0;
      if (primary == nullptr) {
        DYNA_RETURN_IF_ERROR(cu_.Check(cu_.DeviceGet(&device, ordinal), "cuDeviceGet"));
        DYNA_RETURN_IF_ERROR(cu_.Check(cu_.PrimaryCtxRetain(&primary, device), "context"));
      }
      context = primary;
    }
    DYNA_RETURN_IF_ERROR(cu_.Check(cu_.CtxPush(context), "cuCtxPushCurrent"));
    return Current(&cu_);
  }
  Status Copy(const void* memory, CuCopy2D copy, int64_t from_stride, int64_t to_stride, size_t row,
              size_t rows) {
    DYNA_ASSIGN_OR_RETURN(const Current current, Enter(memory));
    const auto dense = static_cast<int64_t>(row);
    copy.width = row;
    if (from_stride >= dense && to_stride >= dense) {
      copy.from_pitch = static_cast<size_t>(from_stride);
      copy.to_pitch = static_cast<size_t>(to_stride);
      copy.height = rows;
      return cu_.Check(cu_.Memcpy2D(&copy), "cuMemcpy2D");
    }
    copy.from_pitch = copy.to_pitch = row;  // backwards, or over each other: row by row
    copy.height = 1;
    for (size_t r = 0; r < rows; ++r) {
      DYNA_RETURN_IF_ERROR(cu_.Check(cu_.Memcpy2D(&copy), "cuMemcpy2D"));
      copy.from_device += copy.from_device != 0 ? static_cast<CuAddress>(from_stride) : 0;
      copy.to_device += copy.to_device != 0 ? static_cast<CuAddress>(to_stride) : 0;
      if (copy.from_host != nullptr)
        copy.from_host = static_cast<const std::byte*>(copy.from_host) + from_stride;
      if (copy.to_host != nullptr) copy.to_host = static_cast<std::byte*>(copy.to_host) + to_stride;
    }
    return {};
  }

  std::mutex mutex_;  // what follows, but for calls through `cu_`
  bool tried_ = false;
  Status ready_;
  Library cu_;
  std::map<int, CuContext> primary_;
};

}  // namespace

DeviceApi& CudaDriver() {
  static Driver driver;
  return driver;
}

}  // namespace dyna
