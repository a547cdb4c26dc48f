// Many pieces of memory copied by one launch: between the device and memory of the host that is
// pinned and mapped, where a copy for each would cost more than its bytes.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace dyna::cuda {

// 16-byte aligned, a multiple of 16 bytes.
struct CopySpan {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  uint64_t bytes = 0;
};

// `spans` is where the device can read it. Asynchronous; false: the launch failed.
bool LaunchCopySpans(const CopySpan* spans, int count, CUstream_st* stream);

}  // namespace dyna::cuda
