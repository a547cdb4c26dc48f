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

// The 64 rows of one head, one after the other.
inline void GatherTile(const std::byte* from, int64_t token_stride, size_t row, std::byte* to) {
  if (token_stride == static_cast<int64_t>(row)) {
    std::memcpy(to, from, kBlockTokens * row);
    return;
  }
  for (int t = 0; t < kBlockTokens; ++t, to += row) std::memcpy(to, from + t * token_stride, row);
}

inline void Gather(const KvView& from, int heads, int head_dim, std::byte* to) {
  const size_t row = static_cast<size_t>(head_dim * DTypeBytes(from.dtype));
  const size_t tile = kBlockTokens * row;
  for (int h = 0; h < heads; ++h, to += 2 * tile) {
    GatherTile(from.k + h * from.k_head_stride, from.k_token_stride, row, to);
    GatherTile(from.v + h * from.v_head_stride, from.v_token_stride, row, to + tile);
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
