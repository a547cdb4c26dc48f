#include "client/transport/frame.h"

#include <cstring>
#include <string>

#include "kernels/crc32c.h"

namespace dyna {
namespace {

// Offsets of design 7, in the order written there, without padding.
constexpr size_t kMagicAt = 0, kVersionAt = 4, kTypeAt = 5, kFlagsAt = 6, kRequestIdAt = 8,
                 kTokenAt = 16, kControlLenAt = 32, kPayloadLenAt = 36, kDeadlineAt = 44,
                 kPayloadCrcAt = 48, kReservedAt = 52, kHeaderCrcAt = 60;
static_assert(kHeaderCrcAt + 4 == kFrameHeaderBytes);

template <typename T>
void Put(std::byte* base, size_t at, const T& value) {
  std::memcpy(base + at, &value, sizeof value);
}
template <typename T>
T Get(const std::byte* base, size_t at) {
  T value;
  std::memcpy(&value, base + at, sizeof value);
  return value;
}

}  // namespace

bool SameToken(const SessionToken& a, const SessionToken& b) {
  uint8_t difference = 0;
  for (size_t i = 0; i < a.size(); ++i)
    difference = static_cast<uint8_t>(difference | (a[i] ^ b[i]));
  return difference == 0;
}

std::array<std::byte, kFrameHeaderBytes> EncodeFrameHeader(const FrameHeader& header) {
  std::array<std::byte, kFrameHeaderBytes> out{};
  std::byte* p = out.data();
  Put(p, kMagicAt, kFrameMagic);
  Put(p, kVersionAt, kFrameVersion);
  Put(p, kTypeAt, header.type);
  Put(p, kFlagsAt, header.flags);
  Put(p, kRequestIdAt, header.request_id);
  Put(p, kTokenAt, header.token);
  Put(p, kControlLenAt, header.control_len);
  Put(p, kPayloadLenAt, header.payload_len);
  Put(p, kDeadlineAt, header.deadline_ms);
  Put(p, kPayloadCrcAt, header.payload_crc32c);
  Put(p, kHeaderCrcAt, Crc32c({p, kHeaderCrcAt}));
  return out;
}

Result<FrameHeader> ParseFrameHeader(std::span<const std::byte> bytes, const FrameLimits& limits) {
  if (bytes.size() < kFrameHeaderBytes)
    return Invalid("frame: " + std::to_string(bytes.size()) + " bytes where a header has 64");
  const std::byte* p = bytes.data();
  if (Get<uint32_t>(p, kMagicAt) != kFrameMagic) return Invalid("frame: magic is not \"DYFM\"");
  // Before the checksum, whose place another version may have moved.
  if (const auto version = Get<uint8_t>(p, kVersionAt); version != kFrameVersion)
    return Unsupported("frame: version " + std::to_string(version) + ", this build speaks " +
                       std::to_string(kFrameVersion));
  if (Get<uint32_t>(p, kHeaderCrcAt) != Crc32c({p, kHeaderCrcAt}))
    return Invalid("frame: header_crc32c does not match");
  if (Get<uint64_t>(p, kReservedAt) != 0) return Invalid("frame: reserved is not zero");

  FrameHeader header;
  header.type = Get<uint8_t>(p, kTypeAt);
  header.flags = Get<uint16_t>(p, kFlagsAt);
  header.request_id = Get<uint64_t>(p, kRequestIdAt);
  header.token = Get<SessionToken>(p, kTokenAt);
  header.control_len = Get<uint32_t>(p, kControlLenAt);
  header.payload_len = Get<uint64_t>(p, kPayloadLenAt);
  header.deadline_ms = Get<uint32_t>(p, kDeadlineAt);
  header.payload_crc32c = Get<uint32_t>(p, kPayloadCrcAt);
  if (header.control_len > limits.max_control)
    return TooLarge("frame: control_len " + std::to_string(header.control_len) + ", at most " +
                    std::to_string(limits.max_control));
  if (header.payload_len > limits.max_payload)
    return TooLarge("frame: payload_len " + std::to_string(header.payload_len) + ", at most " +
                    std::to_string(limits.max_payload));
  if ((header.flags & kFlagChecksum) == 0 && header.payload_crc32c != 0)
    return Invalid("frame: payload_crc32c without the checksum flag");
  return header;
}

uint32_t PayloadCrc32c(std::span<const std::span<const std::byte>> parts) {
  uint32_t crc = 0;
  for (const auto& part : parts) crc = Crc32c(part, crc);
  return crc;
}

}  // namespace dyna
