#include "schemas/sha256.h"

#include <openssl/evp.h>

#include <cstdlib>
#include <cstring>

namespace dyna {

std::array<uint8_t, 32> Sha256(std::span<const std::byte> bytes) {
  std::array<uint8_t, 32> digest{};
  unsigned int size = 0;
  // Fails only if the library cannot offer SHA-256 at all: nothing of ours works then.
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_sha256(), nullptr) != 1)
    std::abort();
  return digest;
}

uint64_t Sha256Name(std::span<const std::byte> bytes) {
  const auto digest = Sha256(bytes);
  uint64_t name = 0;
  std::memcpy(&name, digest.data(), sizeof name);
  return name;
}

}  // namespace dyna
