// Sizes, plans, checksums: what reader and writer share.
#include "kernels/segment.h"

#include <bit>
#include <string>

#include "kernels/crc32c.h"
#include "kernels/segment_layout.h"

namespace dyna {
namespace segment_layout {

uint8_t EntryFlags(uint64_t live) {
  const int groups = (std::popcount(live) + 15) / 16;
  return static_cast<uint8_t>(groups | (live == ~uint64_t{0} ? 0 : kNotAllLive));
}

size_t PinBytes(uint64_t pins, int kv_heads, int head_dim, DType dtype) {
  return static_cast<size_t>(std::popcount(pins) * kv_heads * 2) * PinRowBytes(head_dim, dtype);
}

bool SuitsDtype(DType dtype, uint8_t k_kind, uint8_t v_kind, uint64_t live) {
  if (DTypeBytes(dtype) > 1) return true;
  return (k_kind == kind::kRaw || k_kind == kind::kNone) &&
         (v_kind == kind::kRaw || v_kind == kind::kNone) && live == ~uint64_t{0};
}

size_t PinRowAt(int rank, int index, bool v, int kv_heads, int head_dim, DType dtype) {
  const int row = (rank * kv_heads + index) * 2 + (v ? 1 : 0);
  return DirectoryEnd(kv_heads) + static_cast<size_t>(row) * PinRowBytes(head_dim, dtype);
}

}  // namespace segment_layout

namespace {

namespace at = segment_layout;

size_t Fp8Bytes(int head_dim) { return 16 + size_t{kBlockTokens} * static_cast<size_t>(head_dim); }

}  // namespace

std::optional<size_t> KTileBytes(uint8_t k_kind, int head_dim, DType dtype,
                                 std::span<const uint8_t> widths, int run) {
  const size_t d = static_cast<size_t>(head_dim);
  switch (k_kind) {
    case kind::kRaw:
      return RawTileBytes(head_dim, dtype);
    case kind::kFp8:
      return Fp8Bytes(head_dim);
    case kind::kPlain8:
      return 2 * d + 2 * d + 64 * d;
    case kind::kPlain4:
      return 2 * d + 2 * d + 32 * d;
    case kind::kNone:
      return 0;
    default:
      break;
  }
  if (!kind::IsLevel(k_kind) || widths.empty()) return std::nullopt;
  const size_t r = static_cast<size_t>(run);
  size_t scales = 0, codes = 0;
  for (const size_t w : widths) {
    if (w == 0) continue;
    scales += w == 2 ? r : 2 * r;
    codes += 8 * r * w;
  }
  return 2 * d + at::RoundUp(scales, 16) + codes;
}

std::optional<size_t> KTileBytes(uint8_t k_kind, int head_dim, DType dtype, const Basis* basis,
                                 int head) {
  if (!kind::IsLevel(k_kind))
    return KTileBytes(k_kind, head_dim, dtype, std::span<const uint8_t>{}, 16);
  const int level = k_kind - kind::kLevel0;
  if (basis == nullptr || !basis->Covers(head) || level >= basis->info().levels ||
      basis->info().head_dim != head_dim || !basis->seen(head))
    return std::nullopt;
  return KTileBytes(k_kind, head_dim, dtype, basis->widths(head, level), basis->info().run);
}

std::optional<size_t> VTileBytes(uint8_t v_kind, int head_dim, DType dtype) {
  const size_t d = static_cast<size_t>(head_dim);
  switch (v_kind) {
    case kind::kRaw:
      return RawTileBytes(head_dim, dtype);
    case kind::kFp8:
      return Fp8Bytes(head_dim);
    case kind::kNone:
      return 0;
    case kind::VBits(0):
      return 2 * d;
    case kind::VBits(1):
      return 64 + 8 * d;
    case kind::VBits(2):
      return 64 + 16 * d;
    case kind::VBits(4):
      return 64 + 32 * d;
    case kind::VBits(8):
      return 128 + 64 * d;
    default:
      return std::nullopt;
  }
}

Status CheckPlan(const SegmentId& id, std::span<const TilePlan> plan, const Basis* basis) {
  const auto bad = [&](int head, const std::string& what) {
    return Invalid("layer " + std::to_string(id.layer) + ", head " + std::to_string(head) + ": " +
                   what);
  };
  if (id.head_dim < 16 || id.head_dim > kMaxHeadDim || id.head_dim % 16 != 0)
    return bad(id.head0, "head_dim " + std::to_string(id.head_dim));
  if (id.kv_heads == 0 || id.head0 + id.kv_heads > kMaxKvHeads || id.layer >= kMaxLayers)
    return bad(id.head0, "kv_heads " + std::to_string(id.kv_heads));
  if (plan.size() != id.kv_heads) return bad(id.head0, "the plan is not of kv_heads entries");
  for (int i = 0; i < id.kv_heads; ++i) {
    const TilePlan& tile = plan[static_cast<size_t>(i)];
    const int head = id.head0 + i;
    if (!KTileBytes(tile.k_kind, id.head_dim, id.dtype, basis, head))
      return bad(head, "K kind " + std::to_string(tile.k_kind) + " does not exist here");
    if (!VTileBytes(tile.v_kind, id.head_dim, id.dtype))
      return bad(head, "V kind " + std::to_string(tile.v_kind) + " does not exist");
    const bool level = kind::IsLevel(tile.k_kind);
    if (level && (basis->name() != id.basis || basis->info().fingerprint != id.fingerprint ||
                  basis->info().layer != id.layer))
      return bad(head, "the basis is not the one that the segment names");
    if (!at::SuitsDtype(id.dtype, tile.k_kind, tile.v_kind, tile.live))
      return bad(head, "fp8 contexts are stored raw, every token");
  }
  return {};
}

size_t EncodedBytes(const SegmentId& id, std::span<const TilePlan> plan, uint64_t pins,
                    const Basis* basis) {
  if (plan.size() != id.kv_heads) return 0;
  size_t bytes =
      at::DirectoryEnd(id.kv_heads) + at::PinBytes(pins, id.kv_heads, id.head_dim, id.dtype);
  for (int i = 0; i < id.kv_heads; ++i) {
    const TilePlan& tile = plan[static_cast<size_t>(i)];
    const auto k = KTileBytes(tile.k_kind, id.head_dim, id.dtype, basis, id.head0 + i);
    const auto v = VTileBytes(tile.v_kind, id.head_dim, id.dtype);
    if (!k || !v) return 0;
    bytes += *k + *v;
  }
  return at::RoundUp(bytes, kArenaUnit);
}

namespace {

uint32_t ChecksumOf(std::span<const std::byte> segment) {
  const std::byte zero[4] = {};
  uint32_t crc = Crc32c(segment.first(at::kCrcAt));
  crc = Crc32c(zero, crc);
  return Crc32c(segment.subspan(kSegmentHeaderBytes), crc);
}

}  // namespace

void SealSegment(std::span<std::byte> segment) {
  const uint16_t flags = at::Get<uint16_t>(segment.data() + at::kFlagsAt);
  at::Put(segment.data() + at::kFlagsAt, static_cast<uint16_t>(flags | kSegmentCrcValid));
  at::Put(segment.data() + at::kCrcAt, ChecksumOf(segment));
}

Status VerifySegmentChecksum(std::span<const std::byte> segment) {
  if (segment.size() < kSegmentHeaderBytes) return Invalid("segment: shorter than its header");
  if ((at::Get<uint16_t>(segment.data() + at::kFlagsAt) & kSegmentCrcValid) == 0)
    return Invalid("segment: has no checksum");
  if (at::Get<uint32_t>(segment.data() + at::kCrcAt) != ChecksumOf(segment))
    return Invalid("segment: checksum does not match");
  return {};
}

}  // namespace dyna
