// The frame: 64 bytes of header, control (one FlatBuffer), payload (raw bytes); design 7.
//
// The one door to a header's bytes: nothing else in the project reads or writes them. What a type
// or a control means is not known here. Stateless; any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "schemas/status.h"

namespace dyna {

inline constexpr size_t kFrameHeaderBytes = 64;
inline constexpr uint32_t kFrameMagic = 0x4D465944;  // "DYFM", little-endian
inline constexpr uint8_t kFrameVersion = 1;

// The random name of a session that HelloReply gives; zero before that.
using SessionToken = std::array<uint8_t, 16>;
// In time that does not depend on where the two differ.
bool SameToken(const SessionToken& a, const SessionToken& b);

// Bits of FrameHeader::flags that the transport owns; the rest pass through.
inline constexpr uint16_t kFlagChecksum = 0x0001;  // payload_crc32c is set and must match
inline constexpr int kFdCountShift = 12;           // top 4 bits: descriptors that travel with it
inline constexpr size_t kMaxFrameFds = 15;

struct FrameHeader {
  uint8_t type = 0;
  uint16_t flags = 0;
  uint64_t request_id = 0;  // client-chosen, unique per session
  SessionToken token{};
  uint32_t control_len = 0;
  uint64_t payload_len = 0;
  uint32_t deadline_ms = 0;     // relative; 0: the receiver's default
  uint32_t payload_crc32c = 0;  // 0 without kFlagChecksum
  bool operator==(const FrameHeader&) const = default;

  size_t fd_count() const { return flags >> kFdCountShift; }
};

struct FrameLimits {
  uint32_t max_control = 1u << 20;
  uint64_t max_payload = uint64_t{1} << 30;
};

std::array<std::byte, kFrameHeaderBytes> EncodeFrameHeader(const FrameHeader& header);

// INVALID: fewer than 64 bytes, magic, checksum, a reserved byte that is not zero, a checksum that
// was not announced. UNSUPPORTED: a version other than ours. TOO_LARGE: over `limits`.
// `bytes` may be longer than a header.
Result<FrameHeader> ParseFrameHeader(std::span<const std::byte> bytes, const FrameLimits& limits);

// Over a scatter list, in order.
uint32_t PayloadCrc32c(std::span<const std::span<const std::byte>> parts);

}  // namespace dyna
