#include <utility>

#include "client/client.h"
#include "client/submit.h"
#include "client/transfer.h"

namespace dyna {
namespace {

void SubmitLookup(const std::shared_ptr<ClientCore>& core, const ContextState& context,
                  LookupRequest request, bool lease,
                  std::function<void(Result<wire::LookupReply>)> done) {
  if (Status s = Validate(request.shard, context.spec); !s.ok()) return done(std::move(s));
  SubmitFor<wire::LookupReply, Result<wire::LookupReply>>(
      *core,
      wire::Lookup{context.fingerprint, request.shard, std::move(request.hashes),
                   request.min_quality, request.max_nmse, lease, Millis(request.ttl)},
      request.deadline, std::move(done),
      [](wire::LookupReply reply) -> Result<wire::LookupReply> { return reply; });
}

// What was submitted to the GPU about K and V comes first. Waits in the caller's thread.
Status WaitFor(ClientCore& core, const KvMemory& memory) {
  if (!memory.on_device || memory.k.empty()) return {};
  return core.device().Wait(memory.k[0], memory.stream);
}

}  // namespace

Context::Context(std::shared_ptr<ClientCore> core, std::shared_ptr<ContextState> state)
    : core_(std::move(core)), state_(std::move(state)) {}
Context::~Context() = default;

Fingerprint Context::fingerprint() const { return state_->fingerprint; }
const ContextSpec& Context::spec() const { return state_->spec; }
Shard Context::whole() const {
  Shard s{0, static_cast<uint16_t>(spec().layers.size()), 0, 0};
  for (const LayerShape& l : spec().layers)
    if (l.kind != LayerKind::kOpaque && s.head_end == 0) s.head_end = l.kv_heads;
  return s;
}

void Context::PutAsync(PutRequest request, Done<PutResult> done) {
  if (request.shard.layer_end == 0) request.shard = whole();
  if (Status s = WaitFor(*core_, request.source); !s.ok())
    return done(FailedWith<PutResult>(std::move(s)));
  RunAsync<PutResult>(
      core_, std::move(done),
      [core = core_, state = state_, request = std::move(request)](Done<PutResult> then) mutable {
        StartPut(core, state, std::move(request), std::move(then));
      });
}
PutResult Context::Put(PutRequest request) {
  return Await<PutResult>(
      core_, [&](Done<PutResult> done) { PutAsync(std::move(request), std::move(done)); });
}

void Context::LookupAsync(LookupRequest request, Done<Result<Lease>> done) {
  if (request.shard.layer_end == 0) request.shard = whole();
  RunAsync<Result<Lease>>(
      core_, std::move(done),
      [core = core_, state = state_,
       request = std::move(request)](Done<Result<Lease>> then) mutable {
        const Shard shard = request.shard;
        SubmitLookup(core, *state, std::move(request), true,
                     [core, state, shard, then = std::move(then)](Result<wire::LookupReply> reply) {
                       if (!reply.ok()) return then(reply.status());
                       auto lease = std::make_shared<LeaseState>();
                       lease->core = core;
                       lease->context = state;
                       lease->shard = shard;
                       lease->hits = std::move(reply->hits);
                       lease->id = reply->lease;
                       lease->run = reply->run;
                       lease->epoch = core->epoch();
                       if (lease->id != 0) core->AddLease(lease);
                       then(Lease(std::move(lease)));
                     });
      });
}
Result<Lease> Context::Lookup(LookupRequest request) {
  return Await<Result<Lease>>(
      core_, [&](Done<Result<Lease>> done) { LookupAsync(std::move(request), std::move(done)); });
}

void Context::ExistsAsync(LookupRequest request, Done<Result<std::vector<wire::LookupHit>>> done) {
  using Hits = Result<std::vector<wire::LookupHit>>;
  if (request.shard.layer_end == 0) request.shard = whole();
  RunAsync<Hits>(
      core_, std::move(done),
      [core = core_, state = state_, request = std::move(request)](Done<Hits> then) mutable {
        SubmitLookup(core, *state, std::move(request), false,
                     [then = std::move(then)](Result<wire::LookupReply> reply) {
                       if (!reply.ok()) return then(reply.status());
                       then(std::move(reply->hits));
                     });
      });
}
Result<std::vector<wire::LookupHit>> Context::Exists(LookupRequest request) {
  using Hits = Result<std::vector<wire::LookupHit>>;
  return Await<Hits>(core_,
                     [&](Done<Hits> done) { ExistsAsync(std::move(request), std::move(done)); });
}

void Context::FetchAsync(const Lease& lease, FetchRequest request, Done<FetchResult> done) {
  if (Status s = WaitFor(*core_, request.target); !s.ok())
    return done(FailedWith<FetchResult>(std::move(s)));
  RunAsync<FetchResult>(core_, std::move(done),
                        [core = core_, held = lease.state_,
                         request = std::move(request)](Done<FetchResult> then) mutable {
                          StartFetch(core, held, std::move(request), std::move(then));
                        });
}
FetchResult Context::Fetch(const Lease& lease, FetchRequest request) {
  return Await<FetchResult>(core_, [&](Done<FetchResult> done) {
    FetchAsync(lease, std::move(request), std::move(done));
  });
}

void Context::ReportAsync(ReportRequest request, Done<Status> done) {
  auto data = std::make_shared<std::vector<std::byte>>(request.data.begin(), request.data.end());
  request.report.context = state_->fingerprint;
  RunAsync<Status>(core_, std::move(done),
                   [core = core_, report = request.report, deadline = request.deadline,
                    data](Done<Status> then) {
                     Call call;
                     call.request = report;
                     call.payload.push_back(*data);
                     call.deadline = core->DeadlineOf(deadline);
                     call.done = [data, then = std::move(then)](Result<wire::Message> outcome) {
                       const auto reply = Expect<wire::StatusReply>(std::move(outcome));
                       then(reply.ok() ? reply->status : reply.status());
                     };
                     core->Submit(std::move(call));
                   });
}
Status Context::Report(ReportRequest request) {
  return Await<Status>(
      core_, [&](Done<Status> done) { ReportAsync(std::move(request), std::move(done)); });
}

void Context::DeleteAsync(std::vector<BlockHash> hashes, Done<Result<uint64_t>> done,
                          Deadline deadline) {
  RunAsync<Result<uint64_t>>(
      core_, std::move(done),
      [core = core_, m = wire::Delete{state_->fingerprint, std::move(hashes)},
       deadline](Done<Result<uint64_t>> then) mutable {
        SubmitFor<wire::CountReply, Result<uint64_t>>(
            *core, std::move(m), deadline, std::move(then),
            [](wire::CountReply reply) -> Result<uint64_t> { return reply.count; });
      });
}
Result<uint64_t> Context::Delete(std::vector<BlockHash> hashes, Deadline deadline) {
  return Await<Result<uint64_t>>(core_, [&](Done<Result<uint64_t>> done) {
    DeleteAsync(std::move(hashes), std::move(done), deadline);
  });
}

Result<uint64_t> Context::Clear(Deadline deadline) {
  return AwaitCount(core_, wire::Clear{state_->fingerprint}, deadline);
}
Result<uint64_t> Context::Pin(std::vector<BlockHash> hashes, bool pinned,
                              std::chrono::milliseconds ttl, Deadline deadline) {
  return AwaitCount(core_, wire::Pin{state_->fingerprint, std::move(hashes), pinned, Millis(ttl)},
                    deadline);
}

}  // namespace dyna
