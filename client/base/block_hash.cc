#include "client/base/block_hash.h"

#include <cstring>
#include <vector>

#include "schemas/sha256.h"

namespace dyna {
namespace {

class Message {
 public:
  explicit Message(uint8_t domain) { Raw(&domain, 1); }
  void U32(uint32_t v) { Raw(&v, sizeof v); }  // little-endian hosts only, like the wire
  void U64(uint64_t v) { Raw(&v, sizeof v); }
  void Part(std::span<const std::byte> part) {
    U64(part.size());
    Raw(part.data(), part.size());
  }
  BlockHash Hash() const {
    BlockHash hash;
    hash.bytes = Sha256(bytes_);
    return hash;
  }

 private:
  void Raw(const void* data, size_t size) {
    if (size == 0) return;
    const size_t at = bytes_.size();
    bytes_.resize(at + size);
    std::memcpy(bytes_.data() + at, data, size);
  }
  std::vector<std::byte> bytes_;
};

}  // namespace

BlockHash HashEngineBlock(std::span<const std::byte> secret, Fingerprint context,
                          std::span<const std::byte> engine_hash, uint32_t sub_index) {
  Message message('E');
  message.Part(secret);
  message.U64(context);
  message.Part(engine_hash);
  message.U32(sub_index);
  return message.Hash();
}

BlockHash HashTokens(const BlockHash& parent, std::span<const uint32_t> tokens,
                     std::span<const std::byte> salt) {
  Message message('T');
  message.Part(std::as_bytes(std::span(parent.bytes)));
  message.Part(std::as_bytes(tokens));
  message.Part(salt);
  return message.Hash();
}

}  // namespace dyna
