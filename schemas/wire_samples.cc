#include "schemas/wire_samples.h"

#include <algorithm>

namespace dyna::wire {
namespace {

struct Draw {
  std::mt19937_64& rng;

  uint64_t Int(uint64_t lo, uint64_t hi) { return lo + rng() % (hi - lo + 1); }
  template <typename T = uint32_t>
  T To(uint64_t lo, uint64_t hi) {
    return static_cast<T>(Int(lo, hi));
  }
  bool Bool() { return rng() & 1; }
  float Float(float hi) { return static_cast<float>(rng() % 10007) / 10007.0f * hi; }
  template <typename E>
  E Enum(E first, E last) {
    return static_cast<E>(Int(static_cast<uint64_t>(first), static_cast<uint64_t>(last)));
  }
  std::string Text(size_t min, size_t max) {
    std::string s(Int(min, max), ' ');
    for (char& c : s) c = static_cast<char>(Int(0x20, 0x7e));
    return s;
  }
  std::vector<uint8_t> Bytes(size_t max) {
    std::vector<uint8_t> v(Int(0, max));
    for (auto& b : v) b = To<uint8_t>(0, 255);
    return v;
  }
  BlockHash Hash() {
    BlockHash h;
    for (auto& b : h.bytes) b = To<uint8_t>(1, 255);
    return h;
  }
  std::vector<BlockHash> Hashes(size_t min, size_t max) {
    std::vector<BlockHash> v(Int(min, max));
    for (auto& h : v) h = Hash();
    return v;
  }
  Status AnyStatus() {
    return Status(Enum(StatusCode::kOk, StatusCode::kInternal), Text(0, 60), To(0, 5000));
  }
  Shard AnyShard() {
    const auto l = To<uint16_t>(0, 60), h = To<uint16_t>(0, 30);
    return {l, To<uint16_t>(l + 1u, 64), h, To<uint16_t>(h + 1u, 32)};
  }
  Layout AnyLayout(size_t segments, bool in_region) {
    Layout l;
    l.dtype = Enum(DType::kF32, DType::kE5m2);
    if (!in_region) return l;
    l.region = To(1, 9);
    l.k_token_stride = To<int64_t>(1, 1u << 20);
    l.v_token_stride = -To<int64_t>(1, 1u << 20);
    l.k_head_stride = To<int64_t>(0, 1u << 20);
    l.v_head_stride = To<int64_t>(0, 1u << 20);
    for (auto* v : {&l.k_offsets, &l.v_offsets})
      for (size_t i = 0; i < segments; ++i) v->push_back(Int(0, uint64_t{1} << 40));
    return l;
  }
  std::vector<SegmentStatus> Segments(size_t n) {
    std::vector<SegmentStatus> v(n);
    for (auto& s : v) s = {Enum(StatusCode::kOk, StatusCode::kInternal), Float(1), To(0, 1u << 20)};
    return v;
  }
  ContextSpec Spec() {
    ContextSpec s;
    s.model = Text(1, 40);
    s.revision = Text(0, 40);
    s.adapter = Text(0, 40);
    s.dtype = Enum(DType::kF32, DType::kE5m2);
    s.attend = Bool();
    s.masks = Bool();
    s.ropes.push_back({});
    Rope rope{Bool() ? RopeKind::kHalf : RopeKind::kInterleaved, 32, {}};
    for (int i = 0; i < 16; ++i) rope.inv_freq.push_back(Float(1));
    s.ropes.push_back(rope);
    for (uint64_t n = Int(1, 40); n > 0; --n) {
      const auto heads = To<uint16_t>(1, 16);
      s.layers.push_back({Bool() ? LayerKind::kFull : LayerKind::kSliding, heads,
                          static_cast<uint16_t>(heads * Int(0, 8)), 64, To<uint16_t>(0, 1),
                          To(1, 4096), To(1, 1u << 20)});
    }
    return s;
  }
};

Put RandomPut(Draw& d) {
  Put m;
  m.context = d.Int(1, ~0ull - 1);
  m.shard = d.AnyShard();
  m.layer_begin = d.To<uint16_t>(m.shard.layer_begin, m.shard.layer_end - 1u);
  m.layer_count = d.To<uint16_t>(1, m.shard.layer_end - m.layer_begin + 0u);
  m.first_index = d.Bool() ? d.To(1, 1000) : 0;
  if (m.first_index != 0) m.parent = d.Hash();
  m.hashes = d.Hashes(1, 20);
  m.quality = d.Enum(QualityClass::kSmall, QualityClass::kExact);
  m.durability = d.Enum(Durability::kVolatile, Durability::kPersistent);
  m.ttl_ms = d.To(0, 100000);
  m.layout = d.AnyLayout(m.hashes.size() * m.layer_count, d.Bool());
  return m;
}

Fetch RandomFetch(Draw& d) {
  const Shard s = d.AnyShard();
  Fetch m;
  m.context = d.Int(1, ~0ull - 1);
  m.lease = d.Int(1, ~0ull - 1);
  m.head_begin = s.head_begin;
  m.head_end = s.head_end;
  m.layer_begin = s.layer_begin;
  m.layer_count = d.To<uint16_t>(1, 8);
  m.block_begin = d.To(0, 100);
  m.block_count = d.To(1, 20);
  m.form = d.Enum(Form::kDecoded, Form::kAsStored);
  m.want_masks = d.Bool();
  m.layout = d.AnyLayout(m.block_count * m.layer_count, m.form == Form::kDecoded && d.Bool());
  return m;
}

RegisterRegion RandomRegisterRegion(Draw& d) {
  RegisterRegion m;
  m.size = d.Int(1, uint64_t{1} << 40);
  if (d.Bool()) return m;
  m.kind = RegionKind::kDevice;
  for (auto& b : m.device) b = d.To<uint8_t>(0, 255);
  m.handle.resize(64);
  for (auto& b : m.handle) b = d.To<uint8_t>(0, 255);
  m.offset = d.Int(0, uint64_t{1} << 40);
  return m;
}

Report RandomReport(Draw& d) {
  const Shard s = d.AnyShard();
  Report m;
  m.context = d.Int(1, ~0ull - 1);
  m.kind = d.Enum(ReportKind::kQueryWindow, ReportKind::kTileMass);
  m.leaf = d.Hash();
  m.layer_begin = s.layer_begin;
  m.layer_count = d.To<uint16_t>(1, 8);
  m.head_begin = s.head_begin;
  m.head_end = s.head_end;
  m.first_query_position = d.To(0, 1u << 30);
  m.queries = d.To<uint16_t>(1, 64);
  m.advance = d.To(0, 4096);
  if (m.kind == ReportKind::kQueryWindow) {
    m.dtype = d.Enum(DType::kF32, DType::kBf16);
    m.has_lse = d.Bool();
  }
  return m;
}

LookupReply RandomLookupReply(Draw& d) {
  LookupReply m{d.AnyStatus(), d.rng(), 0, d.To(0, 60000), {}};
  for (uint64_t n = d.Int(0, 40); n > 0; --n)
    m.hits.push_back({d.Enum(StatusCode::kOk, StatusCode::kPending),
                      d.Enum(Tier::kNone, Tier::kBank), d.Float(1), d.Float(16),
                      d.To(0, 1u << 24)});
  m.run = d.To(0, m.hits.size());
  return m;
}

FetchReply RandomFetchReply(Draw& d) {
  FetchReply m;
  m.status = d.AnyStatus();
  m.segments = d.Segments(d.Int(1, 40));
  for (uint64_t n = d.Int(0, 5); n > 0; --n) m.bases.push_back(d.rng());
  for (uint64_t n = d.Bool() ? m.segments.size() * 3 : 0; n > 0; --n) m.live.push_back(d.rng());
  for (size_t i = 0; i < m.segments.size(); ++i)
    m.tiers.push_back(d.Enum(Tier::kNone, Tier::kBank));
  return m;
}

}  // namespace

Message RandomMessage(Type type, std::mt19937_64& rng) {
  Draw d{rng};
  const uint64_t context = d.Int(1, ~0ull - 1);
  switch (type) {
    case Type::kHello:
      return Hello{kVersion, rng(), d.Text(0, 64), d.Text(0, 90), d.Bytes(200)};
    case Type::kHelloReply: {
      HelloReply m{d.AnyStatus(), kVersion,           rng(),        rng(),        {},
                   d.To(1, 1000), d.Int(1, 1u << 30), d.Bytes(200), d.Text(0, 64)};
      for (auto& b : m.session_token) b = d.To<uint8_t>(0, 255);
      return m;
    }
    case Type::kStatusReply:
      return StatusReply{d.AnyStatus()};
    case Type::kOpenContext:
      return OpenContext{d.Spec()};
    case Type::kOpenContextReply:
      return OpenContextReply{d.AnyStatus(), context, d.Bool()};
    case Type::kRegisterRegion:
      return RandomRegisterRegion(d);
    case Type::kRegisterRegionReply:
      return RegisterRegionReply{d.AnyStatus(), d.To(1, 64)};
    case Type::kDeregisterRegion:
      return DeregisterRegion{d.To(1, 64)};
    case Type::kLookup:
      return Lookup{context,         d.AnyShard(),
                    d.Hashes(1, 40), d.Enum(QualityClass::kSmall, QualityClass::kExact),
                    d.Float(1),      d.Bool(),
                    d.To(0, 100000)};
    case Type::kLookupReply:
      return RandomLookupReply(d);
    case Type::kReleaseLease:
      return ReleaseLease{context};
    case Type::kPut:
      return RandomPut(d);
    case Type::kPutReply:
      return PutReply{d.AnyStatus(), d.Segments(d.Int(0, 40))};
    case Type::kFetch:
      return RandomFetch(d);
    case Type::kFetchReply:
      return RandomFetchReply(d);
    case Type::kReport:
      return RandomReport(d);
    case Type::kDelete:
      return Delete{context, d.Hashes(1, 40)};
    case Type::kClear:
      return Clear{d.Bool() ? context : 0};
    case Type::kPin:
      return Pin{context, d.Hashes(1, 40), d.Bool(), d.To(0, 100000)};
    case Type::kCountReply:
      return CountReply{d.AnyStatus(), rng()};
    case Type::kGetBasis: {
      GetBasis m{context, {}};
      for (uint64_t n = d.Int(1, 64); n > 0; --n) m.names.push_back(d.Int(1, ~0ull - 1));
      return m;
    }
    case Type::kGetBasisReply: {
      GetBasisReply m{d.AnyStatus(), {}};
      for (uint64_t n = d.Int(0, 64); n > 0; --n) m.sizes.push_back(d.To(0, 1u << 20));
      return m;
    }
    case Type::kPutOpaque:
      return PutOpaque{context, d.Hash(), d.Enum(Durability::kVolatile, Durability::kPersistent),
                       d.To(0, 100000)};
    case Type::kGetOpaque:
      return GetOpaque{context, d.Hash()};
    case Type::kOpaqueReply:
      return OpaqueReply{d.AnyStatus(), d.Enum(Tier::kNone, Tier::kBank)};
    case Type::kQuery:
      return Query{d.Enum(QueryKind::kStats, QueryKind::kContexts), context, d.Hashes(0, 20),
                   d.To(1, 4096)};
    case Type::kQueryReply:
      return QueryReply{d.AnyStatus()};
    case Type::kSetBudget:
      return SetBudget{rng()};
    case Type::kBankDrop:
      return BankDrop{context, d.Hashes(0, 20)};
    case Type::kGoaway:
      return Goaway{d.Text(0, 100)};
    case Type::kLeaseRevoked:
      return LeaseRevoked{context};
  }
  return StatusReply{};
}

}  // namespace dyna::wire
