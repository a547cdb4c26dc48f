// Memory of the device and pinned memory of the host, owned; and CUDA's errors as Status.
//
// Thread rule: an object belongs to one thread at a time.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "schemas/status.h"

struct CUstream_st;

namespace dyna::cuda {

// The last error of this thread's calls, cleared. INTERNAL; "device lost: ..." where the error
// sticks to the process (traps: illegal address, and the like) and no later call can succeed.
Status LastError(const char* what);
// True from the first error on that sticks to the process. Any thread.
bool DeviceLost();

class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceMemory();
  // At least `bytes`; what was there is lost where it grows. INTERNAL when there is no room.
  Status Reserve(size_t bytes);
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

class PinnedMemory {
 public:
  PinnedMemory() = default;
  PinnedMemory(PinnedMemory&& other) noexcept { *this = std::move(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~PinnedMemory();
  Status Reserve(size_t bytes);
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Asynchronous copies; the host side is pinned for them to be so.
Status CopyToDevice(std::byte* to, const std::byte* from, size_t bytes, CUstream_st* stream);
Status CopyToHost(std::byte* to, const std::byte* from, size_t bytes, CUstream_st* stream);
// Rows between any two places that the device or the host has, at any strides. On `stream` where
// one is given (then both are of the device), else done on return.
Status CopyRows(std::byte* to, int64_t to_stride, const std::byte* from, int64_t from_stride,
                size_t row_bytes, size_t rows, CUstream_st* stream = nullptr);
Status ZeroDevice(std::byte* at, size_t bytes, CUstream_st* stream);
Status WaitFor(CUstream_st* stream);

// One new stream, owned.
class Stream {
 public:
  Stream() = default;
  Stream(Stream&& other) noexcept { std::swap(stream_, other.stream_); }
  ~Stream();
  Status Open();
  CUstream_st* get() const { return stream_; }

 private:
  CUstream_st* stream_ = nullptr;
};

// From now on threads that wait for the device sleep instead of spinning: several wait at once, and
// the cores have other work. Before the first use of the device.
Status SleepWhileWaiting();

// How many devices this process sees; 0 also where there is no driver.
int DeviceCount();
// "580.95.05, CUDA 13.0"; "" where there is no driver.
std::string DriverVersion();
// "NVIDIA H100 80GB HBM3 (sm_90)" of the current device.
std::string DeviceName();

}  // namespace dyna::cuda
