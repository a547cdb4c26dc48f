// What calls of the client take and return. Plain values; any thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "client/kv_memory.h"
#include "schemas/context.h"
#include "schemas/status.h"
#include "schemas/types.h"
#include "schemas/wire.h"

namespace dyna {

class DeviceApi;

// How long a call may take; zero: ClientOptions::deadline.
using Deadline = std::chrono::milliseconds;

// How K and V travel.
enum class Bulk : uint8_t {
  kAuto,    // on this host through regions, else in frames over the socket
  kRegion,  // regions only: plain memory is copied into a staging region
  kUcx,     // in frames over UCX, also between hosts
  kSocket,  // in frames over the socket
};

struct ClientOptions {
  // "/run/dynacompress/dynacompress.sock", "unix:PATH", "HOST:PORT"; empty: DYNACOMPRESS_SOCKET,
  // else the daemon of this user, else the one of this machine (DefaultEndpoint()).
  std::string endpoint;
  std::string name;   // in the daemon's logs; empty: the program's
  std::string token;  // credentials, where the daemon asks for them
  Bulk bulk = Bulk::kAuto;
  std::chrono::milliseconds connect_timeout{5'000};
  std::chrono::milliseconds deadline{30'000};
  bool reconnect = true;               // false: the first loss of the connection is final,
                                       // and every call from then on CANCELLED
  bool checksum = false;               // of payloads in frames
  uint32_t max_calls = 4'096;          // queued and in flight; then RETRY
  uint64_t staging_bytes = 64u << 20;  // of the staging region, taken when first needed
  std::string ucx_tls = "self,posix";  // kUcx: see client/transport/ucx_transport.h
  std::string ucx_net_devices = "lo";
  DeviceApi* device_api = nullptr;  // of GPUs; null: this machine's driver. Outlives the client
};

// A run of consecutive blocks of one chain, a run of layers of each.
struct PutRequest {
  Shard shard;  // what makes a block complete; layer_end 0: everything
  uint16_t layer_begin = 0, layer_count = 0;  // count 0: the shard's layers
  BlockHash parent;                           // of the first block; zero at the root
  uint32_t first_index = 0;                   // of the first block in its sequence
  std::vector<BlockHash> hashes;
  KvMemory source;  // heads shard.head_begin .. head_end
  QualityClass quality = QualityClass::kBalanced;
  Durability durability = Durability::kVolatile;
  std::chrono::milliseconds ttl{0};  // 0: none
  Deadline deadline{0};
  // While the daemon makes room (RETRY): ask again until the deadline. False: RETRY is the result.
  bool wait_for_room = true;
};
struct PutResult {
  Status status;  // OK also when every segment is OK or EXISTS
  std::vector<wire::SegmentStatus> segments;
};

struct LookupRequest {
  Shard shard;                    // layer_end 0: everything
  std::vector<BlockHash> hashes;  // in prefix order
  QualityClass min_quality = QualityClass::kSmall;
  // 0: any. Mean over K and V of error / energy, where that of K on a level is in its basis'
  // metric: as the queries see it that the basis was made from. In plain squares it may be several
  // times it.
  float max_nmse = 0;
  std::chrono::milliseconds ttl{0};  // of the lease; 0: the daemon's default
  Deadline deadline{0};
};

struct FetchRequest {
  uint16_t layer_begin = 0, layer_count = 0;  // count 0: the lookup's layers
  uint16_t head_begin = 0, head_end = 0;      // end 0: the lookup's heads
  uint32_t block_begin = 0, block_count = 0;  // within the run; count 0: the rest of it
  KvMemory target;
  wire::Form form = wire::Form::kDecoded;  // kAsStored: the library decodes
  bool want_masks = false;
  // Of a sliding layer only what its window reaches from the run's end is asked for; the other
  // segments are MISS in the result, without a failure, and their rows are not written. True: all
  // of them are asked for, and those that the daemon lacks fail.
  bool beyond_windows = false;
  Deadline deadline{0};
};
struct FetchResult {
  Status status;  // the first segment that failed; its rows are undefined
  std::vector<wire::SegmentStatus> segments;
  std::vector<Tier> tiers;       // [segment]: where it was read from
  std::vector<uint64_t> live;    // want_masks: [segment][head]
  std::vector<BasisName> bases;  // kAsStored: those that were decoded with
  uint64_t bytes_received = 0;   // payload that came through a frame
};

// Attention statistics of a chain, named by its last block (policy 1). `data` as wire.h says;
// it is copied before the call returns.
struct ReportRequest {
  wire::Report report;  // `context` is filled in
  std::span<const std::byte> data;
  Deadline deadline{0};
};

struct OpaquePut {
  BlockHash key;
  std::span<const std::byte> bytes;  // must stay until the call is done
  Durability durability = Durability::kVolatile;
  std::chrono::milliseconds ttl{0};
  Deadline deadline{0};
};
struct OpaqueObject {
  std::vector<std::byte> bytes;
  Tier tier = Tier::kNone;
};

struct ClientInfo {
  bool connected = false;
  std::string endpoint;
  std::string server_version;
  uint64_t instance_id = 0;  // of the daemon's process
  uint64_t features = 0;
  Bulk bulk = Bulk::kAuto;  // in effect
  std::string backend;      // "cpu (AVX2)": decodes what comes as stored
};
struct ClientStats {
  uint64_t calls = 0, failed = 0, in_flight = 0, queued = 0;
  uint64_t reconnects = 0;
  uint64_t bytes_in_place = 0;  // read or written by the daemon in our regions
  uint64_t bytes_staged = 0;    // of those, copied between a staging region and plain memory
  uint64_t bytes_sent = 0, bytes_received = 0;  // payload in frames
  uint64_t regions = 0, region_bytes = 0, retired_region_bytes = 0;
  uint64_t bases_cached = 0;
};

}  // namespace dyna
