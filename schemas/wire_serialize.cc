// Plain structs to FlatBuffers. The bytes are a function of the message alone, with any compiler:
// parts are made in statements, never among the arguments of one call, whose order is free.
#include <flatbuffers/flatbuffers.h>
#include <cstring>

#include "schemas/wire.h"
#include "schemas/wire_bounds.h"
#include "wire_generated.h"

namespace dyna::wire {
namespace {

using flatbuffers::FlatBufferBuilder;
using flatbuffers::Offset;
template <typename T>
using VectorOf = Offset<flatbuffers::Vector<T>>;

template <typename E>
uint8_t U8(E e) {
  return static_cast<uint8_t>(e);
}

static_assert(sizeof(fb::Hash) == sizeof(BlockHash) && alignof(fb::Hash) == 1);
const fb::Hash* Hash(const BlockHash& h) {
  return reinterpret_cast<const fb::Hash*>(h.bytes.data());
}
VectorOf<const fb::Hash*> Hashes(FlatBufferBuilder& b, const std::vector<BlockHash>& hashes) {
  return b.CreateVectorOfStructs(reinterpret_cast<const fb::Hash*>(hashes.data()), hashes.size());
}

fb::Shard ToFb(const Shard& s) { return {s.layer_begin, s.layer_end, s.head_begin, s.head_end}; }

// Messages of a Status may quote what a client sent: made printable and short here, so that a
// reply always passes the peer's door.
Offset<fb::Status> ToFb(FlatBufferBuilder& b, const Status& s) {
  std::string text(s.message().substr(0, kMaxText));
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  const auto message = text.empty() ? 0 : b.CreateString(text);
  return fb::CreateStatus(b, U8(s.code()), s.retry_after_ms(), message);
}

VectorOf<const fb::SegmentStatus*> ToFb(FlatBufferBuilder& b, const std::vector<SegmentStatus>& v) {
  return b.CreateVectorOfStructs<fb::SegmentStatus>(
      v.size(), [&](size_t i, fb::SegmentStatus* out) {
        *out = fb::SegmentStatus(v[i].nmse, v[i].bytes, U8(v[i].status));
      });
}

// Absent when it says nothing (region 0): every byte counts beside a payload over UCX.
Offset<fb::Layout> ToFb(FlatBufferBuilder& b, const Layout& l) {
  const auto k = l.k_offsets.empty() ? 0 : b.CreateVector(l.k_offsets);
  const auto v = l.v_offsets.empty() ? 0 : b.CreateVector(l.v_offsets);
  return fb::CreateLayout(b, l.region, U8(l.dtype), l.k_token_stride, l.k_head_stride,
                          l.v_token_stride, l.v_head_stride, k, v);
}

auto Build(FlatBufferBuilder& b, const Hello& m) {
  const auto name = b.CreateString(m.client_name);
  const auto token = b.CreateString(m.token);
  return fb::CreateHello(b, m.version, m.features, name, token, b.CreateVector(m.ucx_address));
}
auto Build(FlatBufferBuilder& b, const HelloReply& m) {
  const auto status = ToFb(b, m.status);
  const auto* token = reinterpret_cast<const fb::Token*>(m.session_token.data());
  const auto address = b.CreateVector(m.ucx_address);
  return fb::CreateHelloReply(b, status, m.version, m.features, m.instance_id, token,
                              m.request_credits, m.byte_credits, address,
                              b.CreateString(m.server_version));
}
auto Build(FlatBufferBuilder& b, const StatusReply& m) {
  return fb::CreateStatusReply(b, ToFb(b, m.status));
}
auto Build(FlatBufferBuilder& b, const OpenContext& m) {
  const ContextSpec& s = m.spec;
  std::vector<Offset<fb::Rope>> ropes;
  for (const Rope& r : s.ropes)
    ropes.push_back(fb::CreateRope(b, U8(r.kind), r.rotary_dim, b.CreateVector(r.inv_freq)));
  const auto layers =
      b.CreateVectorOfStructs<fb::LayerShape>(s.layers.size(), [&](size_t i, fb::LayerShape* out) {
        const LayerShape& l = s.layers[i];
        *out = fb::LayerShape(l.window, l.max_position, l.kv_heads, l.q_heads, l.head_dim, l.rope,
                              U8(l.kind));
      });
  const auto model = b.CreateString(s.model);
  const auto revision = b.CreateString(s.revision);
  const auto adapter = b.CreateString(s.adapter);
  return fb::CreateOpenContext(b, model, revision, adapter, U8(s.dtype), s.attend, s.masks, layers,
                               b.CreateVector(ropes));
}
auto Build(FlatBufferBuilder& b, const OpenContextReply& m) {
  return fb::CreateOpenContextReply(b, ToFb(b, m.status), m.context, m.created);
}
auto Build(FlatBufferBuilder& b, const RegisterRegion& m) {
  if (m.kind == RegionKind::kHost) return fb::CreateRegisterRegion(b, m.size);
  const auto handle = b.CreateVector(m.handle);
  return fb::CreateRegisterRegion(b, m.size, U8(m.kind),
                                  reinterpret_cast<const fb::DeviceId*>(m.device.data()), handle,
                                  m.offset);
}
auto Build(FlatBufferBuilder& b, const RegisterRegionReply& m) {
  return fb::CreateRegisterRegionReply(b, ToFb(b, m.status), m.region);
}
auto Build(FlatBufferBuilder& b, const DeregisterRegion& m) {
  return fb::CreateDeregisterRegion(b, m.region);
}
auto Build(FlatBufferBuilder& b, const Lookup& m) {
  const fb::Shard shard = ToFb(m.shard);
  return fb::CreateLookup(b, m.context, &shard, Hashes(b, m.hashes), U8(m.min_quality), m.max_nmse,
                          m.lease, m.ttl_ms);
}
auto Build(FlatBufferBuilder& b, const LookupReply& m) {
  const auto status = ToFb(b, m.status);
  const auto hits =
      b.CreateVectorOfStructs<fb::LookupHit>(m.hits.size(), [&](size_t i, fb::LookupHit* out) {
        const LookupHit& h = m.hits[i];
        *out = fb::LookupHit(h.nmse, h.mean_bits, h.bytes, U8(h.status), U8(h.tier));
      });
  return fb::CreateLookupReply(b, status, m.lease, m.run, m.ttl_ms, hits);
}
auto Build(FlatBufferBuilder& b, const ReleaseLease& m) {
  return fb::CreateReleaseLease(b, m.lease);
}
auto Build(FlatBufferBuilder& b, const Put& m) {
  const fb::Shard shard = ToFb(m.shard);
  const auto hashes = Hashes(b, m.hashes);
  const auto layout = ToFb(b, m.layout);
  return fb::CreatePut(b, m.context, &shard, m.layer_begin, m.layer_count,
                       m.parent.IsZero() ? nullptr : Hash(m.parent), m.first_index, hashes,
                       U8(m.quality), U8(m.durability), m.ttl_ms, layout);
}
auto Build(FlatBufferBuilder& b, const PutReply& m) {
  const auto status = ToFb(b, m.status);
  return fb::CreatePutReply(b, status, ToFb(b, m.segments));
}
auto Build(FlatBufferBuilder& b, const Fetch& m) {
  const auto layout = ToFb(b, m.layout);
  return fb::CreateFetch(b, m.context, m.lease, m.head_begin, m.head_end, m.layer_begin,
                         m.layer_count, m.block_begin, m.block_count, U8(m.form), m.want_masks,
                         layout);
}
auto Build(FlatBufferBuilder& b, const FetchReply& m) {
  const auto status = ToFb(b, m.status);
  const auto segments = ToFb(b, m.segments);
  const auto bases = m.bases.empty() ? 0 : b.CreateVector(m.bases);
  const auto live = m.live.empty() ? 0 : b.CreateVector(m.live);
  static_assert(sizeof(Tier) == 1);
  const auto tiers =
      b.CreateVector(reinterpret_cast<const uint8_t*>(m.tiers.data()), m.tiers.size());
  return fb::CreateFetchReply(b, status, segments, bases, live, tiers);
}
auto Build(FlatBufferBuilder& b, const Report& m) {
  return fb::CreateReport(b, m.context, U8(m.kind), Hash(m.leaf), m.layer_begin, m.layer_count,
                          m.head_begin, m.head_end, m.first_query_position, m.queries, m.advance,
                          U8(m.dtype), m.has_lse);
}
auto Build(FlatBufferBuilder& b, const Delete& m) {
  return fb::CreateDelete(b, m.context, Hashes(b, m.hashes));
}
auto Build(FlatBufferBuilder& b, const Clear& m) { return fb::CreateClear(b, m.context); }
auto Build(FlatBufferBuilder& b, const Pin& m) {
  return fb::CreatePin(b, m.context, Hashes(b, m.hashes), m.pinned, m.ttl_ms);
}
auto Build(FlatBufferBuilder& b, const CountReply& m) {
  return fb::CreateCountReply(b, ToFb(b, m.status), m.count);
}
auto Build(FlatBufferBuilder& b, const GetBasis& m) {
  return fb::CreateGetBasis(b, m.context, b.CreateVector(m.names));
}
auto Build(FlatBufferBuilder& b, const GetBasisReply& m) {
  const auto status = ToFb(b, m.status);
  return fb::CreateGetBasisReply(b, status, b.CreateVector(m.sizes));
}
auto Build(FlatBufferBuilder& b, const PutOpaque& m) {
  return fb::CreatePutOpaque(b, m.context, Hash(m.key), U8(m.durability), m.ttl_ms);
}
auto Build(FlatBufferBuilder& b, const GetOpaque& m) {
  return fb::CreateGetOpaque(b, m.context, Hash(m.key));
}
auto Build(FlatBufferBuilder& b, const OpaqueReply& m) {
  return fb::CreateOpaqueReply(b, ToFb(b, m.status), U8(m.tier));
}
auto Build(FlatBufferBuilder& b, const Query& m) {
  return fb::CreateQuery(b, U8(m.kind), m.context, Hashes(b, m.hashes), m.limit);
}
auto Build(FlatBufferBuilder& b, const QueryReply& m) {
  return fb::CreateQueryReply(b, ToFb(b, m.status));
}
auto Build(FlatBufferBuilder& b, const SetBudget& m) { return fb::CreateSetBudget(b, m.bytes); }
auto Build(FlatBufferBuilder& b, const BankDrop& m) {
  return fb::CreateBankDrop(b, m.context, Hashes(b, m.hashes));
}
auto Build(FlatBufferBuilder& b, const Goaway& m) {
  return fb::CreateGoaway(b, b.CreateString(m.reason));
}
auto Build(FlatBufferBuilder& b, const LeaseRevoked& m) {
  return fb::CreateLeaseRevoked(b, m.lease);
}

}  // namespace

std::vector<uint8_t> Serialize(const Message& message) {
  FlatBufferBuilder b(512);
  const auto body = std::visit([&](const auto& m) { return Build(b, m).Union(); }, message);
  fb::FinishMessageBuffer(
      b, fb::CreateMessage(b, kVersion, static_cast<fb::Body>(TypeOf(message)), body));
  return {b.GetBufferPointer(), b.GetBufferPointer() + b.GetSize()};
}

}  // namespace dyna::wire
