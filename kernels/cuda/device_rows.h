// Rows of a block that are in device memory already, where a client has them. Pure functions, and
// the copies where the kernels cannot work in place.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/device_batch.h"
#include "kernels/cuda/device_memory.h"

namespace dyna::cuda {

// What a view of either direction has in common.
template <typename View>
bool InPlace(const View& view) {  // 16 bytes at a time, as the kernels want them
  return view.on_device &&
         ((static_cast<int64_t>(reinterpret_cast<uintptr_t>(view.k)) |
           static_cast<int64_t>(reinterpret_cast<uintptr_t>(view.v)) | view.k_token_stride |
           view.k_head_stride | view.v_token_stride | view.v_head_stride) %
          16) == 0;
}

// REQUIRES InPlace(view).
template <typename View>
DeviceKv RowsAt(const View& view) {
  DeviceKv kv;
  kv.dtype = view.dtype;
  kv.k.base = const_cast<std::byte*>(view.k);  // an encode only reads
  kv.v.base = const_cast<std::byte*>(view.v);
  kv.k.token_stride = view.k_token_stride;
  kv.k.head_stride = view.k_head_stride;
  kv.v.token_stride = view.v_token_stride;
  kv.v.head_stride = view.v_head_stride;
  return kv;
}

// Between rows at any strides and the contiguous ones of `there` (host_rows.h), on the device.
template <typename View>
Status MoveRows(const View& view, const DeviceKv& there, int heads, int head_dim, bool to_there,
                CUstream_st* stream) {
  const auto row = static_cast<size_t>(head_dim * DTypeBytes(view.dtype));
  for (int h = 0; h < heads; ++h)
    for (const bool v : {false, true}) {
      auto* at = const_cast<std::byte*>(v ? view.v + h * view.v_head_stride
                                          : view.k + h * view.k_head_stride);
      const int64_t stride = v ? view.v_token_stride : view.k_token_stride;
      const DeviceRows& rows = v ? there.v : there.k;
      std::byte* other = rows.base + h * rows.head_stride;
      if (to_there)
        DYNA_RETURN_IF_ERROR(
            CopyRows(other, rows.token_stride, at, stride, row, kBlockTokens, stream));
      else
        DYNA_RETURN_IF_ERROR(
            CopyRows(at, stride, other, rows.token_stride, row, kBlockTokens, stream));
    }
  return {};
}

}  // namespace dyna::cuda
