// The client of the daemon: contexts, leases, put and fetch of KV blocks, statistics.
//
//   auto client = Client::Connect({}).value();
//   auto context = client->OpenContext(spec).value();
//   auto region = client->AllocateRegion(bytes).value();      // K and V live here: no copies
//   context->Put({.hashes = hashes, .source = KvMemory::Strided(...)});
//   Lease lease = context->Lookup({.hashes = hashes}).value();
//   context->Fetch(lease, {.target = KvMemory::Strided(...)});
//
// Every call exists twice: blocking, and ...Async with a callback that runs exactly once on the
// library's one thread (it must not block, nor make a blocking call: that is answered INVALID).
// All methods may be called from any thread. Every call has a deadline.
//
// Memory of a call belongs to the library until its result is there. IN_DOUBT means that the daemon
// may still touch memory of a region: the range must not be used again, and the region is retired
// (calls that name it are refused; allocate another). After a fork the child's calls are answered
// UNSUPPORTED.
//
// When the daemon restarts the library reconnects (10 ms .. 1 s between tries) and registers
// regions and contexts again; calls wait for that until their deadline. What was in flight is
// CANCELLED, and leases of before are LEASE_LOST.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/gpu_region.h"
#include "client/requests.h"
#include "client/transport/region.h"
#include "schemas/context.h"
#include "schemas/status.h"

namespace dyna {

class ClientCore;
struct ContextState;
struct LeaseState;

template <typename T>
using Done = std::function<void(T)>;

// The leading run of a lookup, held by the daemon until it is released, expires or is revoked.
// Move-only; releases itself. One thread at a time.
class Lease {
 public:
  Lease() = default;
  explicit Lease(std::shared_ptr<LeaseState> state) : state_(std::move(state)) {}
  ~Lease() { Release(); }
  Lease(Lease&& other) noexcept : state_(std::move(other.state_)) {}
  Lease& operator=(Lease&& other) noexcept {
    if (this != &other) {
      Release();
      state_ = std::move(other.state_);
    }
    return *this;
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  uint32_t run() const;                              // leading blocks that it holds; 0: none
  const std::vector<wire::LookupHit>& hits() const;  // one a hash of the lookup
  Shard shard() const;                               // of the lookup
  uint64_t id() const;                               // 0: none
  bool lost() const;                                 // revoked, expired or of a lost connection
  void Release();                                    // does not wait; may be called twice

 private:
  friend class Context;
  std::shared_ptr<LeaseState> state_;
};

class Context {
 public:
  Context(std::shared_ptr<ClientCore> core, std::shared_ptr<ContextState> state);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  Fingerprint fingerprint() const;
  const ContextSpec& spec() const;
  Shard whole() const;  // every layer, every head of layer 0

  PutResult Put(PutRequest request);
  void PutAsync(PutRequest request, Done<PutResult> done);

  // The leading run may be empty: an OK result with run() == 0.
  Result<Lease> Lookup(LookupRequest request);
  void LookupAsync(LookupRequest request, Done<Result<Lease>> done);
  // The same without a lease.
  Result<std::vector<wire::LookupHit>> Exists(LookupRequest request);
  void ExistsAsync(LookupRequest request, Done<Result<std::vector<wire::LookupHit>>> done);

  // `lease` must stay alive until the result is there.
  FetchResult Fetch(const Lease& lease, FetchRequest request);
  void FetchAsync(const Lease& lease, FetchRequest request, Done<FetchResult> done);

  Status Report(ReportRequest request);
  void ReportAsync(ReportRequest request, Done<Status> done);

  // How many blocks were concerned.
  Result<uint64_t> Delete(std::vector<BlockHash> hashes, Deadline deadline = {});
  void DeleteAsync(std::vector<BlockHash> hashes, Done<Result<uint64_t>> done,
                   Deadline deadline = {});
  Result<uint64_t> Clear(Deadline deadline = {});  // the model's weights were reloaded
  Result<uint64_t> Pin(std::vector<BlockHash> hashes, bool pinned,
                       std::chrono::milliseconds ttl = {}, Deadline deadline = {});

  // Whole objects of unknown meaning, lossless.
  Status PutOpaque(OpaquePut request);
  void PutOpaqueAsync(OpaquePut request, Done<Status> done);
  Result<OpaqueObject> GetOpaque(const BlockHash& key, Deadline deadline = {});
  void GetOpaqueAsync(const BlockHash& key, Done<Result<OpaqueObject>> done,
                      Deadline deadline = {});

 private:
  std::shared_ptr<ClientCore> core_;
  std::shared_ptr<ContextState> state_;
};

class Client {
 public:
  // CANCELLED: nobody listens (the message says where it looked). UNAUTHENTICATED: not allowed.
  static Result<std::unique_ptr<Client>> Connect(ClientOptions options);
  // Calls in flight end CANCELLED (or IN_DOUBT). Contexts that outlive it answer CANCELLED.
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Memory that the daemon reads and writes in place, registered until the last copy of the pointer
  // is gone. Over TCP: UNSUPPORTED.
  Result<std::shared_ptr<Region>> AllocateRegion(uint64_t bytes);
  // The same for a region that exists; keep the pointer that is returned instead of `region`.
  Result<std::shared_ptr<Region>> Register(std::shared_ptr<Region> region);

  // Memory of a GPU (cudaMalloc) that the daemon, on the same GPU, reads and writes in place: calls
  // whose KvMemory lies in it copy nothing. The daemon gets a handle of CUDA IPC, with which it
  // could read and write the whole allocation. INVALID, UNSUPPORTED: why this memory cannot be
  // shared (DeviceApi::Export; another GPU; a daemon without one); calls work all the same, through
  // the host. Registered until the last copy of the pointer is gone.
  Result<std::shared_ptr<GpuRegion>> RegisterGpu(void* memory, uint64_t bytes);
  // Before the memory is freed: waits until the daemon has let go of it. The pointer is of no use
  // afterwards. REQUIRES that no call in flight names it.
  Status ReleaseGpu(std::shared_ptr<GpuRegion> region, Deadline deadline = {});

  // Idempotent. `profile`: the bytes of a profile file, or nothing.
  Result<std::shared_ptr<Context>> OpenContext(ContextSpec spec,
                                               std::span<const std::byte> profile = {});
  void OpenContextAsync(ContextSpec spec, std::vector<std::byte> profile,
                        Done<Result<std::shared_ptr<Context>>> done);

  // JSON (design 9). `hashes` empty: all, up to `limit`.
  Result<std::string> Query(wire::QueryKind kind, Fingerprint context = 0,
                            std::vector<BlockHash> hashes = {}, uint32_t limit = 1024,
                            Deadline deadline = {});
  Result<uint64_t> ClearTenant(Deadline deadline = {});  // everything of ours, in every context

  // Operators only: UNAUTHENTICATED for others.
  Status SetBudget(uint64_t bytes, Deadline deadline = {});  // 0: back to the configured one
  Result<uint64_t> BankDrop(Fingerprint context, std::vector<BlockHash> hashes = {},
                            Deadline deadline = {});

  ClientInfo info() const;
  ClientStats stats() const;

 private:
  explicit Client(std::shared_ptr<ClientCore> core);
  std::shared_ptr<ClientCore> core_;
};

// Where Connect() looks when no endpoint is given.
std::string DefaultEndpoint();

}  // namespace dyna
