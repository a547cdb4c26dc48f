// The keys of the two column families, and the frame around a part's bytes: what makes a value of
// another key, of another length or with a flipped bit visible (design 8). RocksDB has checksums of
// its own; these also cover what passed through its caches and compactions.
//
// Free functions on the caller's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "daemon/tier/spill_store.h"
#include "schemas/record.h"
#include "schemas/status.h"

namespace dyna {

// Numbers in keys are big-endian, so that contexts sort before bases, and these before blocks.
std::string BlockRowKey(const record::BlockKey& key);
std::string RowKeyBytes(const RowKey& key);
// Every part of a block starts with its prefix.
std::string PartPrefix(const record::BlockKey& key);
std::string PartKey(const record::BlockKey& key, uint32_t generation, const PartId& part);
inline constexpr size_t kPartKeyBytes = 57;
inline constexpr char kBlockRowTag = 2;  // first byte of a block's row key; other rows have 1

inline constexpr size_t kPartFrameBytes = 80;
// The frame that stands before `bytes` in the value.
std::string PartFrame(std::string_view part_key, std::span<const std::byte> bytes);
// Copies the bytes behind the frame to `out`: OK, INVALID when `out` has another length than the
// part, INTERNAL when frame or bytes are damaged (`out` is then undefined).
Status OpenPart(std::string_view part_key, std::string_view value, std::span<std::byte> out);

}  // namespace dyna
