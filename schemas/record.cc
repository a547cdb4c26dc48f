#include "schemas/record.h"

#include <flatbuffers/flatbuffers.h>

#include <cstring>
#include <unordered_map>
#include <utility>

#include "record_generated.h"

namespace dyna::record {
namespace {

constexpr uint32_t kMaxTableDepth = 16, kMaxTables = 4096;
constexpr uint8_t kPinned = 1, kOpaque = 2, kDropped = 4, kDropDue = 8;  // BlockFixed.flags

using Builder = flatbuffers::FlatBufferBuilder;
template <typename T>
using Offset = flatbuffers::Offset<T>;

// ---- structs to bytes

fb::Hash ToFb(const BlockHash& h) { return fb::Hash(flatbuffers::make_span(h.bytes)); }

struct Body {
  fb::Body type;
  Offset<void> at;
};

Body Build(Builder& b, const BlockMeta& m) {
  std::vector<fb::Shard> shards;
  for (const Shard& s : m.shards)
    shards.emplace_back(s.layer_begin, s.layer_end, s.head_begin, s.head_end);
  std::vector<uint64_t> bases;
  std::unordered_map<BasisName, uint16_t> place;  // in `bases`, + 1
  std::vector<fb::Segment> segments;
  segments.reserve(m.segments.size());
  for (const SegmentEntry& s : m.segments) {
    uint16_t basis = 0;
    if (s.basis != 0) {
      const auto [it, fresh] = place.try_emplace(s.basis, static_cast<uint16_t>(bases.size() + 1));
      if (fresh) bases.push_back(s.basis);
      basis = it->second;
    }
    segments.emplace_back(s.layer, s.head_begin, s.kv_heads, basis, s.bytes);
  }
  std::vector<fb::Cell> cells;
  cells.reserve(m.cells.size());
  for (const Cell& c : m.cells)
    cells.emplace_back(c.k_kind, c.v_kind, c.log2_w_k, c.log2_w_v, c.log2_energy_k,
                       c.log2_energy_v);
  std::vector<fb::LayerClock> clocks;
  for (const LayerClock& c : m.clocks) clocks.emplace_back(c.tokens, c.reports);

  const uint8_t flags =
      static_cast<uint8_t>((m.pinned ? kPinned : 0) | (m.opaque ? kOpaque : 0) |
                           (m.dropped ? kDropped : 0) | (m.drop_due ? kDropDue : 0));
  const fb::BlockFixed fixed(
      m.key.tenant, m.key.context, m.reuse_at_ms, m.expires_at_ms, ToFb(m.key.hash), ToFb(m.parent),
      m.index, m.generation, m.revision, m.reuse, m.nmse, m.mean_bits, m.history_bytes,
      static_cast<uint8_t>(m.quality), static_cast<uint8_t>(m.durability), flags, 0);
  const auto shards_at = b.CreateVectorOfStructs(shards);
  const auto segments_at = b.CreateVectorOfStructs(segments);
  const auto bases_at = bases.empty() ? 0 : b.CreateVector(bases);
  const auto cells_at = cells.empty() ? 0 : b.CreateVectorOfStructs(cells);
  const auto clocks_at = clocks.empty() ? 0 : b.CreateVectorOfStructs(clocks);
  return {
      fb::Body::Block,
      fb::CreateBlock(b, &fixed, shards_at, segments_at, bases_at, cells_at, clocks_at).Union()};
}

Body Build(Builder& b, const ContextRow& c) {
  std::vector<fb::LayerShape> layers;
  for (const LayerShape& l : c.spec.layers)
    layers.emplace_back(static_cast<uint8_t>(l.kind), l.kv_heads, l.q_heads, l.head_dim, l.rope,
                        l.window, l.max_position);
  std::vector<Offset<fb::Rope>> ropes;
  for (const Rope& r : c.spec.ropes)
    ropes.push_back(
        fb::CreateRope(b, static_cast<uint8_t>(r.kind), r.rotary_dim, b.CreateVector(r.inv_freq)));
  const auto model = b.CreateString(c.spec.model);
  const auto revision = b.CreateString(c.spec.revision);
  const auto adapter = b.CreateString(c.spec.adapter);
  const auto layers_at = b.CreateVectorOfStructs(layers);
  const auto ropes_at = b.CreateVector(ropes);
  const auto omega_at = c.omega.empty() ? 0 : b.CreateVector(c.omega);
  return {fb::Body::Context, fb::CreateContext(b, c.tenant, c.context, model, revision, adapter,
                                               static_cast<uint8_t>(c.spec.dtype), c.spec.attend,
                                               c.spec.masks, layers_at, ropes_at, omega_at)
                                 .Union()};
}

Body Build(Builder& b, const BasisRow& r) {
  const auto object = b.CreateVector(r.object);
  return {fb::Body::Basis, fb::CreateBasis(b, r.tenant, r.context, r.name, object).Union()};
}

Body Build(Builder& b, const PriceRow& r) {
  return {fb::Body::Price,
          fb::CreatePrice(b, r.tenant, static_cast<uint8_t>(r.tier), r.log2_price).Union()};
}

Body Build(Builder& b, const LearnerRow& r) {
  const auto state = b.CreateVector(r.state);
  return {fb::Body::Learner,
          fb::CreateLearner(b, r.tenant, r.context, r.layer, r.version, state).Union()};
}

// ---- verified bytes to structs. The verifier has bounded every length by the bytes at hand; what
// the values may be is Validate's.

BlockHash FromFb(const fb::Hash& h) {
  BlockHash out;
  std::memcpy(out.bytes.data(), h.bytes()->data(), out.bytes.size());
  return out;
}

template <typename T, typename Fb, typename Convert>
std::vector<T> Copy(const flatbuffers::Vector<const Fb*>* v, Convert convert) {
  std::vector<T> out;
  if (v == nullptr) return out;
  out.reserve(v->size());
  for (const Fb* element : *v) out.push_back(convert(*element));
  return out;
}

std::vector<uint8_t> Bytes(const flatbuffers::Vector<uint8_t>* v) {
  return v == nullptr ? std::vector<uint8_t>() : std::vector<uint8_t>(v->begin(), v->end());
}

std::string Text(const flatbuffers::String* s) { return s == nullptr ? std::string() : s->str(); }

Result<Row> Read(const fb::Block& b) {
  const fb::BlockFixed& f = *b.fixed();
  BlockMeta m;
  m.key = {f.tenant(), f.context(), FromFb(f.hash())};
  m.parent = FromFb(f.parent());
  m.index = f.index();
  m.generation = f.generation();
  m.revision = f.revision();
  m.quality = static_cast<QualityClass>(f.quality());
  m.durability = static_cast<Durability>(f.durability());
  m.pinned = (f.flags() & kPinned) != 0;
  m.opaque = (f.flags() & kOpaque) != 0;
  m.dropped = (f.flags() & kDropped) != 0;
  m.drop_due = (f.flags() & kDropDue) != 0;
  m.reuse = f.reuse();
  m.nmse = f.nmse();
  m.mean_bits = f.mean_bits();
  m.reuse_at_ms = f.reuse_at_ms();
  m.expires_at_ms = f.expires_at_ms();
  m.history_bytes = f.history_bytes();
  m.shards = Copy<Shard>(b.shards(), [](const fb::Shard& s) {
    return Shard{s.layer_begin(), s.layer_end(), s.head_begin(), s.head_end()};
  });
  const uint32_t bases = b.bases() == nullptr ? 0 : b.bases()->size();
  // The verifier aligns a vector's length; these elements want more.
  if (bases != 0 && reinterpret_cast<uintptr_t>(b.bases()->Data()) % alignof(BasisName) != 0)
    return Invalid("block.bases: misaligned");
  bool dangling = false;
  m.segments = Copy<SegmentEntry>(b.segments(), [&](const fb::Segment& s) {
    dangling |= s.basis() > bases;
    const BasisName basis =
        s.basis() == 0 || s.basis() > bases ? 0 : b.bases()->Get(s.basis() - 1u);
    return SegmentEntry{s.layer(), s.head_begin(), s.kv_heads(), basis, s.bytes()};
  });
  if (dangling) return Invalid("segment.basis: beyond block.bases");
  m.cells = Copy<Cell>(b.cells(), [](const fb::Cell& c) {
    return Cell{c.k_kind(),   c.v_kind(),        c.log2_w_k(),
                c.log2_w_v(), c.log2_energy_k(), c.log2_energy_v()};
  });
  m.clocks = Copy<LayerClock>(b.clocks(), [](const fb::LayerClock& c) {
    return LayerClock{c.tokens(), c.reports()};
  });
  return Row(std::move(m));
}

Result<Row> Read(const fb::Context& c) {
  ContextRow out;
  out.tenant = c.tenant();
  out.context = c.context();
  out.spec.model = Text(c.model());
  out.spec.revision = Text(c.revision());
  out.spec.adapter = Text(c.adapter());
  out.spec.dtype = static_cast<DType>(c.dtype());
  out.spec.attend = c.attend();
  out.spec.masks = c.masks();
  out.spec.layers = Copy<LayerShape>(c.layers(), [](const fb::LayerShape& l) {
    return LayerShape{static_cast<LayerKind>(l.kind()),
                      l.kv_heads(),
                      l.q_heads(),
                      l.head_dim(),
                      l.rope(),
                      l.window(),
                      l.max_position()};
  });
  if (c.ropes() != nullptr) {
    for (const fb::Rope* r : *c.ropes()) {
      Rope rope{static_cast<RopeKind>(r->kind()), r->rotary_dim(), {}};
      if (r->inv_freq() != nullptr)
        rope.inv_freq.assign(r->inv_freq()->begin(), r->inv_freq()->end());
      out.spec.ropes.push_back(std::move(rope));
    }
  }
  if (c.omega() != nullptr) out.omega.assign(c.omega()->begin(), c.omega()->end());
  return Row(std::move(out));
}

Result<Row> Read(const fb::Basis& b) {
  return Row(BasisRow{b.tenant(), b.context(), b.name(), Bytes(b.object())});
}

Result<Row> Read(const fb::Price& p) {
  return Row(PriceRow{p.tenant(), static_cast<Tier>(p.tier()), p.log2_price()});
}

Result<Row> Read(const fb::Learner& l) {
  return Row(LearnerRow{l.tenant(), l.context(), l.layer(), l.version(), Bytes(l.state())});
}

Result<Row> ReadBody(const fb::Record& record) {
  if (record.body() == nullptr) return Invalid("record.body: missing");
  switch (record.body_type()) {
    case fb::Body::Block:
      return Read(*record.body_as_Block());
    case fb::Body::Context:
      return Read(*record.body_as_Context());
    case fb::Body::Basis:
      return Read(*record.body_as_Basis());
    case fb::Body::Price:
      return Read(*record.body_as_Price());
    case fb::Body::Learner:
      return Read(*record.body_as_Learner());
    case fb::Body::NONE:
      return Invalid("record.body: none");
  }
  return Unsupported("record.body: a kind of row from a later version");
}

}  // namespace

bool ContextRow::operator==(const ContextRow& o) const {
  return tenant == o.tenant && context == o.context && spec.ropes == o.spec.ropes &&
         omega == o.omega && CanonicalBytes(spec) == CanonicalBytes(o.spec);
}

std::vector<uint8_t> Serialize(const Row& row) {
  Builder builder(1024);
  const Body body = std::visit([&](const auto& r) { return Build(builder, r); }, row);
  fb::FinishRecordBuffer(builder, fb::CreateRecord(builder, kVersion, body.type, body.at));
  return {builder.GetBufferPointer(), builder.GetBufferPointer() + builder.GetSize()};
}

Result<Row> Parse(std::span<const uint8_t> bytes) {
  if (bytes.size() > kMaxRow) return TooLarge("record: above 64 MiB");
  if (bytes.size() < 12) return Invalid("record: too short");
  // FlatBuffers reads scalars in place: they must be aligned, and nobody may change them meanwhile.
  std::vector<uint64_t> aligned((bytes.size() + 7) / 8);
  std::memcpy(aligned.data(), bytes.data(), bytes.size());
  const auto* data = reinterpret_cast<const uint8_t*>(aligned.data());
  if (!fb::RecordBufferHasIdentifier(data)) return Invalid("record: not a record (identifier)");
  flatbuffers::Verifier verifier(data, bytes.size(), kMaxTableDepth, kMaxTables);
  if (!fb::VerifyRecordBuffer(verifier)) return Invalid("record: damaged");
  const fb::Record& record = *fb::GetRecord(data);
  if (record.version() == 0) return Invalid("record.version: 0");
  if (record.version() > kVersion)
    return Unsupported("record.version: " + std::to_string(record.version()) +
                       " is from the future");
  auto row = ReadBody(record);
  if (!row.ok()) return row;
  DYNA_RETURN_IF_ERROR(Validate(*row));
  return row;
}

}  // namespace dyna::record
