// Where K and V of a call lie in the caller's memory.
//
// A call is about `blocks` consecutive blocks and `layers` consecutive layers of each: segments,
// block-major (segment = block * layers + layer). Rows of head_dim elements are contiguous; all
// else is strides in bytes, so token-major, head-major and paged layouts need no copy. Memory of a
// registered region is read and written in place by the daemon; other memory costs one copy.
// Memory of a GPU says so (on_device). In a region of Client::RegisterGpu the daemon reads and
// writes it in place; elsewhere it is copied through the host. The library waits, in the thread
// that makes the call, until what was submitted to `stream` is done, and only then tells the
// daemon; when a call is over its bytes are there for every stream. A value; any thread. A put only
// reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "schemas/types.h"

namespace dyna {

struct KvMemory {
  DType dtype = DType::kBf16;
  int64_t k_token_stride = 0, k_head_stride = 0;
  int64_t v_token_stride = 0, v_head_stride = 0;
  std::vector<std::byte*> k, v;  // [segments]: first head of the call, token 0
  bool on_device = false;
  void* stream = nullptr;  // a cudaStream_t; null is CUDA's default stream
  // Instead of a stream: whatever was submitted to the GPU's context.
  static inline void* const kEveryStream = reinterpret_cast<void*>(~uintptr_t{0});

  // Regular in both directions: one base, steps between blocks and between layers.
  struct Steps {
    int64_t block = 0, layer = 0, token = 0, head = 0;
  };
  static KvMemory Strided(void* k, void* v, DType dtype, uint32_t blocks, uint32_t layers,
                          const Steps& k_steps, const Steps& v_steps);
  static KvMemory Strided(void* k, void* v, DType dtype, uint32_t blocks, uint32_t layers,
                          const Steps& steps) {
    return Strided(k, v, dtype, blocks, layers, steps, steps);
  }

  // The order of a payload (design 7): [segment][kv_head][K, V][token][head_dim], dense.
  static KvMemory Dense(void* base, DType dtype, uint32_t blocks, uint32_t layers, uint16_t heads,
                        uint16_t head_dim);
};

// Of K and V of one segment, dense.
constexpr uint64_t DenseSegmentBytes(uint16_t heads, uint16_t head_dim, DType dtype) {
  return uint64_t{2} * heads * kBlockTokens * head_dim * static_cast<uint64_t>(DTypeBytes(dtype));
}

}  // namespace dyna
