// What a block's row says about its parts: the rules that every implementation of SpillStore holds
// a write to. Free functions, no state.
#pragma once

#include <cstdint>
#include <vector>

#include "daemon/tier/spill_store.h"

namespace dyna {

struct ListedPart {
  PartId id;
  uint32_t bytes = 0;
  bool operator==(const ListedPart&) const = default;
};
// In the order of PartId: segments, then the history.
std::vector<ListedPart> PartsOf(const record::BlockMeta& meta);

// INVALID when the row is out of bounds, a part is not listed or has another length, or a listed
// part neither comes nor is there already. `stored` is the row on disk, or null.
Status CheckWrite(const BlockWrite& write, const record::BlockMeta* stored);

// Of a block with a row of `row_bytes`: what budgets count. `frame` is what each part costs
// besides.
uint64_t LiveBytes(const record::BlockMeta& meta, uint64_t row_bytes, uint64_t frame);

}  // namespace dyna
