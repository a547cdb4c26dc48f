/* dynacompress.h as a C program uses it. c_api_test.cc gives it a daemon. Returns 0, or the line of
 * the check that failed. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "client/dynacompress.h"

#define CHECK(holds) \
  do {               \
    if (!(holds)) return __LINE__; \
  } while (0)

enum { kBlocks = 4, kLayers = 3, kHeads = 2, kDim = 32, kRow = kDim * 2 };
enum { kTile = DYNA_BLOCK_TOKENS * kRow, kSegment = 2 * kHeads * kTile };

static dyna_kv dense(char* base) {
  dyna_kv kv;
  memset(&kv, 0, sizeof kv);
  kv.dtype = DYNA_F16;
  kv.k = base;
  kv.v = base + kTile;
  kv.k_block_stride = kv.v_block_stride = kLayers * kSegment;
  kv.k_layer_stride = kv.v_layer_stride = kSegment;
  kv.k_head_stride = kv.v_head_stride = 2 * kTile;
  kv.k_token_stride = kv.v_token_stride = kRow;
  return kv;
}

int run_c_api_test(const char* socket) {
  dyna_client* client = NULL;
  dyna_options options = DYNA_INIT(dyna_options);
  options.endpoint = "/tmp/dyna_nobody_listens_here.sock";
  CHECK(dyna_connect(&options, &client) == DYNA_CANCELLED && client == NULL);
  CHECK(strstr(dyna_last_error(), "nobody_listens") != NULL);
  options.endpoint = socket;
  CHECK(dyna_connect(&options, &client) == DYNA_OK);

  dyna_layer layers[kLayers];
  memset(layers, 0, sizeof layers);
  for (int i = 0; i < kLayers; ++i) {
    layers[i].kind = DYNA_FULL;
    layers[i].kv_heads = kHeads;
    layers[i].head_dim = kDim;
    layers[i].max_position = 4096;
  }
  dyna_context_spec spec = DYNA_INIT(dyna_context_spec);
  spec.dtype = DYNA_F16;
  spec.layers = layers;
  spec.layer_count = kLayers;
  dyna_context* context = NULL;
  CHECK(dyna_context_open(client, &spec, &context) == DYNA_INVALID);   /* no model */
  CHECK(strstr(dyna_last_error(), "model") != NULL);
  spec.model = "c";
  CHECK(dyna_context_open(client, &spec, &context) == DYNA_OK);
  CHECK(dyna_context_fingerprint(context) != 0);

  dyna_region* region = NULL;
  const size_t bytes = (size_t)kBlocks * kLayers * kSegment;
  CHECK(dyna_region_allocate(client, 2 * bytes, &region) == DYNA_OK);
  CHECK(dyna_region_bytes(region) >= 2 * bytes);
  dyna_gpu_region* gpu = NULL;
  CHECK(dyna_gpu_register(client, dyna_region_data(region), bytes, &gpu) != DYNA_OK && !gpu);
  CHECK(dyna_last_error()[0] != 0);
  CHECK(dyna_gpu_release(client, NULL) == DYNA_INVALID);
  char* data = dyna_region_data(region);
  for (size_t i = 0; i < bytes; ++i) data[i] = (char)(i * 7 % 50);

  dyna_hash hashes[kBlocks];
  uint32_t tokens[DYNA_BLOCK_TOKENS];
  for (int b = 0; b < kBlocks; ++b) {
    for (int t = 0; t < DYNA_BLOCK_TOKENS; ++t) tokens[t] = (uint32_t)(b * 64 + t);
    dyna_hash_tokens(b == 0 ? NULL : &hashes[b - 1], tokens, "salt", 4, &hashes[b]);
  }
  CHECK(memcmp(&hashes[0], &hashes[1], sizeof hashes[0]) != 0);

  dyna_put_request put = DYNA_INIT(dyna_put_request);
  put.hashes = hashes;
  put.hash_count = kBlocks;
  put.source = dense(data);
  dyna_result* result = NULL;
  size_t n = 0;
  /* A caller that was compiled before there were GPUs: what it has not got is not looked at. */
  put.size = offsetof(dyna_put_request, on_device);
  put.on_device = 1;
  CHECK(dyna_put(context, &put, &result) == DYNA_OK);
  CHECK(dyna_result_segments(result, &n) != NULL && n == kBlocks * kLayers);
  dyna_result_free(result);

  dyna_lookup_request lookup = DYNA_INIT(dyna_lookup_request);
  lookup.hashes = hashes;
  lookup.hash_count = kBlocks;
  CHECK(dyna_lookup(context, &lookup, &result) == DYNA_OK);
  CHECK(dyna_result_run(result) == kBlocks);
  dyna_lease* lease = dyna_result_take_lease(result);
  CHECK(lease != NULL && !dyna_lease_lost(lease));
  dyna_result_free(result);

  /* Block by block, through a queue and its descriptor. */
  dyna_queue* queue = NULL;
  CHECK(dyna_queue_create(2, &queue) == DYNA_OK);
  uint64_t seen = 0;
  for (int b = 0; b < kBlocks;) {
    dyna_fetch_request fetch = DYNA_INIT(dyna_fetch_request);
    fetch.block_begin = (uint32_t)b;
    fetch.block_count = 1;
    fetch.target = dense(data + bytes + (size_t)b * kLayers * kSegment);
    const dyna_status s = dyna_fetch_async(context, lease, &fetch, queue, (uint64_t)1 << b);
    if (s == DYNA_OK) {
      ++b;
      if (b < kBlocks) continue;
    } else {
      CHECK(s == DYNA_RETRY);
    }
    while (b == kBlocks ? seen != (1u << kBlocks) - 1 : seen == 0 || s == DYNA_RETRY) {
      struct pollfd p = {dyna_queue_fd(queue), POLLIN, 0};
      CHECK(poll(&p, 1, 10000) == 1);
      dyna_completion done[4];
      const size_t got = dyna_queue_drain(queue, done, 4);
      for (size_t i = 0; i < got; ++i) {
        CHECK(done[i].status == DYNA_OK);
        seen |= done[i].tag;
        dyna_result_free(done[i].result);
      }
      if (b < kBlocks) break;
    }
  }
  CHECK(memcmp(data, data + bytes, bytes) == 0);
  dyna_completion none;
  CHECK(dyna_queue_drain(queue, &none, 1) == 0);
  dyna_queue_free(queue);

  /* Plain memory, one address for each segment. */
  char* plain = calloc(1, bytes);
  void *k[kBlocks * kLayers], *v[kBlocks * kLayers];
  for (int s = 0; s < kBlocks * kLayers; ++s) {
    k[s] = plain + s * kSegment;
    v[s] = plain + s * kSegment + kTile;
  }
  dyna_fetch_request fetch = DYNA_INIT(dyna_fetch_request);
  fetch.target = dense(plain);
  fetch.target.k_segments = k;
  fetch.target.v_segments = v;
  CHECK(dyna_fetch(context, lease, &fetch, NULL) == DYNA_OK);
  CHECK(memcmp(data, plain, bytes) == 0);
  fetch.block_count = 99;
  CHECK(dyna_fetch(context, lease, &fetch, NULL) == DYNA_INVALID);
  dyna_lease_release(lease);

  CHECK(dyna_put_opaque(context, &hashes[0], plain, 1000, 0, 0) == DYNA_OK);
  CHECK(dyna_get_opaque(context, &hashes[0], &result) == DYNA_OK);
  const void* object = dyna_result_bytes(result, &n);
  CHECK(n == 1000 && memcmp(object, plain, n) == 0);
  dyna_result_free(result);
  CHECK(dyna_get_opaque(context, &hashes[1], &result) == DYNA_MISS);
  CHECK(strcmp(dyna_status_name(dyna_result_status(result)), "MISS") == 0);
  dyna_result_free(result);

  put.size = 0;
  CHECK(dyna_put(context, &put, NULL) == DYNA_INVALID);
  CHECK(dyna_put(NULL, &put, NULL) == DYNA_INVALID);

  /* A result that may be freed comes from every failure, however early. */
  dyna_result* const unset = (dyna_result*)plain;
