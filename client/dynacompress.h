/* DynaCompress, the C interface of the client library (client.h says what each call means).
 *
 * Handles are opaque; a function that makes one says which one frees it. Any thread may call.
 * Every call answers a dyna_status; dyna_last_error() has the message of this thread's last
 * failure. Calls wait, or (..._async) return at once and leave their result in a completion queue,
 * whose descriptor becomes readable: for epoll, asyncio and the like. No function calls back.
 *
 * Structs start with their size so that later versions can add fields: use the DYNA_INIT macro.
 * Fields that are not set are 0 and mean the default. */
#ifndef DYNACOMPRESS_H_
#define DYNACOMPRESS_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
/* NOLINTBEGIN(modernize-use-using): C */

#define DYNA_BLOCK_TOKENS 64
#define DYNA_HASH_BYTES 32

typedef enum dyna_status {
  DYNA_OK = 0,
  DYNA_EXISTS = 1,
  DYNA_MISS = 2,
  DYNA_PENDING = 3,
  DYNA_RETRY = 4,
  DYNA_QUOTA = 5,
  DYNA_TOO_LARGE = 6,
  DYNA_INVALID = 7,
  DYNA_UNAUTHENTICATED = 8,
  DYNA_UNSUPPORTED = 9,
  DYNA_DEADLINE = 10,
  DYNA_CANCELLED = 11,
  DYNA_IN_DOUBT = 12,
  DYNA_LEASE_LOST = 13,
  DYNA_CONTEXT_UNKNOWN = 14,
  DYNA_INTERNAL = 15
} dyna_status;
typedef enum { DYNA_F32 = 1, DYNA_F16 = 2, DYNA_BF16 = 3, DYNA_E4M3 = 4, DYNA_E5M2 = 5 } dyna_dtype;
typedef enum { DYNA_FULL = 1, DYNA_SLIDING = 2, DYNA_OPAQUE = 3 } dyna_layer_kind;
typedef enum { DYNA_ROPE_NONE = 0, DYNA_ROPE_HALF = 1, DYNA_ROPE_INTERLEAVED = 2 } dyna_rope_kind;
typedef enum { DYNA_SMALL = 1, DYNA_BALANCED = 2, DYNA_HIGH = 3, DYNA_EXACT = 4 } dyna_quality;
typedef enum { DYNA_BULK_AUTO, DYNA_BULK_REGION, DYNA_BULK_UCX, DYNA_BULK_SOCKET } dyna_bulk;
typedef enum { DYNA_QUERY_WINDOW = 1, DYNA_COLUMN_MASS = 2, DYNA_TILE_MASS = 3 } dyna_report_kind;
typedef enum {
  DYNA_STATS = 1,
  DYNA_INSPECT = 2,
  DYNA_BANK_LIST = 3,
  DYNA_CONTEXTS = 4
} dyna_query_kind;

typedef struct dyna_client dyna_client;
typedef struct dyna_region dyna_region;
typedef struct dyna_gpu_region dyna_gpu_region;
typedef struct dyna_context dyna_context;
typedef struct dyna_lease dyna_lease;
typedef struct dyna_result dyna_result;
typedef struct dyna_queue dyna_queue;
typedef struct dyna_hash {
  uint8_t bytes[DYNA_HASH_BYTES];
} dyna_hash;

/* dyna_options o = DYNA_INIT(dyna_options); */
#ifdef __cplusplus
#define DYNA_INIT(type) \
  type { sizeof(type) }
#else
#define DYNA_INIT(type) ((type){.size = sizeof(type)})
#endif

typedef struct dyna_options {
  size_t size;
  const char* endpoint; /* NULL: the default */
  const char* name;
  const char* token;
  dyna_bulk bulk;
  uint32_t deadline_ms, connect_timeout_ms;
  uint32_t max_calls;
  uint64_t staging_bytes;
} dyna_options;

typedef struct dyna_rope {
  dyna_rope_kind kind;
  uint16_t rotary_dim;
  const float* inv_freq; /* [rotary_dim / 2] */
} dyna_rope;
typedef struct dyna_layer {
  dyna_layer_kind kind;
  uint16_t kv_heads, q_heads, head_dim, rope;
  uint32_t window, max_position;
} dyna_layer;
typedef struct dyna_context_spec {
  size_t size;
  const char *model, *revision, *adapter;
  dyna_dtype dtype;
  int attend, masks;
  const dyna_layer* layers;
  size_t layer_count;
  const dyna_rope* ropes; /* none: one of kind DYNA_ROPE_NONE */
  size_t rope_count;
  const void* profile; /* the bytes of a profile file, or NULL */
  size_t profile_bytes;
} dyna_context_spec;

