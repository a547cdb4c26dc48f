#include "client/core.h"

#include <signal.h>

#include <utility>

#include "client/base/os.h"
#include "kernels/host_copy_backend.h"

namespace dyna {

ClientCore::ClientCore(ClientOptions options, SocketEndpoint endpoint,
                       std::unique_ptr<Backend> backend)
    : options_(std::move(options)),
      device_(options_.device_api != nullptr ? *options_.device_api : CudaDriver()),
      backend_(std::make_unique<HostCopyBackend>(std::move(backend), &device_)) {
  flights_ = std::make_unique<Flights>(executor_, clock_, options_.max_calls);
  connection_ = std::make_unique<Connection>(loop_, clock_, options_, std::move(endpoint),
                                             *flights_, MakeOwner());
  info_.endpoint = options_.endpoint;
  info_.bulk = options_.bulk;
  info_.backend = backend_->description();
}

ClientCore::~ClientCore() = default;

Result<std::shared_ptr<ClientCore>> ClientCore::Start(ClientOptions options) {
  DYNA_ASSIGN_OR_RETURN(SocketEndpoint endpoint, SocketEndpoint::Parse(options.endpoint));
  if (!endpoint.is_unix && options.bulk == Bulk::kRegion)
    return Unsupported("regions need a daemon on this host, reached over its unix socket");
  DYNA_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, MakeCpuBackend());
  auto core = std::make_shared<ClientCore>(std::move(options), endpoint, std::move(backend));
  core->staging_ = std::make_shared<ClientStaging>(
      core->options_.staging_bytes, core->executor_, core->clock_,
      [weak = std::weak_ptr(core)](uint64_t bytes, auto made) {
        auto self = weak.lock();  // the loop runs, so it is there
        auto region = Region::Allocate(bytes);
        if (!region.ok()) return made(region.status());
        self->RegisterRegion(*region, self->DeadlineOf({}), std::move(made));
      });
  const Status first = Await<Status>(core, [&](std::function<void(Status)> done) {
    core->thread_ = std::thread([core, done = std::move(done)] { core->Run(done); });
  });
  if (!first.ok()) {
    core->Stop();
    return first;
  }
  return core;
}

void ClientCore::Run(std::function<void(Status)> first) {
  loop_thread_ = std::this_thread::get_id();
  SetThreadName("dyna-client");
  sigset_t all;  // the program's signals are for the program's threads
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  connection_->Start(std::move(first));
  loop_.run();
  // Stop(): first nothing touches memory of calls any more, then they end.
  loop_.restart();
  connection_->Close();
  while (loop_.poll() > 0) continue;
  while (!later_.empty()) (*later_.extract(later_.begin()).value())();
  staging_->Stop();
  flights_->Stop();
  while (loop_.poll() > 0) continue;
}

void ClientCore::Stop() {
  if (fork_guard_.forked()) return;
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(stopped_, true)) return;
    info_.connected = false;
  }
  asio::post(loop_, [this] { loop_.stop(); });
  if (on_loop())
    thread_.detach();  // the thread holds the core until it ends
  else
    thread_.join();
}

void ClientCore::At(TimePoint when, std::function<void()> task) {
  auto shared = *later_.insert(std::make_shared<std::function<void()>>(std::move(task))).first;
  executor_.PostAt(when, [this, weak = std::weak_ptr(shared)] {
    const auto due = weak.lock();
    if (due && later_.erase(due) > 0) (*due)();
  });
}

Status ClientCore::CheckUsable() const { return fork_guard_.Check(); }

bool ClientCore::Post(std::function<void()> task) {
  std::lock_guard lock(mutex_);  // so that what was accepted is ahead of Stop()'s task
  if (stopped_) return false;
  asio::post(loop_, std::move(task));
  return true;
}

Connection::Owner ClientCore::MakeOwner() {
  Connection::Owner owner;
  owner.regions = [this] { return regions_.All(); };
  owner.contexts = [this] {
    std::vector<std::shared_ptr<ContextState>> live;
    std::vector<std::weak_ptr<ContextState>> kept;
    for (const auto& weak : contexts_)
      if (auto context = weak.lock()) {
        kept.push_back(context);
        live.push_back(std::move(context));
      }
    contexts_ = std::move(kept);
    return live;
  };
  owner.lease_revoked = [this](uint64_t id) {
    const auto it = leases_.find(id);
    if (it == leases_.end()) return;
    if (auto lease = it->second.lock()) lease->lost = true;
    leases_.erase(it);
  };
  owner.ready = [this] { Snapshot(); };
  owner.lost = [this] {
    for (const auto& [id, weak] : leases_)
      if (auto lease = weak.lock()) lease->lost = true;
    leases_.clear();
    Snapshot();
  };
  return owner;
}