#define CHECK_FREED(call, code)      \
  do {                               \
    result = unset;                  \
    CHECK((call) == (code));         \
    CHECK(result != unset);          \
    dyna_result_free(result);        \
  } while (0)
  CHECK_FREED(dyna_put(context, &put, &result), DYNA_INVALID);
  CHECK_FREED(dyna_put(NULL, &put, &result), DYNA_INVALID);
  CHECK_FREED(dyna_lookup(NULL, &lookup, &result), DYNA_INVALID);
  CHECK_FREED(dyna_fetch(context, NULL, &fetch, &result), DYNA_INVALID);
  CHECK_FREED(dyna_delete(context, NULL, 1, &result), DYNA_INVALID);
  CHECK_FREED(dyna_pin(context, hashes, 16385, 1, 0, &result), DYNA_TOO_LARGE);
  CHECK_FREED(dyna_clear(NULL, &result), DYNA_INVALID);
  CHECK_FREED(dyna_get_opaque(context, NULL, &result), DYNA_INVALID);
  CHECK_FREED(dyna_query(NULL, DYNA_STATS, 0, 0, &result), DYNA_INVALID);
  /* A shard that ends before it begins has 65535 layers, and the arrays have not. */
  put.size = sizeof put;
  put.on_device = 0;
  put.shard.layer_begin = 2;
  put.shard.layer_end = 1;
  put.shard.head_end = kHeads;
  put.source.k_segments = k;
  put.source.v_segments = v;
  CHECK_FREED(dyna_put(context, &put, &result), DYNA_INVALID);
  CHECK(strstr(dyna_last_error(), "shard") != NULL);
  free(plain);
  dyna_context_close(context);
  dyna_region_free(region);
  dyna_close(client);
  dyna_close(NULL);
  return 0;
}
