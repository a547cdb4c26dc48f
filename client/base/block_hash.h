// Names of blocks (design 2): which bytes go into a BlockHash, in one place. Any thread.
//
// Every part is preceded by its length, so that no two different inputs are the same bytes.
#pragma once

#include <cstdint>
#include <span>

#include "schemas/types.h"

namespace dyna {

// Of a block whose end the engine has already hashed. `secret` keeps tenants' names apart (may be
// empty), `context` is the fingerprint (the adapter is in it), `sub_index` counts our blocks inside
// one engine block of more than 64 tokens.
BlockHash HashEngineBlock(std::span<const std::byte> secret, Fingerprint context,
                          std::span<const std::byte> engine_hash, uint32_t sub_index);

// Without an engine: the chain over token ids. The first block's parent is zero.
BlockHash HashTokens(const BlockHash& parent, std::span<const uint32_t> tokens,
                     std::span<const std::byte> salt);

}  // namespace dyna
