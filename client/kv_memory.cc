#include "client/kv_memory.h"

namespace dyna {

KvMemory KvMemory::Strided(void* k, void* v, DType dtype, uint32_t blocks, uint32_t layers,
                           const Steps& k_steps, const Steps& v_steps) {
  KvMemory m;
  m.dtype = dtype;
  m.k_token_stride = k_steps.token;
  m.k_head_stride = k_steps.head;
  m.v_token_stride = v_steps.token;
  m.v_head_stride = v_steps.head;
  const size_t segments = size_t{blocks} * layers;
  m.k.reserve(segments);
  m.v.reserve(segments);
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t l = 0; l < layers; ++l) {
      m.k.push_back(static_cast<std::byte*>(k) + b * k_steps.block + l * k_steps.layer);
      m.v.push_back(static_cast<std::byte*>(v) + b * v_steps.block + l * v_steps.layer);
    }
  return m;
}

KvMemory KvMemory::Dense(void* base, DType dtype, uint32_t blocks, uint32_t layers, uint16_t heads,
                         uint16_t head_dim) {
  const int64_t row = int64_t{head_dim} * DTypeBytes(dtype);
  const int64_t tile = kBlockTokens * row;
  const auto segment = static_cast<int64_t>(DenseSegmentBytes(heads, head_dim, dtype));
  const Steps steps{segment * layers, segment, row, 2 * tile};
  auto* k = static_cast<std::byte*>(base);
  return Strided(k, k + tile, dtype, blocks, layers, steps);
}

}  // namespace dyna