void ClientCore::Snapshot() {
  std::lock_guard lock(mutex_);
  info_.connected = connection_->ready() && !stopped_;
  const wire::HelloReply& hello = connection_->hello();
  info_.server_version = hello.server_version;
  info_.instance_id = hello.instance_id;
  info_.features = hello.features;
  if (options_.bulk == Bulk::kAuto) info_.bulk = same_host() ? Bulk::kRegion : Bulk::kSocket;
}

ClientInfo ClientCore::info() const {
  if (fork_guard_.forked()) return {};
  std::lock_guard lock(mutex_);
  return info_;
}

ClientStats ClientCore::CollectStats() const {
  ClientStats s;
  const Flights::Counters& c = flights_->counters();
  s.calls = c.calls;
  s.failed = c.failed;
  s.bytes_sent = c.bytes_sent;
  s.bytes_received = c.bytes_received;
  s.in_flight = flights_->in_flight();
  s.queued = flights_->queued();
  s.reconnects = connection_->reconnects();
  s.bytes_in_place = bytes_in_place_;
  s.bytes_staged = bytes_staged_;
  s.bases_cached = bases_.size();
  for (const auto& region : regions_.All()) {
    ++s.regions;
    s.region_bytes += region->size();
    if (region->retired()) s.retired_region_bytes += region->size();
  }
  return s;
}

void ClientCore::RegisterRegion(std::shared_ptr<Region> region, TimePoint deadline,
                                Registered done) {
  if (!same_host())
    return done(Unsupported("regions need a daemon on this host, reached over its unix socket"));
  Register(std::make_shared<RegisteredRegion>(std::move(region), WhenGone()), deadline,
           std::move(done));
}

void ClientCore::RegisterGpu(std::shared_ptr<GpuRegion> region, TimePoint deadline,
                             Registered done) {
  if (!same_host() || (connection_->hello().features & wire::kFeatureDeviceRegions) == 0)
    return done(
        Unsupported("the daemon does not use this machine's GPU: K and V there are copied "
                    "through the host"));
  Register(std::make_shared<RegisteredRegion>(std::move(region), WhenGone()), deadline,
           std::move(done));
}

RegisteredRegion::Gone ClientCore::WhenGone() {
  return [weak = weak_from_this()](RegisteredRegion& gone) {
    const auto core = weak.lock();
    if (!core || core->fork_guard_.forked()) return;
    core->regions_.Remove(gone);
    if (gone.id != 0) core->Deregister(gone.id, gone.epoch);
  };
}

void ClientCore::Register(std::shared_ptr<RegisteredRegion> handle, TimePoint deadline,
                          Registered done) {
  Call call;
  auto described = handle->Describe(&call.fds);
  if (!described.ok()) return done(described.status());
  call.request = std::move(*described);
  call.deadline = deadline;
  call.done = [this, handle, done = std::move(done)](Result<wire::Message> reply) {
    auto got = Expect<wire::RegisterRegionReply>(std::move(reply));
    if (!got.ok()) return done(got.status());
    if (!got->status.ok()) return done(got->status);
    handle->id = got->region;
    handle->epoch = epoch();
    regions_.Add(handle);
    done(handle);
  };
  Submit(std::move(call));
}

void ClientCore::ReleaseRegion(const std::shared_ptr<RegisteredRegion>& region, TimePoint deadline,
                               std::function<void(Status)> done) {
  regions_.Take(*region);
  Call call;
  call.request = wire::DeregisterRegion{region->id};
  call.epoch = region->epoch;
  call.clean_up = true;
  call.deadline = deadline;
  call.done = [done = std::move(done)](Result<wire::Message> reply) {
    const auto got = Expect<wire::StatusReply>(std::move(reply));
    // Another connection: the daemon of the one that knew it has let go of it.
    done(got.status().code() == StatusCode::kLeaseLost ? Status() : got.status());
  };
  region->id = 0;
  Submit(std::move(call));
}

void ClientCore::Deregister(uint32_t id, uint64_t epoch) {
  Post([self = shared_from_this(), id, epoch] {
    Call call;
    call.request = wire::DeregisterRegion{id};
    call.epoch = epoch;  // another connection never heard of it
    call.clean_up = true;
    call.deadline = TimePoint::max();  // the end of its connection ends it
    call.done = [](const Result<wire::Message>&) {};
    self->Submit(std::move(call));
  });
}

}  // namespace dyna
