#include "kernels/cuda/device_memory.h"

#include <cuda_runtime.h>

#include <atomic>
#include <fstream>
#include <string>

namespace dyna::cuda {
namespace {

std::atomic<bool> g_lost{false};  // CUDA's own state of this process

bool IsSticky(cudaError_t e) {
  switch (e) {
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorECCUncorrectable:
    case cudaErrorAssert:
      return true;
    default:
      return false;
  }
}

Status Check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return {};
  cudaGetLastError();
  if (IsSticky(e)) g_lost = true;
  return Internal(std::string(IsSticky(e) ? "device lost: " : "cuda: ") + what + ": " +
                  cudaGetErrorString(e));
}

}  // namespace

bool DeviceLost() { return g_lost; }

Status LastError(const char* what) { return Check(cudaGetLastError(), what); }

DeviceMemory::~DeviceMemory() { cudaFree(data_); }
Status DeviceMemory::Reserve(size_t bytes) {
  if (bytes <= size_) return {};
  cudaFree(data_);
  data_ = nullptr;
  size_ = 0;
  void* data = nullptr;
  DYNA_RETURN_IF_ERROR(Check(cudaMalloc(&data, bytes), "device memory"));
  data_ = static_cast<std::byte*>(data);
  size_ = bytes;
  return {};
}

PinnedMemory::~PinnedMemory() { cudaFreeHost(data_); }
Status PinnedMemory::Reserve(size_t bytes) {
  if (bytes <= size_) return {};
  cudaFreeHost(data_);
  data_ = nullptr;
  size_ = 0;
  void* data = nullptr;
  DYNA_RETURN_IF_ERROR(Check(cudaMallocHost(&data, bytes), "pinned memory"));
  data_ = static_cast<std::byte*>(data);
  size_ = bytes;
  return {};
}

Status CopyToDevice(std::byte* to, const std::byte* from, size_t bytes, CUstream_st* stream) {
  if (bytes == 0) return {};
  return Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "copy in");
}
Status CopyToHost(std::byte* to, const std::byte* from, size_t bytes, CUstream_st* stream) {
  if (bytes == 0) return {};
  return Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "copy out");
}
Status CopyRows(std::byte* to, int64_t to_stride, const std::byte* from, int64_t from_stride,
                size_t row_bytes, size_t rows, CUstream_st* stream) {
  const auto row = static_cast<int64_t>(row_bytes);
  const bool pitched = to_stride >= row && from_stride >= row;  // else row by row: rare
  const size_t calls = pitched ? 1 : rows, height = pitched ? rows : 1;
  const auto to_pitch = static_cast<size_t>(pitched ? to_stride : row);
  const auto from_pitch = static_cast<size_t>(pitched ? from_stride : row);
  for (size_t i = 0; i < calls; ++i, to += to_stride, from += from_stride) {
    const cudaError_t e =
        stream == nullptr
            ? cudaMemcpy2D(to, to_pitch, from, from_pitch, row_bytes, height, cudaMemcpyDefault)
            : cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, row_bytes, height,
                                cudaMemcpyDefault, stream);
    DYNA_RETURN_IF_ERROR(Check(e, "copy of rows"));
  }
  return {};
}
Status ZeroDevice(std::byte* at, size_t bytes, CUstream_st* stream) {
  if (bytes == 0) return {};
  return Check(cudaMemsetAsync(at, 0, bytes, stream), "zero");
}
Status WaitFor(CUstream_st* stream) { return Check(cudaStreamSynchronize(stream), "kernels"); }

Stream::~Stream() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}
Status Stream::Open() {
  return Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
}

Status SleepWhileWaiting() {
  return Check(cudaSetDeviceFlags(cudaDeviceScheduleBlockingSync), "device flags");
}

int DeviceCount() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

std::string DriverVersion() {
  int version = 0;  // 13000
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) {
    cudaGetLastError();
    return "";
  }
  std::string text =
      "CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  std::string module;
  if (std::ifstream file("/sys/module/nvidia/version"); file >> module) text = module + ", " + text;
  return text;
}

std::string DeviceName() {
  int device = 0;
  cudaDeviceProp prop{};
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaGetDeviceProperties(&prop, device) != cudaSuccess)
    return "unknown";
  return std::string(prop.name) + " (sm_" + std::to_string(prop.major * 10 + prop.minor) + ")";
}

}  // namespace dyna::cuda