typedef struct dyna_shard { /* all 0: everything */
  uint16_t layer_begin, layer_end, head_begin, head_end;
} dyna_shard;

/* Where K and V lie; strides in bytes. Segments are block-major. Either addresses of each segment
 * (k_segments, v_segments) or a base with block and layer strides. */
typedef struct dyna_kv {
  dyna_dtype dtype;
  void *k, *v;
  int64_t k_block_stride, k_layer_stride, k_token_stride, k_head_stride;
  int64_t v_block_stride, v_layer_stride, v_token_stride, v_head_stride;
  void* const* k_segments;
  void* const* v_segments;
} dyna_kv;

typedef struct dyna_put_request {
  size_t size;
  dyna_shard shard;
  uint16_t layer_begin, layer_count;
  const dyna_hash* parent; /* NULL at the root */
  uint32_t first_index;
  const dyna_hash* hashes;
  size_t hash_count;
  dyna_kv source;
  dyna_quality quality; /* 0: DYNA_BALANCED */
  int persistent;
  uint32_t ttl_ms, deadline_ms;
  int on_device; /* the source is memory of a GPU: dyna_gpu_register() */
  void* stream;  /* a cudaStream_t that is waited for first; NULL is CUDA's default stream */
} dyna_put_request;

typedef struct dyna_lookup_request {
  size_t size;
  dyna_shard shard;
  const dyna_hash* hashes;
  size_t hash_count;
  dyna_quality min_quality; /* 0: DYNA_SMALL */
  float max_nmse;           /* 0: any; see dyna_segment */
  int no_lease;             /* only ask */
  uint32_t ttl_ms, deadline_ms;
} dyna_lookup_request;

typedef struct dyna_fetch_request {
  size_t size;
  uint16_t layer_begin, layer_count, head_begin, head_end;
  uint32_t block_begin, block_count;
  dyna_kv target;
  int as_stored; /* the library decodes */
  int want_masks;
  uint32_t deadline_ms;
  uint32_t reserved; /* padding of the first version */
  int on_device;     /* the target is memory of a GPU */
  void* stream;
} dyna_fetch_request;

typedef struct dyna_report_request {
  size_t size;
  dyna_report_kind kind;
  dyna_hash leaf;
  uint16_t layer_begin, layer_count, head_begin, head_end;
  uint32_t first_query_position;
  uint16_t queries;
  uint32_t advance;
  dyna_dtype dtype;
  int has_lse;
  const void* data; /* copied before the call returns */
  size_t data_bytes;
  uint32_t deadline_ms;
} dyna_report_request;

/* nmse: mean over K and V of error / energy. That of K on a level is in its basis' metric: as the
 * queries see it that the basis was made from. In plain squares it may be several times it. */
typedef struct dyna_segment {
  dyna_status status;
  float nmse;
  uint32_t bytes;
  uint8_t tier;
} dyna_segment;
typedef struct dyna_hit {
  dyna_status status;
  uint8_t tier;
  float nmse, mean_bits;
  uint32_t bytes;
} dyna_hit;

const char* dyna_status_name(dyna_status status);
const char* dyna_last_error(void); /* of this thread; never NULL */

dyna_status dyna_connect(const dyna_options* options, dyna_client** client);
void dyna_close(
    dyna_client* client); /* after its contexts and regions; NULL is allowed everywhere */

/* Memory that the daemon reads and writes in place. */
dyna_status dyna_region_allocate(dyna_client* client, uint64_t bytes, dyna_region** region);
void* dyna_region_data(const dyna_region* region);
uint64_t dyna_region_bytes(const dyna_region* region);
void dyna_region_free(dyna_region* region);

/* Memory of a GPU (cudaMalloc) that the daemon, on the same GPU, reads and writes in place. When it
 * cannot be, the status and dyna_last_error() say why; requests with `on_device` work all the same,
 * through the host. The daemon could read and write the whole allocation. */
dyna_status dyna_gpu_register(dyna_client* client, void* memory, uint64_t bytes,
                              dyna_gpu_region** region);
