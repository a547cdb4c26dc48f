// Turns a wire layout into addresses, with every byte checked against the memory it names.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "client/transport/region.h"
#include "kernels/backend.h"
#include "schemas/context.h"
#include "schemas/wire.h"

namespace dyna {

// Which segments a call is about: `blocks` x the layer run, block-major, of one head range.
struct SegmentGrid {
  const ContextSpec& spec;
  uint32_t blocks = 0;
  uint16_t layer_begin = 0, layer_count = 0;
  uint16_t head_begin = 0, head_end = 0;
};

// INVALID: a range beyond the context, an opaque layer.
Status CheckGrid(const SegmentGrid& grid);

// Bytes of K and V of the grid in `dtype`, in canonical order (design 7). REQUIRES CheckGrid.
uint64_t CanonicalBytes(const SegmentGrid& grid, DType dtype);

// Views of a buffer in canonical order. REQUIRES that `buffer` has CanonicalBytes.
std::vector<MutableKvView> CanonicalViews(const SegmentGrid& grid, DType dtype,
                                          std::span<std::byte> buffer);

// Views of a region. INVALID names the segment and what is out of bounds; K and V rows of a
// target may not overlap each other (`writable`).
Result<std::vector<MutableKvView>> RegionViews(const SegmentGrid& grid, const wire::Layout& layout,
                                               const ClientMemory& region, bool writable);

std::vector<KvView> ReadOnly(const std::vector<MutableKvView>& views);

}  // namespace dyna
