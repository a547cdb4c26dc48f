#include "client/c_types.h"

#include <sys/eventfd.h>

#include <cerrno>
#include <cstring>

#include "client/base/os.h"

namespace dyna::c {
namespace {

// Fields that the caller's version of a struct does not have yet must not be read. There is one
// version so far.
template <typename T>
Status CheckSize(const T* s, const char* name) {
  if (s == nullptr || s->size < sizeof(T))
    return Invalid(std::string(name) + ".size: use DYNA_INIT");
  return {};
}

std::string Text(const char* s) { return s != nullptr ? s : ""; }

std::unique_ptr<dyna_result> Begin(const Status& s) {
  auto out = std::make_unique<dyna_result>();
  out->status = s;
  out->message = s.message();
  return out;
}

dyna_hit ToHit(const wire::LookupHit& h) {
  return {static_cast<dyna_status>(h.status), static_cast<uint8_t>(h.tier), h.nmse, h.mean_bits,
          h.bytes};
}

void AddSegments(dyna_result& out, const std::vector<wire::SegmentStatus>& segments,
                 const std::vector<Tier>& tiers) {
  for (size_t i = 0; i < segments.size(); ++i)
    out.segments.push_back({static_cast<dyna_status>(segments[i].status), segments[i].nmse,
                            segments[i].bytes,
                            i < tiers.size() ? static_cast<uint8_t>(tiers[i]) : uint8_t{0}});
}

}  // namespace

Shard ToShard(const dyna_shard& s) {
  return {s.layer_begin, s.layer_end, s.head_begin, s.head_end};
}

BlockHash ToHash(const dyna_hash* hash) {
  BlockHash out;
  if (hash != nullptr) std::memcpy(out.bytes.data(), hash->bytes, out.bytes.size());
  return out;
}

Result<std::vector<BlockHash>> ToHashes(const dyna_hash* hashes, size_t count) {
  if (hashes == nullptr && count > 0) return Invalid("hashes: null");
  if (count > wire::kMaxSegmentsPerMessage) return TooLarge("hashes: more than 16384");
  std::vector<BlockHash> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = ToHash(&hashes[i]);
  return out;
}

Result<ClientOptions> ToOptions(const dyna_options* o) {
  ClientOptions out;
  if (o == nullptr) return out;
  DYNA_RETURN_IF_ERROR(CheckSize(o, "options"));
  out.endpoint = Text(o->endpoint);
  out.name = Text(o->name);
  out.token = Text(o->token);
  if (o->bulk < DYNA_BULK_AUTO || o->bulk > DYNA_BULK_SOCKET) return Invalid("options.bulk");
  out.bulk = static_cast<Bulk>(o->bulk);
  if (o->deadline_ms > 0) out.deadline = std::chrono::milliseconds(o->deadline_ms);
  if (o->connect_timeout_ms > 0)
    out.connect_timeout = std::chrono::milliseconds(o->connect_timeout_ms);
  if (o->max_calls > 0) out.max_calls = o->max_calls;
  if (o->staging_bytes > 0) out.staging_bytes = o->staging_bytes;
  return out;
}

Result<ContextSpec> ToSpec(const dyna_context_spec& s) {
  DYNA_RETURN_IF_ERROR(CheckSize(&s, "spec"));
  if (s.layer_count > kMaxLayers || (s.layers == nullptr && s.layer_count > 0))
    return Invalid("spec.layers: null, or more than 1024");
  if (s.rope_count > 16 || (s.ropes == nullptr && s.rope_count > 0))
    return Invalid("spec.ropes: null, or more than 16");
  ContextSpec out;
  out.model = Text(s.model);
  out.revision = Text(s.revision);
  out.adapter = Text(s.adapter);
  out.dtype = static_cast<DType>(s.dtype);
  out.attend = s.attend != 0;
  out.masks = s.masks != 0;
  for (size_t i = 0; i < s.layer_count; ++i) {
    const dyna_layer& l = s.layers[i];
    out.layers.push_back({static_cast<LayerKind>(l.kind), l.kv_heads, l.q_heads, l.head_dim, l.rope,
                          l.window, l.max_position});
  }
  for (size_t i = 0; i < s.rope_count; ++i) {
    const dyna_rope& r = s.ropes[i];
    Rope rope{static_cast<RopeKind>(r.kind), r.rotary_dim, {}};
    if (r.inv_freq != nullptr) rope.inv_freq.assign(r.inv_freq, r.inv_freq + r.rotary_dim / 2);
    out.ropes.push_back(std::move(rope));
  }
  if (out.ropes.empty()) out.ropes.emplace_back();
  DYNA_RETURN_IF_ERROR(Validate(out));
  return out;
}

namespace {

Result<KvMemory> AddressesOf(const dyna_kv& m, size_t blocks, size_t layers) {
  const auto dtype = static_cast<DType>(m.dtype);
  if (dtype < DType::kF32 || dtype > DType::kE5m2) return Invalid("memory.dtype: unknown");
  const size_t segments = blocks * layers;
  if (m.k_segments != nullptr || m.v_segments != nullptr) {
    if (m.k_segments == nullptr || m.v_segments == nullptr)
      return Invalid("memory: k_segments without v_segments");
    KvMemory out;
    out.dtype = dtype;
    out.k_token_stride = m.k_token_stride;
    out.k_head_stride = m.k_head_stride;
    out.v_token_stride = m.v_token_stride;
    out.v_head_stride = m.v_head_stride;
    for (size_t s = 0; s < segments; ++s) {
      out.k.push_back(static_cast<std::byte*>(m.k_segments[s]));
      out.v.push_back(static_cast<std::byte*>(m.v_segments[s]));
    }
    return out;
  }
  if (m.k == nullptr || m.v == nullptr) return Invalid("memory: k or v is null");
  return KvMemory::Strided(m.k, m.v, dtype, static_cast<uint32_t>(blocks),
                           static_cast<uint32_t>(layers),
                           {m.k_block_stride, m.k_layer_stride, m.k_token_stride, m.k_head_stride},
                           {m.v_block_stride, m.v_layer_stride, m.v_token_stride, m.v_head_stride});
}

}  // namespace

Result<KvMemory> ToMemory(const dyna_kv& m, size_t blocks, size_t layers, int on_device,
                          void* stream) {
  DYNA_ASSIGN_OR_RETURN(KvMemory out, AddressesOf(m, blocks, layers));
  out.on_device = on_device != 0;
  out.stream = stream;
  return out;
}

std::unique_ptr<dyna_result> ToResult(const PutResult& r) {
  auto out = Begin(r.status);
  AddSegments(*out, r.segments, {});
  return out;
}
std::unique_ptr<dyna_result> ToResult(FetchResult r) {
  auto out = Begin(r.status);
  AddSegments(*out, r.segments, r.tiers);
  out->masks = std::move(r.live);
  return out;
}
std::unique_ptr<dyna_result> ToResult(Result<Lease> r) {
  auto out = Begin(r.status());
  if (!r.ok()) return out;
  for (const auto& h : r->hits()) out->hits.push_back(ToHit(h));
  out->run = r->run();
  out->lease = std::move(*r);
  return out;
}
std::unique_ptr<dyna_result> ToResult(Result<std::vector<wire::LookupHit>> r) {
  auto out = Begin(r.status());
  if (!r.ok()) return out;
  for (const auto& h : *r) out->hits.push_back(ToHit(h));
  while (out->run < out->hits.size() && out->hits[out->run].status == DYNA_OK) ++out->run;
  return out;
}
std::unique_ptr<dyna_result> ToResult(Result<uint64_t> r) {
  auto out = Begin(r.status());
  if (r.ok()) out->count = *r;
  return out;
}
std::unique_ptr<dyna_result> ToResult(Result<OpaqueObject> r) {
  auto out = Begin(r.status());
  if (r.ok()) out->bytes = std::move(r->bytes);
  return out;
}
std::unique_ptr<dyna_result> ToResult(Result<std::string> r) {
  auto out = Begin(r.status());
  if (!r.ok()) return out;
  const auto bytes = std::as_bytes(std::span(*r));
  out->bytes.assign(bytes.begin(), bytes.end());
  return out;
}
std::unique_ptr<dyna_result> ToResult(const Status& s) { return Begin(s); }

Result<std::shared_ptr<CompletionQueue>> CompletionQueue::Create(size_t capacity) {
  if (capacity == 0 || capacity > 1u << 20) return Invalid("capacity: not in 1..1048576");
  UniqueFd fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE));
  if (!fd) return ErrnoStatus("cannot make an eventfd", errno);
  return std::shared_ptr<CompletionQueue>(new CompletionQueue(capacity, std::move(fd)));
}

bool CompletionQueue::Reserve() {
  std::lock_guard lock(mutex_);
  if (reserved_ >= capacity_) return false;
  ++reserved_;
  return true;
}

void CompletionQueue::Cancel() {
  std::lock_guard lock(mutex_);
  --reserved_;
}

void CompletionQueue::Push(uint64_t tag, std::unique_ptr<dyna_result> result) {
  std::lock_guard lock(mutex_);
  ready_.push_back({tag, std::move(result)});
  eventfd_write(fd_.get(), 1);
}

size_t CompletionQueue::Drain(dyna_completion* out, size_t max) {
  std::lock_guard lock(mutex_);
  size_t n = 0;
  for (; n < max && !ready_.empty(); ++n) {
    Entry entry = std::move(ready_.front());
    ready_.pop_front();
    eventfd_t one;
    eventfd_read(fd_.get(), &one);
    --reserved_;
    const auto status = static_cast<dyna_status>(entry.result->status.code());
    out[n] = {entry.tag, status, entry.result.release()};
  }
  return n;
}

}  // namespace dyna::c
