// The engine: blocks, leases, the budget, and what moves between tiers.
//
// One thread (the loop's), no sockets, no UCX, no CUDA, no RocksDB. It never blocks: whatever
// computes goes to the CodecRunner, whatever touches a disk to a SpillStore, and callers get their
// answer by callback. A callback may run inside the call only where that is said.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/base/clock.h"
#include "client/base/executor.h"
#include "daemon/arena/arena.h"
#include "daemon/store/codec_runner.h"
#include "daemon/store/stats.h"
#include "daemon/store/store_options.h"
#include "daemon/tier/spill_store.h"
#include "kernels/backend.h"
#include "schemas/wire.h"

namespace dyna {

using SessionId = uint64_t;
using TenantId = uint64_t;

struct Caller {
  SessionId session = 0;
  TenantId tenant = 0;
};

// Memory of a client (or staging) that a call reads or writes. `keep` lives until the last job let
// go of it; `intact` is asked after each job and fails it (a poisoned region).
struct MemoryGuard {
  std::shared_ptr<const void> keep;
  std::function<Status()> intact;
};

struct OpenedContext {
  Fingerprint context = 0;
  bool created = false;
};

class Store {
 public:
  struct Parts {
    const Clock& clock;
    Executor& loop;
    CodecRunner& codec;
    Backend& backend;
    Arena& arena;
    SpillStore* spill = nullptr;  // null: no spill tier
    SpillStore* bank = nullptr;   // null: persistent puts are refused
  };
  Store(Parts parts, StoreOptions options);
  ~Store();  // REQUIRES that nothing is in flight (Drain)

  // Reads both disks' rows; blocks come back as spilled. Serve nobody before `done`.
  void Recover(std::function<void(Status)> done);
  // No new work is admitted; what is in flight ends; resident blocks go to disk in the order of
  // what they are worth until `deadline`; rows are flushed.
  void Drain(TimePoint deadline, std::function<void()> done);

  // A tenant nobody configured has no quota.
  void ConfigureTenant(TenantId tenant, std::string name, uint64_t quota_bytes);
  void SetBudget(uint64_t bytes);                // 0: the configured one
  void SetOptions(const StoreOptions& options);  // what SIGHUP may change

  // UNSUPPORTED, INVALID (spec, ropes of another opener, a profile of another model), TOO_LARGE.
  Result<OpenedContext> OpenContext(const Caller& caller, const ContextSpec& spec,
                                    std::span<const std::byte> profile);
  // The spec, to resolve layouts; null: CONTEXT_UNKNOWN.
  const ContextSpec* FindContext(TenantId tenant, Fingerprint context) const;

  // Admission before bytes: OK when at least one segment of it is wanted; otherwise `reply` is the
  // whole answer and no byte need move.
  bool WantsPut(const Caller& caller, const wire::Put& put, wire::PutReply* reply);
  // `sources`: one a segment, block-major, of heads shard.head_begin.. (strides resolved).
  void Put(const Caller& caller, const wire::Put& put, std::vector<KvView> sources,
           MemoryGuard guard, std::function<void(wire::PutReply)> done);

  wire::LookupReply Lookup(const Caller& caller, const wire::Lookup& lookup);
  bool ReleaseLease(const Caller& caller, uint64_t lease);

  // kDecoded: `targets` one a segment. kAsStored: sealed segments in `payload`.
  struct Fetched {
    wire::FetchReply reply;
    std::vector<std::byte> payload;
  };
  void Fetch(const Caller& caller, const wire::Fetch& fetch, std::vector<MutableKvView> targets,
             MemoryGuard guard, std::function<void(Fetched)> done);

  // `payload` as wire::Report says. `done` tells whether it was taken (it may run inside the call);
  // the statistics fold in later, and nothing waits for them.
  void Report(const Caller& caller, const wire::Report& report, std::vector<std::byte> payload,
              std::function<void(Status)> done);

  wire::CountReply Delete(const Caller& caller, const wire::Delete& request);
  wire::CountReply Clear(const Caller& caller, const wire::Clear& request);
  // Of a block that the bank has, `done` runs when the bank has synced the pin too (else inside the
  // call). A bank that fails: its status; the pins hold until a restart.
  void Pin(const Caller& caller, const wire::Pin& request,
           std::function<void(wire::CountReply)> done);
  void BankDrop(const Caller& caller, const wire::BankDrop& request,
                std::function<void(wire::CountReply)> done);
  wire::GetBasisReply GetBasis(const Caller& caller, const wire::GetBasis& request,
                               std::vector<std::byte>* payload);

  void PutOpaque(const Caller& caller, const wire::PutOpaque& put, std::vector<std::byte> bytes,
                 std::function<void(Status)> done);
  void GetOpaque(const Caller& caller, const wire::GetOpaque& get,
                 std::function<void(wire::OpaqueReply, std::vector<std::byte>)> done);

  // A client is gone: its unfinished puts and its leases are dropped.
  void CloseSession(SessionId session);

  // One slice of housekeeping (below 0.5 ms of the loop): expiry, price, demotion, spill,
  // eviction, compaction, learning. True while there is more to do: call again after a tick.
  bool Tick();
  // Runs when something made housekeeping necessary; the owner arms its timer.
  void OnBusy(std::function<void()> busy);
  // Runs when a lease ended before its holder let go of it.
  void OnLeaseRevoked(std::function<void(SessionId, uint64_t lease)> revoked);

  // True while something falls due by itself (leases, unfinished puts, young blocks, chains to
  // decide): Tick must run now and then.
  bool NeedsClock() const;

  StoreStats stats() const;
  std::vector<TenantUse> Tenants() const;
  std::vector<record::BlockMeta> Banked(TenantId tenant, const wire::Query& query) const;
  std::vector<ContextFact> Contexts(TenantId tenant) const;  // 0: of all tenants
  std::vector<BlockFact> Inspect(TenantId tenant, const wire::Query& query) const;
  const StoreOptions& options() const;

 private:
  friend class StoreTestPeer;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dyna
