#include <algorithm>
#include <string>

#include "kernels/segment.h"
#include "kernels/segment_layout.h"

namespace dyna {
namespace {

namespace at = segment_layout;

std::byte* Entry(std::byte* segment, int index) {
  return segment + kSegmentHeaderBytes + at::kEntryBytes * static_cast<size_t>(index);
}

}  // namespace

Result<SegmentWriter> SegmentWriter::Create(std::span<std::byte> out, const SegmentId& id,
                                            std::span<const TilePlan> plan, uint64_t pins,
                                            const Basis* basis) {
  SegmentWriter writer;
  writer.id_ = id;
  const bool has_level = std::any_of(
      plan.begin(), plan.end(), [](const TilePlan& tile) { return kind::IsLevel(tile.k_kind); });
  if (!has_level) writer.id_.basis = 0;
  const size_t bytes = EncodedBytes(id, plan, pins, basis);
  if (bytes > UINT32_MAX) return TooLarge("segment: more than 4 GiB");
  if (bytes > out.size())
    return TooLarge("segment: needs " + std::to_string(bytes) + " bytes, has " +
                    std::to_string(out.size()));
  writer.out_ = out.data();
  writer.bytes_ = static_cast<uint32_t>(bytes);
  std::byte* h = out.data();
  std::fill_n(h, kSegmentHeaderBytes, std::byte{0});
  std::memcpy(h, at::kMagic, sizeof at::kMagic);
  at::Put(h + at::kVersionAt, kSegmentVersion);
  at::Put(h + at::kHeaderBytesAt, static_cast<uint16_t>(kSegmentHeaderBytes));
  at::Put(h + at::kFingerprintAt, id.fingerprint);
  at::Put(h + at::kBasisAt, writer.id_.basis);
  std::memcpy(h + at::kBlockAt, id.block.bytes.data(), id.block.bytes.size());
  at::Put(h + at::kIndexAt, id.block_index);
  at::Put(h + at::kLayerAt, id.layer);
  at::Put(h + at::kHead0At, id.head0);
  at::Put(h + at::kKvHeadsAt, id.kv_heads);
  at::Put(h + at::kHeadDimAt, id.head_dim);
  at::Put(h + at::kDtypeAt, static_cast<uint8_t>(id.dtype));
  at::Put(h + at::kPinsAt, pins);
  at::Put(h + at::kBytesAt, writer.bytes_);

  size_t offset =
      at::DirectoryEnd(id.kv_heads) + at::PinBytes(pins, id.kv_heads, id.head_dim, id.dtype);
  for (int i = 0; i < id.kv_heads; ++i) {
    const TilePlan& tile = plan[static_cast<size_t>(i)];
    const size_t k = *KTileBytes(tile.k_kind, id.head_dim, id.dtype, basis, id.head0 + i);
    const size_t v = *VTileBytes(tile.v_kind, id.head_dim, id.dtype);
    std::byte* entry = Entry(h, i);
    at::Put(entry + at::kOffsetAt, static_cast<uint32_t>(offset / 16));
    at::Put(entry + at::kKKindAt, tile.k_kind);
    at::Put(entry + at::kVKindAt, tile.v_kind);
    at::Put(entry + at::kVExpAt, int8_t{0});
    at::Put(entry + at::kEntryFlagsAt, at::EntryFlags(tile.live));
    at::Put(entry + at::kLiveAt, tile.live);
    writer.tiles_.push_back({h + offset, k, v});
    offset += k + v;
  }
  std::fill(h + offset, h + bytes, std::byte{0});
  return writer;
}

std::span<std::byte> SegmentWriter::k(int index) const {
  const Tile& tile = tiles_[static_cast<size_t>(index)];
  return {tile.at, tile.k};
}

std::span<std::byte> SegmentWriter::v(int index) const {
  const Tile& tile = tiles_[static_cast<size_t>(index)];
  return {tile.at + tile.k, tile.v};
}

std::byte* SegmentWriter::pin_row(int rank, int index, bool v) const {
  return out_ + at::PinRowAt(rank, index, v, id_.kv_heads, id_.head_dim, id_.dtype);
}

void SegmentWriter::set_v_exp(int index, int8_t v_exp) {
  at::Put(Entry(out_, index) + at::kVExpAt, v_exp);
}

void SegmentWriter::Finish(float nmse, uint16_t flags) {
  at::Put(out_ + at::kNmseAt, nmse);
  at::Put(out_ + at::kFlagsAt, flags);
}

}  // namespace dyna
