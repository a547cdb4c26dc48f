// The bounds of the protocol's fields that only the two sides of its door need (wire_serialize.cc,
// wire_parse.cc). Those that callers plan by are in wire.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dyna::wire {

inline constexpr uint32_t kMaxTableDepth = 16;
inline constexpr uint32_t kMaxTables = 4096;

inline constexpr size_t kMaxText = 1024;  // messages, reasons
inline constexpr size_t kMaxName = 64;    // client_name, server_version
inline constexpr size_t kMaxToken = 4096;
inline constexpr size_t kMaxBasisNames = 64;    // of GetBasis
inline constexpr size_t kMaxReplyBases = 4096;  // of one FetchReply
inline constexpr uint64_t kMaxRegionBytes = uint64_t{1} << 46;
inline constexpr uint64_t kMaxOffset = uint64_t{1} << 46;
inline constexpr int64_t kMaxStride = int64_t{1} << 40;
inline constexpr uint32_t kMaxBlockIndex = uint32_t{1} << 25;  // positions stay below 2^31
inline constexpr uint32_t kMaxQueryRows = 1u << 20;
inline constexpr uint32_t kMaxWindow = 64;  // W of a query window

}  // namespace dyna::wire
