// CRC-32C (Castagnoli), the checksum of segments, bases, frames and records. Uses the CPU's
// instruction where there is one (three streams at once), tables elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace dyna {

// Of `bytes` appended to data whose checksum is `crc` (0 for none).
uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t crc = 0);

// Copies `from` to `to` (same length, no overlap) and returns the checksum of what was copied:
// each byte is read from `from` once, so a writer racing with the copy cannot part them.
uint32_t CopyCrc32c(std::byte* to, std::span<const std::byte> from, uint32_t crc = 0);

namespace internal {
// The path without instructions, for its test.
uint32_t Crc32cTable(std::span<const std::byte> bytes, uint32_t crc);
}  // namespace internal

}  // namespace dyna
