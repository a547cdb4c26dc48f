// Rows of a block between a client's layout and the contiguous one that is staged. Pure functions.
#pragma once

#include <cstring>

#include "kernels/backend.h"
#include "kernels/cuda/device_batch.h"

namespace dyna::cuda {

// Contiguous [head][K, V][64][d] of a staged block.
inline DeviceKv Contiguous(std::byte* at, int head_dim, DType dtype) {
  const int64_t row = head_dim * DTypeBytes(dtype);
  DeviceKv kv;
  kv.dtype = dtype;
  kv.k.base = at;
  kv.v.base = at + kBlockTokens * row;
  kv.k.token_stride = kv.v.token_stride = row;
  kv.k.head_stride = kv.v.head_stride = 2 * kBlockTokens * row;
  return kv;
}

inline void Gather(const KvView& from, int heads, int head_dim, std::byte* to) {
  const size_t row = static_cast<size_t>(head_dim * DTypeBytes(from.dtype));
  for (int h = 0; h < heads; ++h)
    for (const bool v : {false, true})
      for (int t = 0; t < kBlockTokens; ++t, to += row) {
        const std::byte* at = v ? from.v + h * from.v_head_stride + t * from.v_token_stride
                                : from.k + h * from.k_head_stride + t * from.k_token_stride;
        std::memcpy(to, at, row);
      }
}

inline void Scatter(const std::byte* from, int heads, int head_dim, const MutableKvView& to) {
  const size_t row = static_cast<size_t>(head_dim * DTypeBytes(to.dtype));
  for (int h = 0; h < heads; ++h)
    for (const bool v : {false, true})
      for (int t = 0; t < kBlockTokens; ++t, from += row) {
        std::byte* at = v ? to.v + h * to.v_head_stride + t * to.v_token_stride
                          : to.k + h * to.k_head_stride + t * to.k_token_stride;
        std::memcpy(at, from, row);
      }
}

inline size_t KvBytes(int heads, int head_dim, DType dtype) {
  return 2 * static_cast<size_t>(heads) * RawTileBytes(head_dim, dtype);
}

}  // namespace dyna::cuda
