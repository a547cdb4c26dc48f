#include "daemon/tier/rocks/part_frame.h"

#include <cassert>
#include <cstring>

#include "kernels/crc32c.h"

namespace dyna {
namespace {

// Little-endian, as everything on disk; the daemon runs on nothing else.
struct PartHeader {
  char magic[4];
  uint16_t version;
  uint16_t frame_bytes;
  char key[kPartKeyBytes];
  char reserved[3];
  uint32_t bytes;
  uint32_t bytes_crc;
  uint32_t frame_crc;  // of all before it
};
static_assert(sizeof(PartHeader) == kPartFrameBytes);
constexpr char kMagic[4] = {'D', 'Y', 'N', 'V'};
constexpr uint16_t kFrameVersion = 1;

uint32_t FrameCrc(const PartHeader& frame) {
  return Crc32c(std::as_bytes(std::span(&frame, 1)).first(offsetof(PartHeader, frame_crc)));
}

template <typename T>
void AppendBigEndian(std::string& out, T value) {
  for (size_t i = sizeof(T); i-- > 0;) out.push_back(static_cast<char>(value >> (8 * i)));
}

void AppendHash(std::string& out, const BlockHash& hash) {
  out.append(reinterpret_cast<const char*>(hash.bytes.data()), hash.bytes.size());
}

}  // namespace

std::string BlockRowKey(const record::BlockKey& key) { return kBlockRowTag + PartPrefix(key); }

std::string RowKeyBytes(const RowKey& key) {
  std::string out = {1, static_cast<char>(key.kind)};
  AppendBigEndian(out, key.tenant);
  AppendBigEndian(out, key.context);
  AppendBigEndian(out, key.item);
  return out;
}

std::string PartPrefix(const record::BlockKey& key) {
  std::string out;
  out.reserve(kPartKeyBytes);
  AppendBigEndian(out, key.tenant);
  AppendBigEndian(out, key.context);
  AppendHash(out, key.hash);
  return out;
}

std::string PartKey(const record::BlockKey& key, uint32_t generation, const PartId& part) {
  std::string out = PartPrefix(key);
  AppendBigEndian(out, generation);
  out.push_back(static_cast<char>(part.kind));
  AppendBigEndian(out, part.layer);
  AppendBigEndian(out, part.head_begin);
  assert(out.size() == kPartKeyBytes);
  return out;
}

std::string PartFrame(std::string_view part_key, std::span<const std::byte> bytes) {
  assert(part_key.size() == kPartKeyBytes);
  PartHeader frame{};
  std::memcpy(frame.magic, kMagic, sizeof kMagic);
  frame.version = kFrameVersion;
  frame.frame_bytes = kPartFrameBytes;
  std::memcpy(frame.key, part_key.data(), kPartKeyBytes);
  frame.bytes = static_cast<uint32_t>(bytes.size());
  frame.bytes_crc = Crc32c(bytes);
  frame.frame_crc = FrameCrc(frame);
  return {reinterpret_cast<const char*>(&frame), sizeof frame};
}

Status OpenPart(std::string_view part_key, std::string_view value, std::span<std::byte> out) {
  if (value.size() < kPartFrameBytes) return Internal("part: shorter than its frame");
  PartHeader frame;
  std::memcpy(&frame, value.data(), sizeof frame);
  if (std::memcmp(frame.magic, kMagic, sizeof kMagic) != 0 || frame.version != kFrameVersion ||
      frame.frame_bytes != kPartFrameBytes || frame.frame_crc != FrameCrc(frame))
    return Internal("part: damaged frame");
  if (part_key != std::string_view(frame.key, kPartKeyBytes))
    return Internal("part: it belongs to another key");
  value.remove_prefix(kPartFrameBytes);
  if (frame.bytes != value.size()) return Internal("part: another length than its frame says");
  if (out.size() != value.size()) return Invalid("out: not the part's length");
  const std::span bytes(reinterpret_cast<const std::byte*>(value.data()), value.size());
  if (CopyCrc32c(out.data(), bytes) != frame.bytes_crc) return Internal("part: damaged bytes");
  return {};
}

}  // namespace dyna
