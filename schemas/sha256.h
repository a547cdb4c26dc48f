// SHA-256, the one hash that names things: blocks, contexts, bases.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace dyna {

std::array<uint8_t, 32> Sha256(std::span<const std::byte> bytes);

// The first 8 bytes of Sha256 as a little-endian integer: fingerprints and basis names.
uint64_t Sha256Name(std::span<const std::byte> bytes);

}  // namespace dyna
