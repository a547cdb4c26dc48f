// What may stand in a row: the bounds that readers and writers share.
#include <cmath>
#include <string>

#include "schemas/record.h"

namespace dyna::record {
namespace {

constexpr uint32_t kMaxBlockIndex = uint32_t{1} << 25;  // positions stay below 2^31
constexpr uint32_t kMaxPartBytes = uint32_t{1} << 30;

bool Known(QualityClass q) { return q >= QualityClass::kSmall && q <= QualityClass::kExact; }
bool NotNegative(float f) { return std::isfinite(f) && f >= 0; }

bool KnownKKind(uint8_t k) {
  return k == kind::kRaw || k == kind::kFp8 || k == kind::kPlain8 || k == kind::kPlain4 ||
         k == kind::kNone || kind::IsLevel(k);
}
bool KnownVKind(uint8_t v) {
  switch (v) {
    case kind::kRaw:
    case kind::kFp8:
    case kind::kNone:
    case kind::VBits(0):
    case kind::VBits(1):
    case kind::VBits(2):
    case kind::VBits(4):
    case kind::VBits(8):
      return true;
    default:
      return false;
  }
}

Status Require(bool holds, const char* what) { return holds ? Status() : Invalid(what); }

Status CheckSegments(const BlockMeta& m) {
  if (m.segments.empty()) return Invalid("block.segments: none");
  if (m.segments.size() > kMaxSegments) return TooLarge("block.segments: more than 65536");
  if (m.opaque) {
    const SegmentEntry& s = m.segments.front();
    DYNA_RETURN_IF_ERROR(Require(m.segments.size() == 1 && s.layer == 0 && s.head_begin == 0 &&
                                     s.kv_heads == 0 && s.basis == 0 && m.cells.empty(),
                                 "block.segments: an opaque object is one segment without heads"));
    return Require(s.bytes > 0 && s.bytes <= kMaxPartBytes, "segment.bytes: not in 1..2^30");
  }
  size_t cells = 0, layers = 0;
  uint32_t free_head = 0;  // of the layer so far
  for (size_t i = 0; i < m.segments.size(); ++i) {
    const SegmentEntry& s = m.segments[i];
    if (i == 0 || s.layer != m.segments[i - 1].layer) {
      if (i > 0 && s.layer < m.segments[i - 1].layer)
        return Invalid("block.segments: not in order");
      free_head = 0;
      ++layers;
    }
    if (s.layer >= kMaxLayers) return Invalid("segment.layer: above 1023");
    if (s.head_begin < free_head) return Invalid("block.segments: two hold the same head");
    free_head = uint32_t{s.head_begin} + s.kv_heads;
    if (s.kv_heads == 0 || free_head > kMaxKvHeads)
      return Invalid("segment.kv_heads: 0 or beyond 1024");
    if (s.bytes == 0 || s.bytes > kMaxPartBytes || s.bytes % kArenaUnit != 0)
      return Invalid("segment.bytes: not a multiple of 256 in 1..2^30");
    cells += s.kv_heads;
  }
  DYNA_RETURN_IF_ERROR(Require(m.cells.empty() || m.cells.size() == cells,
                               "block.cells: not one for each kv head of each segment"));
  return Require(m.clocks.empty() || m.clocks.size() == layers,
                 "block.clocks: not one for each layer");
}

Status Check(const BlockMeta& m) {
  DYNA_RETURN_IF_ERROR(Require(m.key.context != 0, "block.context: 0"));
  DYNA_RETURN_IF_ERROR(Require(!m.key.hash.IsZero(), "block.hash: all zero"));
  DYNA_RETURN_IF_ERROR(Require(m.index <= kMaxBlockIndex, "block.index: above 2^25"));
  DYNA_RETURN_IF_ERROR(Require(Known(m.quality), "block.quality: unknown"));
  DYNA_RETURN_IF_ERROR(
      Require(m.durability <= Durability::kPersistent, "block.durability: unknown"));
  DYNA_RETURN_IF_ERROR(Require(NotNegative(m.reuse), "block.reuse: negative or not finite"));
  DYNA_RETURN_IF_ERROR(Require(NotNegative(m.nmse), "block.nmse: negative or not finite"));
  DYNA_RETURN_IF_ERROR(
      Require(NotNegative(m.mean_bits), "block.mean_bits: negative or not finite"));
  DYNA_RETURN_IF_ERROR(
      Require(m.reuse_at_ms >= 0 && m.expires_at_ms >= 0, "block: a time is negative"));
  DYNA_RETURN_IF_ERROR(
      Require(m.history_bytes <= kMaxPartBytes, "block.history_bytes: above 2^30"));
  if (m.shards.size() > kMaxShards) return TooLarge("block.shards: more than 1024");
  DYNA_RETURN_IF_ERROR(Require(m.opaque || !m.shards.empty(), "block.shards: none"));
  for (const Shard& s : m.shards)
    DYNA_RETURN_IF_ERROR(Require(s.layer_begin < s.layer_end && s.layer_end <= kMaxLayers &&
                                     s.head_begin < s.head_end && s.head_end <= kMaxKvHeads,
                                 "block.shards: an empty range or one beyond 1024"));
  DYNA_RETURN_IF_ERROR(CheckSegments(m));
  for (const Cell& c : m.cells)
    DYNA_RETURN_IF_ERROR(
        Require(KnownKKind(c.k_kind) && KnownVKind(c.v_kind), "block.cells: unknown tile kind"));
  return {};
}

Status Check(const ContextRow& c) {
  DYNA_RETURN_IF_ERROR(Require(c.context != 0, "context.context: 0"));
  DYNA_RETURN_IF_ERROR(dyna::Validate(c.spec));
  size_t cells = 0;
  for (const LayerShape& l : c.spec.layers) cells += l.kv_heads;
  return Require(c.omega.empty() || c.omega.size() == 4 * cells,
                 "context.omega: not four numbers for each layer and kv head");
}

Status Check(const BasisRow& b) {
  DYNA_RETURN_IF_ERROR(Require(b.context != 0, "basis.context: 0"));
  DYNA_RETURN_IF_ERROR(Require(b.name != 0, "basis.name: 0"));
  return Require(!b.object.empty(), "basis.object: empty");
}

Status Check(const PriceRow& p) {
  DYNA_RETURN_IF_ERROR(
      Require(p.tier > Tier::kNone && p.tier <= Tier::kBank, "price.tier: unknown"));
  return Require(std::isfinite(p.log2_price) && std::fabs(p.log2_price) <= 1024,
                 "price.log2_price: not finite or beyond 2^1024");
}

Status Check(const LearnerRow& l) {
  DYNA_RETURN_IF_ERROR(Require(l.context != 0, "learner.context: 0"));
  return Require(l.layer < kMaxLayers, "learner.layer: above 1023");
}

}  // namespace

Status Validate(const Row& row) {
  return std::visit([](const auto& r) { return Check(r); }, row);
}

uint64_t SegmentBytes(const BlockMeta& meta) {
  uint64_t sum = 0;
  for (const SegmentEntry& s : meta.segments) sum += s.bytes;
  return sum;
}

}  // namespace dyna::record
