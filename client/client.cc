#include "client/client.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <new>
#include <utility>

#include "client/core.h"
#include "client/submit.h"

namespace dyna {
namespace {

std::string Env(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

std::string ProgramName() {
  std::string name;
  std::ifstream("/proc/self/comm") >> name;
  return name.empty() ? "client" : name;
}

template <typename T>
std::shared_ptr<T> UserPointer(std::shared_ptr<RegisteredRegion> handle, T* region) {
  return {std::move(handle), region};  // the registration lives as long as the pointer
}

Status CheckCredentials(const ClientOptions& o) {
  if (o.name.size() > 64) return Invalid("name: more than 64 bytes");
  if (o.token.size() > 4096) return Invalid("token: more than 4096 bytes");
  if (o.max_calls == 0) return Invalid("max_calls: 0");
  return {};
}

}  // namespace

// As daemon/config/machine.cc chooses: the runtime directory of the user, or of the machine.
std::string DefaultEndpoint() {
  if (std::string given = Env("DYNACOMPRESS_SOCKET"); !given.empty()) return given;
  const std::string machine = "/run/dynacompress/dynacompress.sock";
  if (getuid() == 0) return machine;
  std::string user = Env("XDG_RUNTIME_DIR");
  user = user.empty() ? "/tmp/dynacompress-" + std::to_string(getuid()) : user;
  user += "/dynacompress.sock";
  struct stat unused;
  return stat(user.c_str(), &unused) != 0 && stat(machine.c_str(), &unused) == 0 ? machine : user;
}

Client::Client(std::shared_ptr<ClientCore> core) : core_(std::move(core)) {}

Client::~Client() {
  if (core_->CheckUsable().ok()) {
    core_->Stop();
    return;
  }
  // A forked child: the thread is not here, and locks may be held for ever. Leave it all alone.
  new std::shared_ptr<ClientCore>(std::move(core_));
}

Result<std::unique_ptr<Client>> Client::Connect(ClientOptions options) {
  if (options.endpoint.empty()) options.endpoint = DefaultEndpoint();
  if (options.name.empty()) options.name = ProgramName();
  DYNA_RETURN_IF_ERROR(CheckCredentials(options));
  const std::string where = options.endpoint;
  auto core = ClientCore::Start(std::move(options));
  if (!core.ok())
    return Status(core.status().code(), where + ": " + std::string(core.status().message()));
  return std::unique_ptr<Client>(new Client(std::move(*core)));
}

Result<std::shared_ptr<Region>> Client::AllocateRegion(uint64_t bytes) {
  DYNA_RETURN_IF_ERROR(core_->CheckUsable());
  DYNA_ASSIGN_OR_RETURN(auto region, Region::Allocate(bytes));
  return Register(std::move(region));
}

Result<std::shared_ptr<Region>> Client::Register(std::shared_ptr<Region> region) {
  using Handle = Result<std::shared_ptr<RegisteredRegion>>;
  auto handle = Await<Handle>(core_, [&](Done<Handle> done) {
    RunAsync<Handle>(core_, std::move(done),
                     [core = core_, region = std::move(region)](Done<Handle> then) {
                       core->RegisterRegion(region, core->DeadlineOf({}), std::move(then));
                     });
  });
  if (!handle.ok()) return handle.status();
  Region* mapped = (*handle)->region.get();
  return UserPointer(std::move(*handle), mapped);
}

Result<std::shared_ptr<GpuRegion>> Client::RegisterGpu(void* memory, uint64_t bytes) {
  using Handle = Result<std::shared_ptr<RegisteredRegion>>;
  DYNA_RETURN_IF_ERROR(core_->CheckUsable());
  auto* at = static_cast<std::byte*>(memory);
  DYNA_ASSIGN_OR_RETURN(wire::RegisterRegion description, core_->device().Export(at, bytes));
  auto region = std::make_shared<GpuRegion>(at, std::move(description));
  auto handle = Await<Handle>(core_, [&](Done<Handle> done) {
    RunAsync<Handle>(core_, std::move(done), [core = core_, region](Done<Handle> then) {
      core->RegisterGpu(region, core->DeadlineOf({}), std::move(then));
    });
  });
  if (!handle.ok()) return handle.status();
  return UserPointer(std::move(*handle), region.get());
}

Status Client::ReleaseGpu(std::shared_ptr<GpuRegion> region, Deadline deadline) {
  if (!region) return Invalid("region: null");
  auto handle = core_->regions().Find({region->data(), 1});
  if (!handle || handle->gpu != region) return Invalid("region: released, or of another client");
  return Await<Status>(core_, [&](Done<Status> done) {
    RunAsync<Status>(core_, std::move(done), [core = core_, handle, deadline](Done<Status> then) {
      core->ReleaseRegion(handle, core->DeadlineOf(deadline), std::move(then));
    });
  });
}

void Client::OpenContextAsync(ContextSpec spec, std::vector<std::byte> profile,
                              Done<Result<std::shared_ptr<Context>>> done) {
  using Opened = Result<std::shared_ptr<Context>>;
  if (Status s = Validate(spec); !s.ok()) return done(std::move(s));
  auto state = std::make_shared<ContextState>();
  for (const Rope& rope : spec.ropes) state->ropes.emplace_back(rope);
  state->spec = std::move(spec);
  state->profile = std::move(profile);
  RunAsync<Opened>(core_, std::move(done), [core = core_, state](Done<Opened> then) {
    Call call;
    call.request = wire::OpenContext{state->spec};
    if (!state->profile.empty()) call.payload.push_back(state->profile);
    call.deadline = core->DeadlineOf({});
    call.done = [core, state, then = std::move(then)](Result<wire::Message> outcome) {
      const auto reply = Expect<wire::OpenContextReply>(std::move(outcome));
      if (!reply.ok()) return then(reply.status());
      if (!reply->status.ok()) return then(reply->status);
      state->fingerprint = reply->context;
      core->AddContext(state);
      then(std::make_shared<Context>(core, state));
    };
    core->Submit(std::move(call));
  });
}

Result<std::shared_ptr<Context>> Client::OpenContext(ContextSpec spec,
                                                     std::span<const std::byte> profile) {
  using Opened = Result<std::shared_ptr<Context>>;
  return Await<Opened>(core_, [&](Done<Opened> done) {
    OpenContextAsync(std::move(spec), {profile.begin(), profile.end()}, std::move(done));
  });
}

Result<std::string> Client::Query(wire::QueryKind kind, Fingerprint context,
                                  std::vector<BlockHash> hashes, uint32_t limit,
                                  Deadline deadline) {
  using Text = Result<std::string>;
  return Await<Text>(core_, [&](Done<Text> done) {
    RunAsync<Text>(core_, std::move(done),
                   [core = core_, m = wire::Query{kind, context, std::move(hashes), limit},
                    deadline](Done<Text> then) mutable {
                     auto text = std::make_shared<std::string>();
                     Call call;
                     call.request = std::move(m);
                     call.deadline = core->DeadlineOf(deadline);
                     call.receive = [text](const wire::Message&, uint64_t bytes) {
                       text->resize(bytes);
                       return std::vector{std::as_writable_bytes(std::span(*text))};
                     };
                     call.done = [text, then = std::move(then)](Result<wire::Message> outcome) {
                       const auto reply = Expect<wire::QueryReply>(std::move(outcome));
                       if (!reply.ok()) return then(reply.status());
                       if (!reply->status.ok()) return then(reply->status);
                       then(std::move(*text));
                     };
                     core->Submit(std::move(call));
                   });
  });
}

Result<uint64_t> Client::ClearTenant(Deadline deadline) {
  return AwaitCount(core_, wire::Clear{0}, deadline);
}
Status Client::SetBudget(uint64_t bytes, Deadline deadline) {
  return AwaitStatus(core_, wire::SetBudget{bytes}, deadline);
}
Result<uint64_t> Client::BankDrop(Fingerprint context, std::vector<BlockHash> hashes,
                                  Deadline deadline) {
  return AwaitCount(core_, wire::BankDrop{context, std::move(hashes)}, deadline);
}

ClientInfo Client::info() const { return core_->info(); }

ClientStats Client::stats() const {
  using Stats = Result<ClientStats>;
  const auto stats = Await<Stats>(core_, [&](Done<Stats> done) {
    RunAsync<Stats>(core_, std::move(done),
                    [core = core_](Done<Stats> then) { then(core->CollectStats()); });
  });
  return stats.ok() ? *stats : ClientStats{};
}

}  // namespace dyna
