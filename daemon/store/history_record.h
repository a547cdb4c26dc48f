// A block's attention history as it lies beside its segments on disk: one after the other, each
// with its length (u32) before it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "daemon/policy/history.h"
#include "daemon/tier/spill_store.h"

namespace dyna {

inline constexpr PartId kHistoryPart{PartId::Kind::kHistory, 0, 0};

std::vector<std::byte> PackHistory(std::span<const BlockHistory> history);

// Empty when any of it is damaged: history is advice, and a damaged one is as good as none.
std::vector<BlockHistory> UnpackHistory(std::span<const std::byte> bytes, uint64_t seed);

}  // namespace dyna
