#include "kernels/cuda/span_copier.h"

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>

namespace dyna::cuda {
namespace {

std::mutex g_mutex;  // of those who change it
std::vector<std::byte*> g_pieces;
std::atomic<uintptr_t> g_begin{0}, g_end{0};

}  // namespace

Status SpanCopier::Launch(CUstream_st* stream) {
  if (spans_.empty()) return {};
  DYNA_RETURN_IF_ERROR(list_.Reserve(spans_.size() * sizeof(CopySpan)));
  std::memcpy(list_.data(), spans_.data(), spans_.size() * sizeof(CopySpan));
  if (!LaunchCopySpans(reinterpret_cast<const CopySpan*>(list_.data()),
                       static_cast<int>(spans_.size()), stream))
    return LastError("launch of copies");
  return {};
}

Status HostPins::Add(std::span<std::byte> memory) {
  const std::lock_guard lock(g_mutex);
  const auto at = reinterpret_cast<uintptr_t>(memory.data());
  if (!g_pieces.empty() && at != g_end) return Unsupported("pinned memory is one range");
  if (cudaHostRegister(memory.data(), memory.size(),
                       cudaHostRegisterPortable | cudaHostRegisterMapped) != cudaSuccess)
    return LastError("pinning the arena");
  void* there = nullptr;
  if (cudaHostGetDevicePointer(&there, memory.data(), 0) != cudaSuccess || there != memory.data()) {
    (void)LastError("pinning the arena");
    cudaHostUnregister(memory.data());
    return Unsupported("the device sees memory of the host at other addresses");
  }
  g_pieces.push_back(memory.data());
  if (g_pieces.size() == 1) g_begin = at;
  g_end = at + memory.size();
  return {};
}

void HostPins::RemoveAll() {
  const std::lock_guard lock(g_mutex);
  g_begin = g_end = 0;
  for (std::byte* piece : g_pieces)
    if (cudaHostUnregister(piece) != cudaSuccess) (void)LastError("unpinning the arena");
  g_pieces.clear();
}

bool HostPins::Covers(std::span<const std::byte> memory) {
  const auto at = reinterpret_cast<uintptr_t>(memory.data());
  return g_end != 0 && at >= g_begin && memory.size() <= g_end - at && at < g_end &&
         (at | memory.size()) % 16 == 0;
}

}  // namespace dyna::cuda
