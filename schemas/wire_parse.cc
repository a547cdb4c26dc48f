// The one door to the bytes of a message: size, verifier, version, then every bound that needs no
// knowledge of the receiver. Nothing here trusts a field before it was checked.
#include <flatbuffers/flatbuffers.h>
#include <cstring>

#include "schemas/wire.h"
#include "schemas/wire_bounds.h"
#include "schemas/wire_door.h"
#include "wire_generated.h"

namespace dyna::wire {
namespace {

BlockHash Hash(const fb::Hash* h) {
  BlockHash out;
  if (h != nullptr) std::memcpy(out.bytes.data(), h->bytes()->data(), out.bytes.size());
  return out;
}
BlockHash NonZeroHash(const fb::Hash* h, const char* what, Door& door) {
  const BlockHash out = Hash(h);
  door.Require(!out.IsZero(), what);
  return out;
}
std::vector<BlockHash> Hashes(const flatbuffers::Vector<const fb::Hash*>* v, size_t min,
                              Door& door) {
  const size_t n = Size(v);
  door.Require(n >= min, "hashes: none given");
  if (!door.Require(n <= kMaxBlocksPerMessage, "hashes: more than 4096", StatusCode::kTooLarge))
    return {};
  std::vector<BlockHash> out(n);
  for (size_t i = 0; i < n; ++i) {
    out[i] = Hash(v->Get(static_cast<uint32_t>(i)));
    door.Require(!out[i].IsZero(), "hashes: one is all zero");
  }
  return out;
}

Status ReadStatus(const fb::Status* s, Door& door) {
  if (s == nullptr) return {};
  std::string message =
      Text(s->message(), kMaxText, "status.message: not short, printable text", door);
  return Status(Code(s->code(), door), std::move(message), s->retry_after_ms());
}

uint64_t Context(uint64_t context, Door& door) {
  door.Require(context != 0, "context: 0");
  return context;
}

Shard ReadShard(const fb::Shard* s, Door& door) {
  if (!door.Require(s != nullptr, "shard: missing")) return {};
  door.Require(s->layer_begin() < s->layer_end() && s->layer_end() <= kMaxLayers,
               "shard: layer range is empty or ends above 1024");
  door.Require(s->head_begin() < s->head_end() && s->head_end() <= kMaxKvHeads,
               "shard: head range is empty or ends above 1024");
  return {s->layer_begin(), s->layer_end(), s->head_begin(), s->head_end()};
}

void CheckLayers(uint32_t begin, uint32_t count, Door& door) {
  door.Require(count > 0 && begin + count <= kMaxLayers,
               "layer_begin, layer_count: empty or beyond layer 1024");
}
void CheckHeads(uint32_t begin, uint32_t end, Door& door) {
  door.Require(begin < end && end <= kMaxKvHeads, "head range is empty or ends above 1024");
}

Layout ReadLayout(const fb::Layout* l, size_t segments, Door& door) {
  Layout out;
  if (!door.Require(l != nullptr, "layout: missing")) return out;
  out.region = l->region();
  out.dtype = DTypeOf(l->dtype(), door);
  out.k_token_stride = l->k_token_stride();
  out.k_head_stride = l->k_head_stride();
  out.v_token_stride = l->v_token_stride();
  out.v_head_stride = l->v_head_stride();
  const bool strided = out.k_token_stride != 0 || out.k_head_stride != 0 ||
                       out.v_token_stride != 0 || out.v_head_stride != 0;
  if (out.region == 0) {
    door.Require(!strided && Size(l->k_offsets()) == 0 && Size(l->v_offsets()) == 0,
                 "layout: strides or offsets without a region");
    return out;
  }
  door.Require(out.k_token_stride != 0 && out.v_token_stride != 0, "layout: a token stride is 0");
  for (int64_t s : {out.k_token_stride, out.k_head_stride, out.v_token_stride, out.v_head_stride})
    door.Require(s >= -kMaxStride && s <= kMaxStride, "layout: a stride is beyond 2^40");
  door.Require(Size(l->k_offsets()) == segments && Size(l->v_offsets()) == segments,
               "layout: not one k and one v offset a segment");
  out.k_offsets =
      Copy<uint64_t>(l->k_offsets(), 0, kMaxSegmentsPerMessage, "layout.k_offsets", door);
  out.v_offsets =
      Copy<uint64_t>(l->v_offsets(), 0, kMaxSegmentsPerMessage, "layout.v_offsets", door);
  for (const auto* offsets : {&out.k_offsets, &out.v_offsets})
    for (uint64_t o : *offsets) door.Require(o <= kMaxOffset, "layout: an offset is beyond 2^46");
  return out;
}

std::vector<SegmentStatus> ReadSegments(const flatbuffers::Vector<const fb::SegmentStatus*>* v,
                                        Door& door) {
  const size_t n = Size(v);
  if (!door.Require(n <= kMaxSegmentsPerMessage, "segments: more than 16384",
                    StatusCode::kTooLarge))
    return {};
  std::vector<SegmentStatus> out(n);
  for (size_t i = 0; i < n; ++i) {
    const fb::SegmentStatus& s = *v->Get(static_cast<uint32_t>(i));
    out[i] = {Code(s.status(), door), s.nmse(), s.bytes()};
    door.Require(Finite(s.nmse()), "segments: nmse is not finite");
  }
  return out;
}

Message Read(const fb::Hello& m, Door& door) {
  return Hello{m.version(), m.features(),
               Text(m.client_name(), kMaxName, "client_name: not <= 64 printable bytes", door),
               Text(m.token(), kMaxToken, "token: not <= 4096 printable bytes", door),
               Copy<uint8_t>(m.ucx_address(), 0, kMaxUcxAddress, "ucx_address: above 4096", door)};
}
Message Read(const fb::HelloReply& m, Door& door) {
  HelloReply out{ReadStatus(m.status(), door),
                 m.version(),
                 m.features(),
                 m.instance_id(),
                 {},
                 m.request_credits(),
                 m.byte_credits(),
                 Copy<uint8_t>(m.ucx_address(), 0, kMaxUcxAddress, "ucx_address: above 4096", door),
                 Text(m.server_version(), kMaxName, "server_version: not short text", door)};
  if (m.session_token() != nullptr)
    std::memcpy(out.session_token.data(), m.session_token()->bytes()->data(),
                out.session_token.size());
  return out;
}
Message Read(const fb::StatusReply& m, Door& door) {
  return StatusReply{ReadStatus(m.status(), door)};
}
Message Read(const fb::OpenContext& m, Door& door) {
  OpenContext out;
  ContextSpec& s = out.spec;
  s.model = Text(m.model(), 256, "model: not 1..256 printable bytes", door);
  s.revision = Text(m.revision(), 256, "revision: not <= 256 printable bytes", door);
  s.adapter = Text(m.adapter(), 256, "adapter: not <= 256 printable bytes", door);
  s.dtype = DTypeOf(m.dtype(), door);
  s.attend = m.attend();
  s.masks = m.masks();
  if (door.Require(Size(m.layers()) <= kMaxLayers, "layers: more than 1024", StatusCode::kTooLarge))
    for (uint32_t i = 0; i < Size(m.layers()); ++i) {
      const fb::LayerShape& l = *m.layers()->Get(i);
      s.layers.push_back({static_cast<LayerKind>(l.kind()), l.kv_heads(), l.q_heads(), l.head_dim(),
                          l.rope(), l.window(), l.max_position()});
    }
  if (door.Require(Size(m.ropes()) <= 16, "ropes: more than 16", StatusCode::kTooLarge))
    for (uint32_t i = 0; i < Size(m.ropes()); ++i) {
      const fb::Rope& r = *m.ropes()->Get(i);
      s.ropes.push_back(
          {static_cast<RopeKind>(r.kind()), r.rotary_dim(),
           Copy<float>(r.inv_freq(), 0, kMaxHeadDim / 2, "inv_freq: above 128", door)});
    }
  door.Take(Validate(s));
  return out;
}
Message Read(const fb::OpenContextReply& m, Door& door) {
  OpenContextReply out{ReadStatus(m.status(), door), m.context(), m.created()};
  if (out.status.ok()) Context(out.context, door);
  return out;
}
Message Read(const fb::RegisterRegion& m, Door& door) {
  door.Require(m.size() > 0, "size: 0");
  door.Require(m.size() <= kMaxRegionBytes, "size: above 2^46", StatusCode::kTooLarge);
  RegisterRegion out;
  out.size = m.size();
  out.kind = Enum(m.kind(), RegionKind::kHost, RegionKind::kDevice, "kind: unknown", door);
  if (out.kind == RegionKind::kHost) {
    door.Require(m.device() == nullptr && Size(m.handle()) == 0 && m.offset() == 0,
                 "kind: of the host, with what names memory of a device");
    return out;
  }
  if (door.Require(m.device() != nullptr, "device: missing"))
    std::memcpy(out.device.data(), m.device()->bytes()->data(), out.device.size());
  out.handle = Copy<uint8_t>(m.handle(), 1, kMaxRegionHandle, "handle: not 1 .. 256 bytes", door);
  door.Require(m.offset() <= kMaxOffset, "offset: beyond 2^46");
  out.offset = m.offset();
  return out;
}
Message Read(const fb::RegisterRegionReply& m, Door& door) {
  RegisterRegionReply out{ReadStatus(m.status(), door), m.region()};
  door.Require(!out.status.ok() || out.region != 0, "region: 0 though OK");
  return out;
}
Message Read(const fb::DeregisterRegion& m, Door& door) {
  door.Require(m.region() != 0, "region: 0");
  return DeregisterRegion{m.region()};
}
Message Read(const fb::Lookup& m, Door& door) {
  door.Require(Finite(m.max_nmse()), "max_nmse: negative or not finite");
  return Lookup{Context(m.context(), door),
                ReadShard(m.shard(), door),
                Hashes(m.hashes(), 1, door),
                QualityOf(m.min_quality(), "min_quality: unknown class", door),
                m.max_nmse(),
                m.lease(),
                m.ttl_ms()};
}
Message Read(const fb::LookupReply& m, Door& door) {
  LookupReply out{ReadStatus(m.status(), door), m.lease(), m.run(), m.ttl_ms(), {}};
  if (!door.Require(Size(m.hits()) <= kMaxBlocksPerMessage, "hits: more than 4096",
                    StatusCode::kTooLarge))
    return out;
  for (uint32_t i = 0; i < Size(m.hits()); ++i) {
    const fb::LookupHit& h = *m.hits()->Get(i);
    door.Require(Finite(h.nmse()) && Finite(h.mean_bits()), "hits: nmse or bits not finite");
    out.hits.push_back(
        {Code(h.status(), door), TierOf(h.tier(), door), h.nmse(), h.mean_bits(), h.bytes()});
  }
  door.Require(out.run <= out.hits.size(), "run: longer than hits");
  return out;
}
Message Read(const fb::ReleaseLease& m, Door& door) {
  door.Require(m.lease() != 0, "lease: 0");
  return ReleaseLease{m.lease()};
}
Message Read(const fb::Put& m, Door& door) {
  Put out;
  out.context = Context(m.context(), door);
  out.shard = ReadShard(m.shard(), door);
  out.layer_begin = m.layer_begin();
  out.layer_count = m.layer_count();
  CheckLayers(out.layer_begin, out.layer_count, door);
  door.Require(out.layer_begin >= out.shard.layer_begin &&
                   out.layer_begin + out.layer_count <= out.shard.layer_end,
               "layer_begin, layer_count: outside the shard's layers");
  out.parent = Hash(m.parent());
  out.first_index = m.first_index();
  out.hashes = Hashes(m.hashes(), 1, door);
  door.Require(out.first_index <= kMaxBlockIndex, "first_index: above 2^25");
  door.Require(out.parent.IsZero() == (out.first_index == 0),
               "parent: must be zero at first_index 0, and only there");
  const size_t segments = out.hashes.size() * out.layer_count;
  if (!door.Require(segments <= kMaxSegmentsPerMessage, "more than 16384 segments",
                    StatusCode::kTooLarge))
    return out;
  out.quality = QualityOf(m.quality(), "quality: unknown class", door);
  out.durability = DurabilityOf(m.durability(), door);
  out.ttl_ms = m.ttl_ms();
  out.layout = ReadLayout(m.layout(), segments, door);
  return out;
}
Message Read(const fb::PutReply& m, Door& door) {
  return PutReply{ReadStatus(m.status(), door), ReadSegments(m.segments(), door)};
}
Message Read(const fb::Fetch& m, Door& door) {
  Fetch out;
  out.context = Context(m.context(), door);
  out.lease = m.lease();
  door.Require(out.lease != 0, "lease: 0");
  out.head_begin = m.head_begin();
  out.head_end = m.head_end();
  CheckHeads(out.head_begin, out.head_end, door);
  out.layer_begin = m.layer_begin();
  out.layer_count = m.layer_count();
  CheckLayers(out.layer_begin, out.layer_count, door);
  out.block_begin = m.block_begin();
  out.block_count = m.block_count();
  const uint64_t end = uint64_t{out.block_begin} + out.block_count;
  door.Require(out.block_count > 0 && end <= kMaxBlocksPerMessage,
               "block_begin, block_count: empty or beyond 4096 blocks");
  const uint64_t segments = uint64_t{out.block_count} * out.layer_count;
  if (!door.Require(segments <= kMaxSegmentsPerMessage, "more than 16384 segments",
                    StatusCode::kTooLarge))
    return out;
  out.form = Enum(m.form(), Form::kDecoded, Form::kAsStored, "form: unknown", door);
  out.want_masks = m.want_masks();
  const uint64_t heads = uint64_t{out.head_end} - out.head_begin;
  door.Require(!out.want_masks || segments * heads <= kMaxMasksPerMessage,
               "want_masks: more than 65536 masks", StatusCode::kTooLarge);
  out.layout = ReadLayout(m.layout(), segments, door);
  door.Require(out.form == Form::kDecoded || out.layout.region == 0,
               "layout: segments as stored come in the payload only");
  return out;
}
Message Read(const fb::FetchReply& m, Door& door) {
  FetchReply out{ReadStatus(m.status(), door),
                 ReadSegments(m.segments(), door),
                 Copy<uint64_t>(m.bases(), 0, kMaxReplyBases, "bases: more than 4096", door),
                 Copy<uint64_t>(m.live(), 0, kMaxMasksPerMessage, "live: more than 65536", door),
                 {}};
  door.Require(Size(m.tiers()) == out.segments.size(), "tiers: not one a segment");
  if (!door.status().ok()) return out;
  for (uint32_t i = 0; i < Size(m.tiers()); ++i)
    out.tiers.push_back(TierOf(m.tiers()->Get(i), door));
  door.Require(
      out.live.empty() || (!out.segments.empty() && out.live.size() % out.segments.size() == 0),
      "live: not a mask a segment and head");
  return out;
}
Message Read(const fb::Report& m, Door& door) {
  Report out{Context(m.context(), door),
             Enum(m.kind(), ReportKind::kQueryWindow, ReportKind::kTileMass, "kind: unknown", door),
             NonZeroHash(m.leaf(), "leaf: zero", door),
             m.layer_begin(),
             m.layer_count(),
             m.head_begin(),
             m.head_end(),
             m.first_query_position(),
             m.queries(),
             m.advance(),
             DTypeOf(m.dtype(), door),
             m.has_lse()};
  CheckLayers(out.layer_begin, out.layer_count, door);
  CheckHeads(out.head_begin, out.head_end, door);
  door.Require(out.first_query_position < 1u << 31, "first_query_position: above 2^31");
  door.Require(DTypeBytes(out.dtype) >= 2, "dtype: statistics come in f32, f16 or bf16");
  if (out.kind == ReportKind::kQueryWindow)
    door.Require(out.queries >= 1 && out.queries <= kMaxWindow, "queries: not in 1..64");
  else
    door.Require(!out.has_lse && out.dtype == DType::kF32, "masses are f32 and bring no has_lse");
  return out;
}
Message Read(const fb::Delete& m, Door& door) {
  return Delete{Context(m.context(), door), Hashes(m.hashes(), 1, door)};
}
Message Read(const fb::Clear& m, Door&) { return Clear{m.context()}; }
Message Read(const fb::Pin& m, Door& door) {
  return Pin{Context(m.context(), door), Hashes(m.hashes(), 1, door), m.pinned(), m.ttl_ms()};
}
Message Read(const fb::CountReply& m, Door& door) {
  return CountReply{ReadStatus(m.status(), door), m.count()};
}
Message Read(const fb::GetBasis& m, Door& door) {
  GetBasis out{Context(m.context(), door),
               Copy<uint64_t>(m.names(), 1, kMaxBasisNames, "names: not 1..64", door)};
  for (BasisName n : out.names) door.Require(n != 0, "names: one is 0");
  return out;
}
Message Read(const fb::GetBasisReply& m, Door& door) {
  return GetBasisReply{ReadStatus(m.status(), door),
                       Copy<uint32_t>(m.sizes(), 0, kMaxBasisNames, "sizes: above 64", door)};
}
Message Read(const fb::PutOpaque& m, Door& door) {
  return PutOpaque{Context(m.context(), door), NonZeroHash(m.key(), "key: zero", door),
                   DurabilityOf(m.durability(), door), m.ttl_ms()};
}
Message Read(const fb::GetOpaque& m, Door& door) {
  return GetOpaque{Context(m.context(), door), NonZeroHash(m.key(), "key: zero", door)};
}
Message Read(const fb::OpaqueReply& m, Door& door) {
  return OpaqueReply{ReadStatus(m.status(), door), TierOf(m.tier(), door)};
}
Message Read(const fb::Query& m, Door& door) {
  door.Require(m.limit() >= 1 && m.limit() <= kMaxQueryRows, "limit: not in 1..1048576");
  return Query{Enum(m.kind(), QueryKind::kStats, QueryKind::kContexts, "kind: unknown", door),
               m.context(), Hashes(m.hashes(), 0, door), m.limit()};
}
Message Read(const fb::QueryReply& m, Door& door) {
  return QueryReply{ReadStatus(m.status(), door)};
}
Message Read(const fb::SetBudget& m, Door&) { return SetBudget{m.bytes()}; }
Message Read(const fb::BankDrop& m, Door& door) {
  return BankDrop{Context(m.context(), door), Hashes(m.hashes(), 0, door)};
}
Message Read(const fb::Goaway& m, Door& door) {
  return Goaway{Text(m.reason(), kMaxText, "reason: not short, printable text", door)};
}
Message Read(const fb::LeaseRevoked& m, Door& door) {
  door.Require(m.lease() != 0, "lease: 0");
  return LeaseRevoked{m.lease()};
}

Message ReadBody(const fb::Message& m, Door& door) {
  switch (m.body_type()) {
#define DYNA_CASE(T) \
  case fb::Body::T:  \
    return Read(*m.body_as_##T(), door)
    DYNA_CASE(Hello);
    DYNA_CASE(HelloReply);
    DYNA_CASE(StatusReply);
    DYNA_CASE(OpenContext);
    DYNA_CASE(OpenContextReply);
    DYNA_CASE(RegisterRegion);
    DYNA_CASE(RegisterRegionReply);
    DYNA_CASE(DeregisterRegion);
    DYNA_CASE(Lookup);
    DYNA_CASE(LookupReply);
    DYNA_CASE(ReleaseLease);
    DYNA_CASE(Put);
    DYNA_CASE(PutReply);
    DYNA_CASE(Fetch);
    DYNA_CASE(FetchReply);
    DYNA_CASE(Report);
    DYNA_CASE(Delete);
    DYNA_CASE(Clear);
    DYNA_CASE(Pin);
    DYNA_CASE(CountReply);
    DYNA_CASE(GetBasis);
    DYNA_CASE(GetBasisReply);
    DYNA_CASE(PutOpaque);
    DYNA_CASE(GetOpaque);
    DYNA_CASE(OpaqueReply);
    DYNA_CASE(Query);
    DYNA_CASE(QueryReply);
    DYNA_CASE(SetBudget);
    DYNA_CASE(BankDrop);
    DYNA_CASE(Goaway);
    DYNA_CASE(LeaseRevoked);
#undef DYNA_CASE
    case fb::Body::NONE:
      break;
  }
  door.Require(false, "body: unknown type", StatusCode::kUnsupported);
  return StatusReply{};
}

}  // namespace

Result<Message> Parse(std::span<const uint8_t> control) {
  if (control.size() > kMaxControl)
    return TooLarge("control: " + std::to_string(control.size()) + " bytes, at most " +
                    std::to_string(kMaxControl));
  if (control.size() < 16) return Invalid("control: too short for a message");
  // FlatBuffers reads scalars in place: the copy gives them their alignment, and nobody else may
  // change it while it is checked.
  std::vector<uint64_t> aligned((control.size() + 7) / 8);
  std::memcpy(aligned.data(), control.data(), control.size());
  const auto* bytes = reinterpret_cast<const uint8_t*>(aligned.data());

  if (!fb::MessageBufferHasIdentifier(bytes)) return Invalid("control: not a DYN1 message");
  flatbuffers::Verifier verifier(bytes, control.size(), kMaxTableDepth, kMaxTables);
  if (!fb::VerifyMessageBuffer(verifier)) return Invalid("control: malformed FlatBuffer");
  const fb::Message& root = *fb::GetMessage(bytes);
  if (root.version() != kVersion)
    return Unsupported("version " + std::to_string(root.version()) + " of the protocol, this is " +
                       std::to_string(kVersion));
  if (root.body_type() > fb::Body::MAX)
    return Unsupported("message type " + std::to_string(static_cast<int>(root.body_type())) +
                       ": unknown here");
  if (root.body_type() == fb::Body::NONE || root.body() == nullptr) return Invalid("body: missing");

  Door door;
  Message message = ReadBody(root, door);
  if (!door.status().ok())
    return Status(door.status().code(), std::string(TypeName(TypeOf(message))) + "." +
                                            std::string(door.status().message()));
  return message;
}

}  // namespace dyna::wire
