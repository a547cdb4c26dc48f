// dynacompress.h over client.h. Nothing is thrown across the interface.
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#include "client/base/block_hash.h"
#include "client/c_types.h"

namespace {

using namespace dyna;  // NOLINT: this file is the edge between the two

thread_local std::string last_error;

dyna_status Answer(const Status& s) {
  if (!s.ok()) last_error = s.message();
  return static_cast<dyna_status>(s.code());
}

// `out` is null until there is a result, also when this fails early: the caller frees it either
// way.
template <typename F>
dyna_status Guarded(dyna_result** out, F f) {
  if (out != nullptr) *out = nullptr;
  try {
    return f();
  } catch (const std::exception& e) {
    return Answer(Status(StatusCode::kTooLarge, e.what()));
  }
}
template <typename F>
dyna_status Guarded(F f) {
  return Guarded(nullptr, std::move(f));
}
#define DYNA_C_ASSIGN(lhs, expr)                                                          \
  auto DYNA_CONCAT(r_, __LINE__) = (expr);                                                \
  if (!DYNA_CONCAT(r_, __LINE__).ok()) return Answer(DYNA_CONCAT(r_, __LINE__).status()); \
  lhs = std::move(*DYNA_CONCAT(r_, __LINE__))

// The one way that calls run: `start` begins an asynchronous one. Without a queue this waits.
template <typename T, typename Start>
dyna_status Run(dyna_queue* queue, uint64_t tag, dyna_result** out, Start start) {
  if (queue != nullptr) {
    auto q = queue->queue;
    if (!q->Reserve())
      return Answer(Status(StatusCode::kRetry, "the completion queue is full: drain it"));
    start([q, tag](T value) { q->Push(tag, c::ToResult(std::move(value))); });
    return DYNA_OK;
  }
  std::mutex mutex;
  std::condition_variable ready;
  std::unique_ptr<dyna_result> result;
  start([&](T value) {
    auto made = c::ToResult(std::move(value));
    std::lock_guard lock(mutex);
    result = std::move(made);
    ready.notify_one();
  });
  std::unique_lock lock(mutex);
  ready.wait(lock, [&] { return result != nullptr; });
  const dyna_status status = Answer(result->status);
  if (out != nullptr) *out = result.release();
  return status;
}

// For calls that client.h has in their blocking form only.
template <typename T>
dyna_status Finish(T value, dyna_result** out) {
  auto result = c::ToResult(std::move(value));
  const dyna_status status = Answer(result->status);
  if (out != nullptr) *out = result.release();
  return status;
}

dyna_status Null(const char* what) { return Answer(Invalid(std::string(what) + ": null")); }

std::chrono::milliseconds Ms(uint32_t ms) { return std::chrono::milliseconds(ms); }

dyna_status Put(dyna_context* context, const dyna_put_request* given, dyna_queue* queue,
                uint64_t tag, dyna_result** out) {
  if (context == nullptr || given == nullptr) return Null("context or request");
  DYNA_C_ASSIGN(const dyna_put_request whole,
                c::Whole(given, offsetof(dyna_put_request, on_device)));
  const dyna_put_request* r = &whole;
  PutRequest put;
  put.shard = c::ToShard(r->shard);
  if (put.shard.layer_end == 0) put.shard = context->context->whole();
  // Before its layers say how much of the caller's arrays is read.
  if (Status s = Validate(put.shard, context->context->spec()); !s.ok()) return Answer(s);
  put.layer_begin = r->layer_begin;
  put.layer_count = r->layer_count;
  if (put.layer_count == 0) {
    put.layer_begin = put.shard.layer_begin;
    put.layer_count = static_cast<uint16_t>(put.shard.layer_end - put.shard.layer_begin);
  }
  put.parent = c::ToHash(r->parent);
  put.first_index = r->first_index;
  DYNA_C_ASSIGN(put.hashes, c::ToHashes(r->hashes, r->hash_count));
  DYNA_C_ASSIGN(put.source,
                c::ToMemory(r->source, r->hash_count, put.layer_count, r->on_device, r->stream));
  if (r->quality != 0) put.quality = static_cast<QualityClass>(r->quality);
  put.durability = r->persistent ? Durability::kPersistent : Durability::kVolatile;
  put.ttl = Ms(r->ttl_ms);
  put.deadline = Ms(r->deadline_ms);
  return Run<PutResult>(queue, tag, out, [&](Done<PutResult> done) {
    context->context->PutAsync(std::move(put), std::move(done));
  });
}

dyna_status LookUp(dyna_context* context, const dyna_lookup_request* r, dyna_queue* queue,
                   uint64_t tag, dyna_result** out) {
  if (context == nullptr || r == nullptr) return Null("context or request");
  if (r->size < sizeof *r) return Answer(Invalid("request.size: use DYNA_INIT"));
  LookupRequest lookup;
  lookup.shard = c::ToShard(r->shard);
  DYNA_C_ASSIGN(lookup.hashes, c::ToHashes(r->hashes, r->hash_count));
  if (r->min_quality != 0) lookup.min_quality = static_cast<QualityClass>(r->min_quality);
  lookup.max_nmse = r->max_nmse;
  lookup.ttl = Ms(r->ttl_ms);
  lookup.deadline = Ms(r->deadline_ms);
  if (r->no_lease)
    return Run<Result<std::vector<wire::LookupHit>>>(queue, tag, out, [&](auto done) {
      context->context->ExistsAsync(std::move(lookup), std::move(done));
    });
  return Run<Result<Lease>>(queue, tag, out, [&](Done<Result<Lease>> done) {
    context->context->LookupAsync(std::move(lookup), std::move(done));
  });
}

dyna_status Fetch(dyna_context* context, const dyna_lease* lease, const dyna_fetch_request* given,
                  dyna_queue* queue, uint64_t tag, dyna_result** out) {
  if (context == nullptr || lease == nullptr || given == nullptr)
    return Null("context, lease or request");
  DYNA_C_ASSIGN(const dyna_fetch_request whole,
                c::Whole(given, offsetof(dyna_fetch_request, on_device)));
  const dyna_fetch_request* r = &whole;
  const uint32_t run = lease->lease.run();
  FetchRequest fetch;
  fetch.layer_begin = r->layer_begin;
  fetch.layer_count = r->layer_count;
  const Shard shard = lease->lease.shard();
  if (fetch.layer_count == 0) {
    fetch.layer_begin = shard.layer_begin;
    fetch.layer_count = static_cast<uint16_t>(shard.layer_end - shard.layer_begin);
  }
  fetch.head_begin = r->head_begin;
  fetch.head_end = r->head_end;
  fetch.block_begin = r->block_begin;
  fetch.block_count =
      r->block_count != 0 ? r->block_count : (run > r->block_begin ? run - r->block_begin : 0);
  if (fetch.block_count > run) return Answer(Invalid("block_count: beyond the lease's run"));
  DYNA_C_ASSIGN(fetch.target, c::ToMemory(r->target, fetch.block_count, fetch.layer_count,
                                          r->on_device, r->stream));
  fetch.form = r->as_stored ? wire::Form::kAsStored : wire::Form::kDecoded;
  fetch.want_masks = r->want_masks != 0;
  fetch.deadline = Ms(r->deadline_ms);
  return Run<FetchResult>(queue, tag, out, [&](Done<FetchResult> done) {
    context->context->FetchAsync(lease->lease, std::move(fetch), std::move(done));
  });
}

dyna_status Report(dyna_context* context, const dyna_report_request* r, dyna_queue* queue,
                   uint64_t tag) {
  if (context == nullptr || r == nullptr || r->data == nullptr) return Null("context or data");
  if (r->size < sizeof *r) return Answer(Invalid("request.size: use DYNA_INIT"));
  ReportRequest report;
  report.report.kind = static_cast<wire::ReportKind>(r->kind);
  report.report.leaf = c::ToHash(&r->leaf);
  report.report.layer_begin = r->layer_begin;
  report.report.layer_count = r->layer_count;
  report.report.head_begin = r->head_begin;
  report.report.head_end = r->head_end;
  report.report.first_query_position = r->first_query_position;
  report.report.queries = r->queries;
  report.report.advance = r->advance;
  if (r->dtype != 0) report.report.dtype = static_cast<DType>(r->dtype);
  report.report.has_lse = r->has_lse != 0;
  report.data = {static_cast<const std::byte*>(r->data), r->data_bytes};
  report.deadline = Ms(r->deadline_ms);
  return Run<Status>(queue, tag, nullptr, [&](Done<Status> done) {
    context->context->ReportAsync(report, std::move(done));
  });
}

}  // namespace

