// The door to a segment's bytes.
#include <bit>
#include <string>

#include "kernels/segment.h"
#include "kernels/segment_layout.h"

namespace dyna {
namespace {

namespace at = segment_layout;

Status Bad(const std::string& what) { return Invalid("segment: " + what); }

// Gains are within 2^-33 .. 2^18 for any f16 input: what a decoder scales by stays normal.
constexpr int kMaxVExp = 40;

bool AllZero(const std::byte* from, const std::byte* to) {
  for (; from != to; ++from)
    if (*from != std::byte{0}) return false;
  return true;
}

const std::byte* Entry(const std::byte* segment, int index) {
  return segment + kSegmentHeaderBytes + at::kEntryBytes * static_cast<size_t>(index);
}

// One tile's entry; `offset` is where its K must be, and becomes where the next head's must be.
Status CheckEntry(const SegmentId& id, const Basis* basis, const std::byte* segment, int index,
                  size_t* offset) {
  const std::byte* entry = Entry(segment, index);
  const auto where = [&] { return " of head " + std::to_string(id.head0 + index); };
  const uint8_t k_kind = at::Get<uint8_t>(entry + at::kKKindAt);
  const uint8_t v_kind = at::Get<uint8_t>(entry + at::kVKindAt);
  const auto k = KTileBytes(k_kind, id.head_dim, id.dtype, basis, id.head0 + index);
  const auto v = VTileBytes(v_kind, id.head_dim, id.dtype);
  if (!k) return Bad("K kind " + std::to_string(k_kind) + where() + " is not known");
  if (!v) return Bad("V kind " + std::to_string(v_kind) + where() + " is not known");
  if (size_t{at::Get<uint32_t>(entry + at::kOffsetAt)} * 16 != *offset)
    return Bad("offset" + where());
  if (at::Get<uint8_t>(entry + at::kEntryFlagsAt) !=
      at::EntryFlags(at::Get<uint64_t>(entry + at::kLiveAt)))
    return Bad("row count" + where());
  if (!at::SuitsDtype(id.dtype, k_kind, v_kind, at::Get<uint64_t>(entry + at::kLiveAt)))
    return Bad("an fp8 context has a coded tile" + where());
  const int v_exp = at::Get<int8_t>(entry + at::kVExpAt);
  if (v_exp < -kMaxVExp || v_exp > kMaxVExp) return Bad("v_exp" + where());
  *offset += *k + *v;
  return {};
}

}  // namespace

Result<SegmentHeader> ParseSegmentHeader(std::span<const std::byte> bytes) {
  if (bytes.size() < kSegmentHeaderBytes) return Bad("shorter than its header");
  const std::byte* h = bytes.data();
  if (std::memcmp(h, at::kMagic, sizeof at::kMagic) != 0) return Bad("magic");
  if (at::Get<uint16_t>(h + at::kVersionAt) != kSegmentVersion)
    return Unsupported("segment: version " + std::to_string(at::Get<uint16_t>(h + at::kVersionAt)));
  if (at::Get<uint16_t>(h + at::kHeaderBytesAt) != kSegmentHeaderBytes) return Bad("header bytes");
  SegmentHeader header;
  SegmentId& id = header.id;
  id.fingerprint = at::Get<uint64_t>(h + at::kFingerprintAt);
  id.basis = at::Get<uint64_t>(h + at::kBasisAt);
  std::memcpy(id.block.bytes.data(), h + at::kBlockAt, id.block.bytes.size());
  id.block_index = at::Get<uint32_t>(h + at::kIndexAt);
  id.layer = at::Get<uint16_t>(h + at::kLayerAt);
  id.head0 = at::Get<uint16_t>(h + at::kHead0At);
  id.kv_heads = at::Get<uint16_t>(h + at::kKvHeadsAt);
  id.head_dim = at::Get<uint16_t>(h + at::kHeadDimAt);
  const uint8_t dtype = at::Get<uint8_t>(h + at::kDtypeAt);
  header.flags = at::Get<uint16_t>(h + at::kFlagsAt);
  header.pins = at::Get<uint64_t>(h + at::kPinsAt);
  header.bytes = at::Get<uint32_t>(h + at::kBytesAt);
  header.nmse = at::Get<float>(h + at::kNmseAt);
  if (id.layer >= kMaxLayers) return Bad("layer");
  if (id.kv_heads == 0 || id.head0 + id.kv_heads > kMaxKvHeads) return Bad("kv_heads");
  if (id.head_dim < 16 || id.head_dim > kMaxHeadDim || id.head_dim % 16 != 0)
    return Bad("head_dim");
  if (dtype < static_cast<uint8_t>(DType::kF32) || dtype > static_cast<uint8_t>(DType::kE5m2))
    return Bad("dtype");
  id.dtype = static_cast<DType>(dtype);
  if ((header.flags & ~(kSegmentCrcValid | kSegmentErrorIsEstimate)) != 0) return Bad("flags");
  if (!(header.nmse >= 0)) return Bad("nmse");
  if (h[at::kReservedAt] != std::byte{0} || !AllZero(h + at::kReserved2At, h + at::kCrcAt))
    return Bad("reserved bytes");
  if (header.bytes < kSegmentHeaderBytes || header.bytes % kArenaUnit != 0)
    return Bad("encoded bytes");
  return header;
}

Result<SegmentView> ParseSegment(std::span<const std::byte> bytes, const Basis* basis) {
  DYNA_ASSIGN_OR_RETURN(const SegmentHeader header, ParseSegmentHeader(bytes));
  const SegmentId& id = header.id;
  if (header.bytes > bytes.size()) return Bad("truncated");
  if (id.basis == 0) {
    basis = nullptr;
  } else if (basis == nullptr || basis->name() != id.basis) {
    return Bad("names a basis that is not at hand");
  } else if (basis->info().fingerprint != id.fingerprint || basis->info().layer != id.layer ||
             basis->info().head_dim != id.head_dim) {
    return Bad("names a basis of another context, layer or head_dim");
  }
  size_t offset =
      at::DirectoryEnd(id.kv_heads) + at::PinBytes(header.pins, id.kv_heads, id.head_dim, id.dtype);
  if (at::DirectoryEnd(id.kv_heads) > header.bytes) return Bad("encoded bytes");
  for (int i = 0; i < id.kv_heads; ++i)
    DYNA_RETURN_IF_ERROR(CheckEntry(id, basis, bytes.data(), i, &offset));
  if (at::RoundUp(offset, kArenaUnit) != header.bytes) return Bad("encoded bytes");
  if (!AllZero(bytes.data() + offset, bytes.data() + header.bytes)) return Bad("padding");
  SegmentView view;
  view.id_ = id;
  view.bytes_ = bytes.first(header.bytes);
  view.basis_ = basis;
  view.pins_ = header.pins;
  view.flags_ = header.flags;
  view.nmse_ = header.nmse;
  return view;
}

TileView SegmentView::tile(int index) const {
  const std::byte* entry = Entry(bytes_.data(), index);
  TileView tile;
  tile.k_kind = at::Get<uint8_t>(entry + at::kKKindAt);
  tile.v_kind = at::Get<uint8_t>(entry + at::kVKindAt);
  tile.v_exp = at::Get<int8_t>(entry + at::kVExpAt);
  tile.live = at::Get<uint64_t>(entry + at::kLiveAt);
  const size_t k = *KTileBytes(tile.k_kind, id_.head_dim, id_.dtype, basis_, id_.head0 + index);
  const size_t v = *VTileBytes(tile.v_kind, id_.head_dim, id_.dtype);
  const size_t offset = size_t{at::Get<uint32_t>(entry + at::kOffsetAt)} * 16;
  tile.k = bytes_.subspan(offset, k);
  tile.v = bytes_.subspan(offset + k, v);
  return tile;
}

const std::byte* SegmentView::pin_row(int rank, int index, bool v) const {
  return bytes_.data() + at::PinRowAt(rank, index, v, id_.kv_heads, id_.head_dim, id_.dtype);
}

}  // namespace dyna
