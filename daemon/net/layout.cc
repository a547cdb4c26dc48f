#include "daemon/net/layout.h"

#include <array>
#include <cstdlib>
#include <string>

namespace dyna {
namespace {

uint64_t RowBytes(const SegmentGrid& g, uint16_t layer, DType dtype) {
  return uint64_t{g.spec.layers[layer].head_dim} * static_cast<uint64_t>(DTypeBytes(dtype));
}

// Two strides of a target whose rows can never meet: one nests inside the other.
bool RowsApart(uint64_t row, uint64_t heads, int64_t token_stride, int64_t head_stride) {
  const uint64_t token = static_cast<uint64_t>(std::llabs(token_stride));
  const uint64_t head = static_cast<uint64_t>(std::llabs(head_stride));
  if (token < row) return false;
  if (heads == 1) return true;
  if (head < row) return false;
  return head >= kBlockTokens * token || token >= heads * head;
}

}  // namespace

Status CheckGrid(const SegmentGrid& g) {
  if (g.layer_count == 0 || g.layer_begin + size_t{g.layer_count} > g.spec.layers.size())
    return Invalid("layer range " + std::to_string(g.layer_begin) + " + " +
                   std::to_string(g.layer_count) + " is empty or beyond the context's " +
                   std::to_string(g.spec.layers.size()) + " layers");
  if (g.head_begin >= g.head_end) return Invalid("head range is empty");
  for (size_t l = g.layer_begin; l < size_t{g.layer_begin} + g.layer_count; ++l) {
    if (g.spec.layers[l].kind == LayerKind::kOpaque)
      return Unsupported("layer " + std::to_string(l) +
                         " is opaque: it travels as an opaque object");
    if (g.head_end > g.spec.layers[l].kv_heads)
      return Invalid("head range ends beyond the " + std::to_string(g.spec.layers[l].kv_heads) +
                     " kv heads of layer " + std::to_string(l));
  }
  return {};
}

uint64_t CanonicalBytes(const SegmentGrid& g, DType dtype) {
  uint64_t one_block = 0;
  for (uint16_t i = 0; i < g.layer_count; ++i)
    one_block += 2 * uint64_t{kBlockTokens} * (g.head_end - g.head_begin) *
                 RowBytes(g, static_cast<uint16_t>(g.layer_begin + i), dtype);
  return one_block * g.blocks;
}

std::vector<MutableKvView> CanonicalViews(const SegmentGrid& g, DType dtype,
                                          std::span<std::byte> buffer) {
  std::vector<MutableKvView> views;
  views.reserve(size_t{g.blocks} * g.layer_count);
  std::byte* at = buffer.data();
  for (uint32_t b = 0; b < g.blocks; ++b) {
    for (uint16_t i = 0; i < g.layer_count; ++i) {
      const auto row =
          static_cast<int64_t>(RowBytes(g, static_cast<uint16_t>(g.layer_begin + i), dtype));
      const int64_t tile = row * kBlockTokens;
      views.push_back({at, at + tile, row, 2 * tile, row, 2 * tile, dtype});
      at += 2 * tile * (g.head_end - g.head_begin);
    }
  }
  return views;
}

Result<std::vector<MutableKvView>> RegionViews(const SegmentGrid& g, const wire::Layout& layout,
                                               const ClientMemory& region, bool writable) {
  const size_t segments = size_t{g.blocks} * g.layer_count;
  if (layout.k_offsets.size() != segments || layout.v_offsets.size() != segments)
    return Invalid("layout: " + std::to_string(segments) + " offsets of K and of V expected");
  const uint64_t heads = uint64_t{g.head_end} - g.head_begin;
  std::vector<MutableKvView> views;
  views.reserve(segments);
  for (size_t s = 0; s < segments; ++s) {
    const auto layer = static_cast<uint16_t>(g.layer_begin + s % g.layer_count);
    const uint64_t row = RowBytes(g, layer, layout.dtype);
    const std::string where = "layout: segment " + std::to_string(s) + ": ";
    if (writable && (!RowsApart(row, heads, layout.k_token_stride, layout.k_head_stride) ||
                     !RowsApart(row, heads, layout.v_token_stride, layout.v_head_stride)))
      return Invalid(where + "strides make rows of the target overlap");
    const std::array k_axes{Axis{heads, layout.k_head_stride},
                            Axis{kBlockTokens, layout.k_token_stride}};
    const std::array v_axes{Axis{heads, layout.v_head_stride},
                            Axis{kBlockTokens, layout.v_token_stride}};
    auto k = region.Strided(layout.k_offsets[s], row, k_axes);
    if (!k.ok()) return Invalid(where + "K: " + std::string(k.status().message()));
    auto v = region.Strided(layout.v_offsets[s], row, v_axes);
    if (!v.ok()) return Invalid(where + "V: " + std::string(v.status().message()));
    views.push_back({*k, *v, layout.k_token_stride, layout.k_head_stride, layout.v_token_stride,
                     layout.v_head_stride, layout.dtype, region.on_device()});
  }
  return views;
}

std::vector<KvView> ReadOnly(const std::vector<MutableKvView>& views) {
  std::vector<KvView> out;
  out.reserve(views.size());
  for (const MutableKvView& v : views)
    out.push_back({v.k, v.v, v.k_token_stride, v.k_head_stride, v.v_token_stride, v.v_head_stride,
                   v.dtype, v.on_device});
  return out;
}

}  // namespace dyna