extern "C" {

const char* dyna_status_name(dyna_status s) {
  return StatusName(static_cast<StatusCode>(s)).data();  // names are literals
}
const char* dyna_last_error(void) { return last_error.c_str(); }

dyna_status dyna_connect(const dyna_options* options, dyna_client** out) {
  return Guarded([&] {
    if (out == nullptr) return Null("client");
    *out = nullptr;
    DYNA_C_ASSIGN(ClientOptions o, c::ToOptions(options));
    DYNA_C_ASSIGN(auto client, Client::Connect(std::move(o)));
    *out = new dyna_client{std::move(client)};
    return DYNA_OK;
  });
}
void dyna_close(dyna_client* client) { delete client; }

dyna_status dyna_region_allocate(dyna_client* client, uint64_t bytes, dyna_region** out) {
  return Guarded([&] {
    if (client == nullptr || out == nullptr) return Null("client or region");
    *out = nullptr;
    DYNA_C_ASSIGN(auto region, client->client->AllocateRegion(bytes));
    *out = new dyna_region{std::move(region)};
    return DYNA_OK;
  });
}
void* dyna_region_data(const dyna_region* r) { return r ? r->region->bytes().data() : nullptr; }
uint64_t dyna_region_bytes(const dyna_region* r) { return r ? r->region->size() : 0; }
void dyna_region_free(dyna_region* region) { delete region; }

dyna_status dyna_gpu_register(dyna_client* client, void* memory, uint64_t bytes,
                              dyna_gpu_region** out) {
  return Guarded([&] {
    if (client == nullptr || out == nullptr) return Null("client or region");
    *out = nullptr;
    DYNA_C_ASSIGN(auto region, client->client->RegisterGpu(memory, bytes));
    *out = new dyna_gpu_region{std::move(region)};
    return DYNA_OK;
  });
}
dyna_status dyna_gpu_release(dyna_client* client, dyna_gpu_region* region) {
  return Guarded([&] {
    if (client == nullptr || region == nullptr) return Null("client or region");
    const std::unique_ptr<dyna_gpu_region> owned(region);
    return Answer(client->client->ReleaseGpu(owned->region));
  });
}

dyna_status dyna_context_open(dyna_client* client, const dyna_context_spec* spec,
                              dyna_context** out) {
  return Guarded([&] {
    if (client == nullptr || spec == nullptr || out == nullptr) return Null("client or spec");
    *out = nullptr;
    DYNA_C_ASSIGN(ContextSpec s, c::ToSpec(*spec));
    const std::span profile(static_cast<const std::byte*>(spec->profile),
                            spec->profile != nullptr ? spec->profile_bytes : 0);
    DYNA_C_ASSIGN(auto context, client->client->OpenContext(std::move(s), profile));
    *out = new dyna_context{std::move(context)};
    return DYNA_OK;
  });
}
uint64_t dyna_context_fingerprint(const dyna_context* c) {
  return c ? c->context->fingerprint() : 0;
}
void dyna_context_close(dyna_context* context) { delete context; }

void dyna_hash_tokens(const dyna_hash* parent, const uint32_t tokens[DYNA_BLOCK_TOKENS],
                      const void* salt, size_t salt_bytes, dyna_hash* out) {
  const BlockHash hash =
      HashTokens(c::ToHash(parent), {tokens, DYNA_BLOCK_TOKENS},
                 {static_cast<const std::byte*>(salt), salt != nullptr ? salt_bytes : 0});
  std::memcpy(out->bytes, hash.bytes.data(), sizeof out->bytes);
}

dyna_status dyna_put(dyna_context* c, const dyna_put_request* r, dyna_result** out) {
  return Guarded(out, [&] { return Put(c, r, nullptr, 0, out); });
}
dyna_status dyna_lookup(dyna_context* c, const dyna_lookup_request* r, dyna_result** out) {
  return Guarded(out, [&] { return LookUp(c, r, nullptr, 0, out); });
}
dyna_status dyna_fetch(dyna_context* c, const dyna_lease* l, const dyna_fetch_request* r,
                       dyna_result** out) {
  return Guarded(out, [&] { return Fetch(c, l, r, nullptr, 0, out); });
}
dyna_status dyna_report(dyna_context* c, const dyna_report_request* r) {
  return Guarded([&] { return Report(c, r, nullptr, 0); });
}
dyna_status dyna_put_async(dyna_context* c, const dyna_put_request* r, dyna_queue* q,
                           uint64_t tag) {
  return Guarded([&] { return q ? Put(c, r, q, tag, nullptr) : Null("queue"); });
}
dyna_status dyna_lookup_async(dyna_context* c, const dyna_lookup_request* r, dyna_queue* q,
                              uint64_t tag) {
  return Guarded([&] { return q ? LookUp(c, r, q, tag, nullptr) : Null("queue"); });
}
dyna_status dyna_fetch_async(dyna_context* c, const dyna_lease* l, const dyna_fetch_request* r,
                             dyna_queue* q, uint64_t tag) {
  return Guarded([&] { return q ? Fetch(c, l, r, q, tag, nullptr) : Null("queue"); });
}
dyna_status dyna_report_async(dyna_context* c, const dyna_report_request* r, dyna_queue* q,
                              uint64_t tag) {
  return Guarded([&] { return q ? Report(c, r, q, tag) : Null("queue"); });
}

dyna_status dyna_delete(dyna_context* context, const dyna_hash* hashes, size_t n,
                        dyna_result** out) {
  return Guarded(out, [&] {
    if (context == nullptr) return Null("context");
    DYNA_C_ASSIGN(auto list, c::ToHashes(hashes, n));
    return Finish(context->context->Delete(std::move(list)), out);
  });
}
dyna_status dyna_pin(dyna_context* context, const dyna_hash* hashes, size_t n, int pinned,
                     uint32_t ttl_ms, dyna_result** out) {
  return Guarded(out, [&] {
    if (context == nullptr) return Null("context");
    DYNA_C_ASSIGN(auto list, c::ToHashes(hashes, n));
    return Finish(context->context->Pin(std::move(list), pinned != 0, Ms(ttl_ms)), out);
  });
}
dyna_status dyna_clear(dyna_context* context, dyna_result** out) {
  return Guarded(
      out, [&] { return context ? Finish(context->context->Clear(), out) : Null("context"); });
}
dyna_status dyna_put_opaque(dyna_context* context, const dyna_hash* key, const void* bytes,
                            size_t size, int persistent, uint32_t ttl_ms) {
  return Guarded([&] {
    if (context == nullptr || key == nullptr || bytes == nullptr) return Null("context or bytes");
    OpaquePut put;
    put.key = c::ToHash(key);
    put.bytes = {static_cast<const std::byte*>(bytes), size};
    put.durability = persistent ? Durability::kPersistent : Durability::kVolatile;
    put.ttl = Ms(ttl_ms);
    return Finish(context->context->PutOpaque(put), nullptr);
  });
}
dyna_status dyna_get_opaque(dyna_context* context, const dyna_hash* key, dyna_result** out) {
  return Guarded(out, [&] {
    if (context == nullptr || key == nullptr) return Null("context or key");
    return Finish(context->context->GetOpaque(c::ToHash(key)), out);
  });
}
dyna_status dyna_query(dyna_client* client, dyna_query_kind kind, uint64_t context, uint32_t limit,
                       dyna_result** out) {
  return Guarded(out, [&] {
    if (client == nullptr) return Null("client");
    return Finish(client->client->Query(static_cast<wire::QueryKind>(kind), context, {},
                                        limit != 0 ? limit : 1024),
                  out);
  });
}

dyna_status dyna_queue_create(size_t capacity, dyna_queue** out) {
  return Guarded([&] {
    if (out == nullptr) return Null("queue");
    *out = nullptr;
    DYNA_C_ASSIGN(auto queue, c::CompletionQueue::Create(capacity));
    *out = new dyna_queue{std::move(queue)};
    return DYNA_OK;
  });
}
int dyna_queue_fd(const dyna_queue* q) { return q ? q->queue->fd() : -1; }
size_t dyna_queue_drain(dyna_queue* q, dyna_completion* out, size_t max) {
  return q != nullptr && out != nullptr ? q->queue->Drain(out, max) : 0;
}
void dyna_queue_free(dyna_queue* queue) { delete queue; }

dyna_status dyna_result_status(const dyna_result* r) {
  return r ? static_cast<dyna_status>(r->status.code()) : DYNA_INVALID;
}
const char* dyna_result_message(const dyna_result* r) { return r ? r->message.c_str() : ""; }
const dyna_segment* dyna_result_segments(const dyna_result* r, size_t* n) {
  if (n != nullptr) *n = r ? r->segments.size() : 0;
  return r ? r->segments.data() : nullptr;
}
const dyna_hit* dyna_result_hits(const dyna_result* r, size_t* n) {
  if (n != nullptr) *n = r ? r->hits.size() : 0;
  return r ? r->hits.data() : nullptr;
}
const uint64_t* dyna_result_masks(const dyna_result* r, size_t* n) {
  if (n != nullptr) *n = r ? r->masks.size() : 0;
  return r ? r->masks.data() : nullptr;
}
const void* dyna_result_bytes(const dyna_result* r, size_t* n) {
  if (n != nullptr) *n = r ? r->bytes.size() : 0;
  return r ? r->bytes.data() : nullptr;
}
uint64_t dyna_result_count(const dyna_result* r) { return r ? r->count : 0; }
uint32_t dyna_result_run(const dyna_result* r) { return r ? r->run : 0; }
dyna_lease* dyna_result_take_lease(dyna_result* r) {
  if (r == nullptr || r->lease.id() == 0) return nullptr;
  return new dyna_lease{std::move(r->lease)};
}
void dyna_result_free(dyna_result* result) { delete result; }

int dyna_lease_lost(const dyna_lease* lease) { return lease == nullptr || lease->lease.lost(); }
void dyna_lease_release(dyna_lease* lease) { delete lease; }

}  // extern "C"
