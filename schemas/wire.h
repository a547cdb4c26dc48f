// The messages of the protocol, as plain structs, and the one verified door to their bytes.
//
// Control is one FlatBuffer (wire.fbs), never larger than kMaxControl; bulk is payload, never
// inside it (design 7). Parse checks sizes, the verifier, the version and every semantic bound that
// needs no knowledge of the receiver; what it returns may be trusted as far as its types go.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "schemas/context.h"
#include "schemas/status.h"
#include "schemas/types.h"

namespace dyna::wire {

inline constexpr uint16_t kVersion = 1;
inline constexpr size_t kMaxControl = 1 << 20;  // bytes of one FlatBuffer
inline constexpr size_t kMaxUcxControl = 960;   // beside a payload over UCX (AM header below 1 KiB)
inline constexpr size_t kMaxUcxSegments = 16;   // of one frame with payload over UCX
inline constexpr size_t kMaxBlocksPerMessage = 4096;
inline constexpr size_t kMaxSegmentsPerMessage = 16384;
inline constexpr size_t kMaxMasksPerMessage = 65536;  // of Fetch::want_masks: segments x heads
inline constexpr size_t kMaxUcxAddress = 4096;

enum class Type : uint8_t {
  kHello = 1,
  kHelloReply = 2,
  kStatusReply = 3,
  kOpenContext = 4,
  kOpenContextReply = 5,
  kRegisterRegion = 6,
  kRegisterRegionReply = 7,
  kDeregisterRegion = 8,
  kLookup = 9,
  kLookupReply = 10,
  kReleaseLease = 11,
  kPut = 12,
  kPutReply = 13,
  kFetch = 14,
  kFetchReply = 15,
  kReport = 16,
  kDelete = 17,
  kClear = 18,
  kPin = 19,
  kCountReply = 20,
  kGetBasis = 21,
  kGetBasisReply = 22,
  kPutOpaque = 23,
  kGetOpaque = 24,
  kOpaqueReply = 25,
  kQuery = 26,
  kQueryReply = 27,
  kSetBudget = 28,
  kBankDrop = 29,
  kGoaway = 30,
  kLeaseRevoked = 31,
};

// Features a peer may offer in Hello; unknown bits are ignored.
inline constexpr uint64_t kFeatureUcx = 1, kFeatureMasks = 2, kFeatureAsStored = 4;
// In HelloReply: regions of kind `device` may be registered.
inline constexpr uint64_t kFeatureDeviceRegions = 8;

struct Hello {
  uint16_t version = kVersion;
  uint64_t features = 0;
  std::string client_name;           // for logs and metrics, at most 64 bytes
  std::string token;                 // credentials: empty is None
  std::vector<uint8_t> ucx_address;  // empty: no UCX
};
struct HelloReply {
  Status status;
  uint16_t version = kVersion;
  uint64_t features = 0;
  uint64_t instance_id = 0;  // of this daemon process: leases of another are void
  std::array<uint8_t, 16> session_token{};
  uint32_t request_credits = 0;  // requests that may be in flight
  uint64_t byte_credits = 0;     // payload bytes that may be in flight
  std::vector<uint8_t> ucx_address;
  std::string server_version;
};

// The answer of everything that has none of its own (DeregisterRegion, ReleaseLease, Report,
// PutOpaque, SetBudget), and of any request that failed before it could have it.
struct StatusReply {
  Status status;
};

// Payload: a profile file (daemon/policy/basis/profile.h), or none.
struct OpenContext {
  ContextSpec spec;
};
struct OpenContextReply {
  Status status;
  Fingerprint context = 0;
  bool created = false;  // nobody had opened it since the daemon started
};

enum class RegionKind : uint8_t { kHost = 0, kDevice = 1 };
inline constexpr size_t kMaxRegionHandle = 256;

// kHost: one memfd travels beside it (AF_UNIX only), and the other fields are empty. kDevice (of a
// peer with kFeatureDeviceRegions): `size` bytes at `offset` of the allocation that a handle of
// CUDA IPC names. Such a handle lets its receiver read and write the whole allocation.
struct RegisterRegion {
  uint64_t size = 0;
  RegionKind kind = RegionKind::kHost;
  std::array<uint8_t, 16> device{};  // UUID of the GPU
  std::vector<uint8_t> handle;       // cudaIpcMemHandle_t: 64 bytes
  uint64_t offset = 0;
};
struct RegisterRegionReply {
  Status status;
  uint32_t region = 0;  // never 0 when OK
};
struct DeregisterRegion {
  uint32_t region = 0;
};

struct Lookup {
  Fingerprint context = 0;
  Shard shard;
  std::vector<BlockHash> hashes;  // in prefix order
  QualityClass min_quality = QualityClass::kSmall;
  float max_nmse = 0;   // 0: any
  bool lease = true;    // false: `exists` only
  uint32_t ttl_ms = 0;  // 0: the daemon's default
};
struct LookupHit {
  StatusCode status = StatusCode::kMiss;  // kOk, kPending, kMiss
  Tier tier = Tier::kNone;
  float nmse = 0;
  float mean_bits = 0;  // of K and V codes, per element
  uint32_t bytes = 0;   // encoded, of the shard
};
struct LookupReply {
  Status status;
  uint64_t lease = 0;  // 0: none (empty run, or not asked for)
  uint32_t run = 0;    // leading blocks that the lease holds
  uint32_t ttl_ms = 0;
  std::vector<LookupHit> hits;  // one a hash
};
struct ReleaseLease {
  uint64_t lease = 0;
};

// Where K and V of segments lie, or shall lie. Rows of head_dim elements are contiguous.
// region 0: in the frame's payload, in canonical order [segment][kv_head][K, V][token][head_dim],
// and no offset or stride is given. Offsets are those of head `head_begin`, token 0.
struct Layout {
  uint32_t region = 0;
  DType dtype = DType::kBf16;
  int64_t k_token_stride = 0, k_head_stride = 0, v_token_stride = 0, v_head_stride = 0;  // bytes
  std::vector<uint64_t> k_offsets, v_offsets;  // bytes, one a segment
};

// A run of consecutive blocks of one chain, a run of layers of each. Segments are block-major:
// segment = block * layer_count + layer. The shard says what makes a block complete.
struct Put {
  Fingerprint context = 0;
  Shard shard;
  uint16_t layer_begin = 0, layer_count = 0;
  BlockHash parent;          // of the first block; zero at the root
  uint32_t first_index = 0;  // of the first block in its sequence
  std::vector<BlockHash> hashes;
  QualityClass quality = QualityClass::kBalanced;
  Durability durability = Durability::kVolatile;
  uint32_t ttl_ms = 0;  // 0: none
  Layout layout;
};
struct SegmentStatus {
  StatusCode status = StatusCode::kOk;
  float nmse = 0;
  uint32_t bytes = 0;  // encoded
};
struct PutReply {
  Status status;  // the first that is neither OK nor EXISTS, with its message
  std::vector<SegmentStatus> segments;
};

enum class Form : uint8_t { kDecoded = 1, kAsStored = 2 };
struct Fetch {
  Fingerprint context = 0;
  uint64_t lease = 0;
  uint16_t head_begin = 0, head_end = 0;
  uint16_t layer_begin = 0, layer_count = 0;
  uint32_t block_begin = 0, block_count = 0;  // within the lease's run
  Form form = Form::kDecoded;
  bool want_masks = false;
  Layout layout;  // kDecoded: target; kAsStored: always the payload
};
struct FetchReply {
  Status status;
  std::vector<SegmentStatus> segments;  // kAsStored: bytes is each one's share of the payload
  std::vector<BasisName> bases;         // kAsStored: those that the segments name
  std::vector<uint64_t> live;           // want_masks: [segment][head]
  std::vector<Tier> tiers;              // [segment]: where it was read from
};

// Attention statistics of a chain, by its leaf (policy 1). Payload:
// kQueryWindow  queries [layer][W][q_heads][head_dim] in `dtype`, then, if has_lse, f32
// [layer][W][q_heads] kColumnMass   f32 [layer][kv_heads][tokens]: summed attention of each token
// of the chain kTileMass     f32 [layer][kv_heads][blocks][3]: max logit, sum of exponentials,
// log-sum-exp
enum class ReportKind : uint8_t { kQueryWindow = 1, kColumnMass = 2, kTileMass = 3 };
struct Report {
  Fingerprint context = 0;
  ReportKind kind = ReportKind::kQueryWindow;
  BlockHash leaf;
  uint16_t layer_begin = 0, layer_count = 0;
  uint16_t head_begin = 0, head_end = 0;  // kv heads
  uint32_t first_query_position = 0;
  uint16_t queries = 0;  // W, 1..64
  uint32_t advance = 0;  // tokens since this request's last report
  DType dtype = DType::kF32;
  bool has_lse = false;
};

struct Delete {
  Fingerprint context = 0;
  std::vector<BlockHash> hashes;
};
struct Clear {
  Fingerprint context = 0;  // 0: everything of the tenant
};
struct Pin {
  Fingerprint context = 0;
  std::vector<BlockHash> hashes;
  bool pinned = true;
  uint32_t ttl_ms = 0;  // 0: no expiry
};
struct CountReply {  // of Delete, Clear, Pin, BankDrop
  Status status;
  uint64_t count = 0;  // blocks that were concerned
};

struct GetBasis {
  Fingerprint context = 0;
  std::vector<BasisName> names;  // at most 64
};
struct GetBasisReply {  // payload: the objects, one after the other
  Status status;
  std::vector<uint32_t> sizes;  // 0: unknown
};

// A whole object of unknown meaning, lossless (design 2). Payload: its bytes.
struct PutOpaque {
  Fingerprint context = 0;
  BlockHash key;
  Durability durability = Durability::kVolatile;
  uint32_t ttl_ms = 0;
};
struct GetOpaque {
  Fingerprint context = 0;
  BlockHash key;
};
struct OpaqueReply {  // of GetOpaque; payload: its bytes
  Status status;
  Tier tier = Tier::kNone;
};

// Facts for people: the reply's payload is JSON. Blocks of the caller's own tenant only.
enum class QueryKind : uint8_t { kStats = 1, kInspect = 2, kBankList = 3, kContexts = 4 };
struct Query {
  QueryKind kind = QueryKind::kStats;
  Fingerprint context = 0;        // kInspect, kBankList: 0 is all
  std::vector<BlockHash> hashes;  // kInspect: these blocks; empty: all, in `limit`
  uint32_t limit = 1024;
};
struct QueryReply {
  Status status;
};

// Operators only (the daemon's own uid, or root).
struct SetBudget {
  uint64_t bytes = 0;  // 0: back to the configured one
};
struct BankDrop {
  Fingerprint context = 0;
  std::vector<BlockHash> hashes;  // empty: the whole context
};

struct Goaway {
  std::string reason;
};
struct LeaseRevoked {
  uint64_t lease = 0;
};

using Message =
    std::variant<Hello, HelloReply, StatusReply, OpenContext, OpenContextReply, RegisterRegion,
                 RegisterRegionReply, DeregisterRegion, Lookup, LookupReply, ReleaseLease, Put,
                 PutReply, Fetch, FetchReply, Report, Delete, Clear, Pin, CountReply, GetBasis,
                 GetBasisReply, PutOpaque, GetOpaque, OpaqueReply, Query, QueryReply, SetBudget,
                 BankDrop, Goaway, LeaseRevoked>;

Type TypeOf(const Message& message);
std::string_view TypeName(Type type);

// The FlatBuffer of a message; never fails for a message within the bounds above.
std::vector<uint8_t> Serialize(const Message& message);

// The one door. INVALID for bytes that are not a message, UNSUPPORTED for a type or a version this
// build does not know, TOO_LARGE above kMaxControl or a count bound. Never reads outside `control`.
Result<Message> Parse(std::span<const uint8_t> control);

}  // namespace dyna::wire