/* Before the memory is freed: waits until the daemon has let go of it. Frees the handle, whatever
 * the answer. */
dyna_status dyna_gpu_release(dyna_client* client, dyna_gpu_region* region);

dyna_status dyna_context_open(dyna_client* client, const dyna_context_spec* spec,
                              dyna_context** context);
uint64_t dyna_context_fingerprint(const dyna_context* context);
void dyna_context_close(dyna_context* context);

/* SHA-256 chain over token ids: the hash of a block of 64. `parent` NULL at the root. */
void dyna_hash_tokens(const dyna_hash* parent, const uint32_t tokens[DYNA_BLOCK_TOKENS],
                      const void* salt, size_t salt_bytes, dyna_hash* out);

/* `result` may be NULL when only the status matters; else dyna_result_free() it, also on failure
 * (where it may be set to NULL: dyna_last_error() says why). */
dyna_status dyna_put(dyna_context*, const dyna_put_request*, dyna_result** result);
dyna_status dyna_lookup(dyna_context*, const dyna_lookup_request*, dyna_result** result);
dyna_status dyna_fetch(dyna_context*, const dyna_lease*, const dyna_fetch_request*,
                       dyna_result** result);
dyna_status dyna_report(dyna_context*, const dyna_report_request*);
dyna_status dyna_delete(dyna_context*, const dyna_hash* hashes, size_t count, dyna_result** result);
dyna_status dyna_pin(dyna_context*, const dyna_hash* hashes, size_t count, int pinned,
                     uint32_t ttl_ms, dyna_result** result);
dyna_status dyna_clear(dyna_context*, dyna_result** result);
dyna_status dyna_put_opaque(dyna_context*, const dyna_hash* key, const void* bytes, size_t size,
                            int persistent, uint32_t ttl_ms);
dyna_status dyna_get_opaque(dyna_context*, const dyna_hash* key, dyna_result** result);
dyna_status dyna_query(dyna_client*, dyna_query_kind, uint64_t context, uint32_t limit,
                       dyna_result** result); /* JSON */

/* The same, answered in `queue` under `tag`. DYNA_RETRY: the queue is full, drain it first. What a
 * request points to is copied, but for K and V memory and opaque bytes. */
dyna_status dyna_put_async(dyna_context*, const dyna_put_request*, dyna_queue*, uint64_t tag);
dyna_status dyna_lookup_async(dyna_context*, const dyna_lookup_request*, dyna_queue*, uint64_t tag);
dyna_status dyna_fetch_async(dyna_context*, const dyna_lease*, const dyna_fetch_request*,
                             dyna_queue*, uint64_t tag);
dyna_status dyna_report_async(dyna_context*, const dyna_report_request*, dyna_queue*, uint64_t tag);

typedef struct dyna_completion {
  uint64_t tag;
  dyna_status status;
  dyna_result* result;
} dyna_completion;
/* `capacity`: calls in flight and answers not yet drained. */
dyna_status dyna_queue_create(size_t capacity, dyna_queue** queue);
int dyna_queue_fd(const dyna_queue* queue); /* readable while something is to be drained */
size_t dyna_queue_drain(dyna_queue* queue, dyna_completion* out, size_t max); /* does not wait */
void dyna_queue_free(dyna_queue* queue); /* answers still to come are dropped */

dyna_status dyna_result_status(const dyna_result*);
const char* dyna_result_message(const dyna_result*);
const dyna_segment* dyna_result_segments(const dyna_result*, size_t* count); /* put, fetch */
const dyna_hit* dyna_result_hits(const dyna_result*, size_t* count);         /* lookup */
const uint64_t* dyna_result_masks(const dyna_result*, size_t* count);        /* fetch */
const void* dyna_result_bytes(const dyna_result*, size_t* count);            /* get_opaque, query */
uint64_t dyna_result_count(const dyna_result*); /* delete, pin, clear */
uint32_t dyna_result_run(const dyna_result*);   /* lookup */
dyna_lease* dyna_result_take_lease(
    dyna_result*); /* NULL: nothing is held; dyna_lease_release() it */
void dyna_result_free(dyna_result*);

int dyna_lease_lost(const dyna_lease*);
void dyna_lease_release(dyna_lease*);

/* NOLINTEND(modernize-use-using) */
#ifdef __cplusplus
}
#endif
#endif /* DYNACOMPRESS_H_ */
