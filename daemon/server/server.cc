#include "daemon/server/server.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "client/base/asio.h"
#include "client/base/asio_executor.h"
#include "client/base/log.h"
#include "client/base/os.h"
#include "client/transport/sigbus_guard.h"
#include "client/transport/ucx_transport.h"
#include "daemon/admin/http_server.h"
#include "daemon/admin/query_json.h"
#include "daemon/admin/sd_notify.h"
#include "daemon/admin/status_view.h"
#include "daemon/config/config.h"
#include "daemon/net/listener.h"
#include "daemon/server/arena_warmer.h"
#include "daemon/server/backend_choice.h"
#include "daemon/server/codec_pool.h"
#include "daemon/server/store_mapping.h"
#include "daemon/tier/guarded_store.h"
#include "daemon/tier/kept_deletions.h"
#include "daemon/tier/rocks/rocks_store.h"

#ifndef DYNA_VERSION
#define DYNA_VERSION "0.0.0"
#endif

namespace dyna {
namespace {

constexpr int kExitDeviceLost = 75;  // EX_TEMPFAIL
// Together below the 5 s in which a lost device must be somebody else's.
constexpr std::chrono::milliseconds kLostDrain{2000}, kLostGrace{1000};
constexpr unsigned kLostSeconds = 4;  // then without closing: a call of the driver may hang

Status MakeDirectory(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return Internal("cannot create " + path + ": " + error.message());
  return {};
}

}  // namespace

struct Server::Impl {
  explicit Impl(config::Options o) : options(std::move(o)), executor(loop), signals(loop) {}

  std::vector<std::string> NotReady() const;
  admin::Snapshot Snapshot() const;
  void ArmTick();
  void OnSignal(int signal);
  void Reload();
  void Stop(std::chrono::milliseconds drain, std::chrono::milliseconds grace);
  void DeviceLost(const std::string& error);
  Result<UcxTransport*> Ucx();

  config::Options options;
  std::function<Result<config::Options>()> reload;
  SystemClock clock;
  const TimePoint started = clock.Now();
  // In the order of construction; destroyed from the last to the first.
  asio::io_context loop;
  AsioExecutor executor;
  asio::signal_set signals;
  BackendChoice backend;
  std::unique_ptr<CodecPool> codec;
  std::unique_ptr<SpillPool> disk_threads;
  std::unique_ptr<SpillStore> spill, bank;
  std::unique_ptr<Arena> arena;
  std::unique_ptr<ArenaWarmer> warmer;
  std::unique_ptr<Store> store;
  std::unique_ptr<UcxTransport> ucx;
  std::unique_ptr<SessionHost> host;
  std::unique_ptr<Listener> listener;
  std::unique_ptr<admin::HttpServer> http;
  bool tick_armed = false, ready = false, stopping = false;
  std::string device_lost;  // why
  uint64_t reloads = 0, reload_failures = 0;
  Histogram loop_delay;
  int exit_code = 0;
};

std::vector<std::string> Server::Impl::NotReady() const {
  std::vector<std::string> why;
  if (!ready) why.push_back("recovering blocks from disk");
  if (!device_lost.empty()) why.push_back("the GPU is lost: " + device_lost);
  if (stopping) why.push_back("stopping");
  return why;
}

admin::Snapshot Server::Impl::Snapshot() const {
  admin::Snapshot s;
  s.version = DYNA_VERSION;
  s.isa = std::string(backend.backend->description());
  s.backend.name = std::string(backend.backend->name());
  s.backend.gpu = backend.gpu;
  s.backend.driver = backend.driver;
  s.backend.why_cpu = backend.why_cpu;
  if (backend.device != nullptr) {
    const FallbackStats f = backend.device->stats();
    s.backend.failures = f.failures;
    s.backend.redone_jobs = f.redone;
    s.backend.last_error = f.last_error;
    s.backend.lost = backend.device->lost();
  }
  s.policy = options.policy.name;
  s.instance_id = host ? host->instance_id : 0;
  s.uptime_seconds = std::chrono::duration<double>(clock.Now() - started).count();
  s.draining = stopping;
  s.not_ready = NotReady();
  s.store = store->stats();
  s.arena = arena->stats();
  s.spill_enabled = spill != nullptr;
  s.bank_enabled = bank != nullptr;
  if (spill) s.spill = spill->stats();
  if (bank) s.bank = bank->stats();
  if (ucx) {
    const UcxStats u = ucx->stats();
    const uint64_t rejected = u.unknown_token_frames + u.malformed_frames;
    s.ucx = {true,     u.channels, u.rescued_wakeups,   u.endpoint_errors,
             rejected, u.closing,  u.abandoned_requests};
  }
  s.contexts = store->Contexts(0);
  if (host) {
    const NetStats& n = host->stats;
    for (const auto& [type, op] : n.ops)
      s.requests.push_back({wire::TypeName(type), op.results, op.seconds});
    s.clients = n.clients;
    s.clients_refused = n.clients_refused;
    s.rejected_frames = n.rejected_frames;
    s.auth_failures = n.auth_failures;
    s.regions = n.regions;
    s.region_bytes = n.region_bytes;
    s.device_regions = n.device_regions;
    s.pinned_bytes = warmer->pinned_bytes();
    s.poisoned_regions = n.poisoned_regions;
    s.inflight_requests = n.inflight_requests;
    s.staging_bytes = host->staging->out_bytes() + host->staging->idle_bytes();
    s.staging_used_bytes = host->staging->out_bytes();
  }
  s.open_puts = s.store.writing_blocks;
  for (const TenantUse& t : store->Tenants()) s.tenants.push_back({t.name, t.bytes, t.quota_bytes});
  s.codec_queue = codec->queued();
  s.codec_threads = codec->threads();
  s.log_dropped = DroppedLogLines();
  s.loop_delay = loop_delay;
  s.reloads = reloads;
  s.reload_failures = reload_failures;
  return s;
}

// Armed only while there is something to do: an idle daemon uses no CPU.
void Server::Impl::ArmTick() {
  if (tick_armed || stopping) return;
  tick_armed = true;
  executor.Post([this] {
    const TimePoint posted = clock.Now();
    const bool more = store->Tick();
    const auto again =
        more ? std::chrono::milliseconds(1) : std::chrono::milliseconds(options.server.tick_ms);
    if (!more && !store->NeedsClock()) {
      tick_armed = false;
      return;
    }
    const TimePoint due = posted + again;
    executor.PostAt(due, [this, due] {
      loop_delay.Observe(std::chrono::duration<double>(clock.Now() - due).count());
      tick_armed = false;
      ArmTick();
    });
  });
}

Result<UcxTransport*> Server::Impl::Ucx() {
  if (ucx) return ucx.get();
  if (!options.ucx.enabled) return Unsupported("UCX is off (ucx.enabled)");
  auto made = UcxTransport::Create(loop, UcxOptionsOf(options));
  if (!made.ok()) return made.status();
  ucx = std::move(*made);
  LogInfo("UCX {} loaded: transports {}, devices {}", ucx->version(), options.ucx.tls,
          options.ucx.net_devices);
  return ucx.get();
}

void Server::Impl::Reload() {
  if (!reload) {
    LogWarn("SIGHUP: started without a configuration file, nothing to read again");
    return;
  }
  auto loaded = reload();
  if (!loaded.ok()) {
    ++reload_failures;
    LogError("SIGHUP: kept the running configuration: {}", loaded.status().message());
    return;
  }
  std::vector<config::Change> changes;
  options = config::Reload(options, *loaded, changes);
  for (const config::Change& c : changes)
    LogInfo("SIGHUP: {}: {} -> {}{}", c.key, c.from, c.to, c.applied ? "" : " (needs a restart)");
  if (auto level = ParseLogLevel(options.log.level); level.ok()) SetLogLevel(*level);
  if (spill) spill->SetBudget(options.spill.bytes);
  if (bank) bank->SetBudget(options.bank.bytes);
  store->SetOptions(StoreOptionsOf(options));
  for (const config::TenantOptions& t : options.tenants)
    store->ConfigureTenant(TenantOfName(t.name), t.name, t.quota_bytes);
  host->limits = NetLimitsOf(options);
  ++reloads;
}

void Server::Impl::OnSignal(int signal) {
  if (signal == SIGHUP)
    Reload();
  else
    Stop(std::chrono::milliseconds(options.server.drain_ms), std::chrono::seconds(5));
}

// Nothing in this process can use the device again, and other things than kernels may have failed
// with it: the service moves to a new process (systemd starts it, exit code 75) after what is in
// flight was done on the CPU and what is durable was flushed.
void Server::Impl::DeviceLost(const std::string& error) {
  device_lost = error;
  exit_code = kExitDeviceLost;
  LogError("the GPU is lost ({}): stopping with exit code {}", error, kExitDeviceLost);
  ::signal(SIGALRM, [](int) { _exit(kExitDeviceLost); });
  ::alarm(kLostSeconds);
  if (!stopping) Stop(kLostDrain, kLostGrace);
}

void Server::Impl::Stop(std::chrono::milliseconds drain, std::chrono::milliseconds grace) {
  if (stopping) {
    LogWarn("a second signal: stopping without waiting");
    loop.stop();
    return;
  }
  stopping = true;
  warmer->Stop();
  LogInfo("stopping: {} clients, {} blocks in memory", listener ? listener->sessions() : 0,
          store->stats().host.blocks);
  admin::SdNotify("STOPPING=1");
  host->draining = true;
  if (listener) listener->StopAccepting();
  const TimePoint deadline = clock.Now() + drain;
  store->Drain(deadline, [this] {
    if (listener) listener->GoawayAll("the daemon is stopping");
    executor.Post([this] { loop.stop(); });
  });
  executor.PostAt(deadline + grace, [this] {
    LogError("drain took longer than server.drain_ms: stopping anyway");
    loop.stop();
  });
}

Result<std::unique_ptr<Server>> Server::Build(config::Options options, BackendChoice backend,
                                              std::function<Result<config::Options>()> reload) {
  auto impl = std::make_unique<Impl>(std::move(options));
  Impl& s = *impl;
  const config::Options& o = s.options;
  s.reload = std::move(reload);
  DYNA_RETURN_IF_ERROR(InstallSigbusHandler());
  ::signal(SIGPIPE, SIG_IGN);
  DYNA_RETURN_IF_ERROR(MakeDirectory(o.server.state_dir));
  (void)chmod(o.server.state_dir.c_str(), 0700);
  DYNA_RETURN_IF_ERROR(
      MakeDirectory(std::filesystem::path(o.server.socket).parent_path().string()));

  s.backend = std::move(backend);
  if (s.backend.device != nullptr)
    s.backend.device->OnLost([p = impl.get()](const std::string& error) {
      p->executor.Post([p, error] { p->DeviceLost(error); });
    });
  // A device may take its time, which the loop has not got.
  s.codec = s.backend.device != nullptr
                ? std::make_unique<CodecPool>(s.executor, o.server.codec_threads, 0)
                : std::make_unique<CodecPool>(s.executor, o.server.codec_threads);
  s.disk_threads = std::make_unique<SpillPool>(static_cast<int>(o.spill.threads));
  if (o.spill.enabled) {
    RocksOptions r;
    r.kind = RocksOptions::Kind::kSpill;
    r.path = o.spill.dir;
    r.budget_bytes = o.spill.bytes;
    auto opened = OpenRocksStore(r, *s.disk_threads, s.executor);
    // A failing disk costs the spill tier, never the service.
    if (opened.ok())
      s.spill = KeepDeletions(
          GuardStore("spill", std::move(*opened), BreakerOptions{}, s.clock, s.executor), s.clock,
          s.executor);
    else
      LogError("spill: {}: running without it: {}", o.spill.dir, opened.status().message());
  }
  if (o.bank.enabled) {
    RocksOptions r;
    r.kind = RocksOptions::Kind::kBank;
    r.path = o.bank.dir;
    r.budget_bytes = o.bank.bytes;
    auto opened = OpenRocksStore(r, *s.disk_threads, s.executor);
    if (!opened.ok()) return opened.status();
    s.bank = KeepDeletions(std::move(*opened), s.clock, s.executor);
  }
  auto arena = Arena::Create({o.arena.bytes, 0, /*prefault=*/false});
  if (!arena.ok()) return arena.status();
  s.arena = std::move(*arena);
  s.warmer = std::make_unique<ArenaWarmer>(
      *s.arena, *s.codec, s.backend.shared.get(), s.clock,
      ArenaWarmer::Wanted{o.arena.prefault, o.arena.pinned && s.backend.shared != nullptr});
  s.store = std::make_unique<Store>(Store::Parts{s.clock, s.executor, *s.codec, *s.backend.backend,
                                                 *s.arena, s.spill.get(), s.bank.get()},
                                    StoreOptionsOf(o));
  for (const config::TenantOptions& t : o.tenants)
    s.store->ConfigureTenant(TenantOfName(t.name), t.name, t.quota_bytes);
  s.store->OnBusy([p = impl.get()] { p->ArmTick(); });
  s.store->OnLeaseRevoked([p = impl.get()](SessionId session, uint64_t lease) {
    if (p->listener) p->listener->RevokeLease(session, lease);
  });

  s.host.reset(
      new SessionHost{.loop = s.loop,
                      .executor = s.executor,
                      .clock = s.clock,
                      .store = *s.store,
                      .codec = *s.codec,
                      .limits = NetLimitsOf(o),
                      .instance_id = RandomU64(),
                      .version = DYNA_VERSION,
                      .staging = StagingPool::Create(o.limits.request_bytes * 4, 256u << 20),
                      .shared = s.backend.shared.get()});
  s.host->off_loop = [p = impl.get()](std::function<void()> work, std::function<void()> done) {
    if (p->codec) return p->codec->Run(SIZE_MAX, std::move(work), std::move(done));
    work();  // stopping: no thread computes any more
    p->executor.Post(std::move(done));
  };
  s.host->tenant_of = [p = impl.get()](uid_t uid) { return TenantOfUid(p->options, uid); };
  s.host->is_operator = [](uid_t uid) { return uid == 0 || uid == geteuid(); };
  s.host->ucx = [p = impl.get()] { return p->Ucx(); };
  s.host->query = [p = impl.get()](const Caller& caller,
                                   const wire::Query& query) -> Result<std::string> {
    switch (query.kind) {
      case wire::QueryKind::kStats:
        return admin::StatusJson(p->Snapshot());
      case wire::QueryKind::kContexts:
        return admin::ContextsJson(p->store->Contexts(caller.tenant));
      case wire::QueryKind::kInspect:
        return admin::BlocksJson(p->store->Inspect(caller.tenant, query));
      case wire::QueryKind::kBankList:
        return admin::BankJson(p->store->Banked(caller.tenant, query));
    }
    return Unsupported("query: unknown kind");
  };
  if (o.admin.enabled) {
    auto http = admin::HttpServer::Listen(
        s.loop, {o.admin.address, o.admin.port, o.admin.connections, 10'000},
        {[p = impl.get()] { return p->Snapshot(); }, [p = impl.get()] { return p->NotReady(); }});
    if (!http.ok())
      return Status(http.status().code(), "admin page: " + std::string(http.status().message()) +
                                              " (set admin.port, or admin.enabled = false)");
    s.http = std::move(*http);
  }
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() {
  Impl& s = *impl_;
  s.http.reset();
  s.listener.reset();
  s.loop.restart();
  s.loop.poll();
  // After a forced stop work is under way. Its completions would go on to codec and disks, which
  // are about to go; they are dropped, with what they hold of the arena.
  s.executor.DropTasks();
  s.codec.reset();  // joins: nothing computes any more
  s.spill.reset();
  s.bank.reset();
  s.disk_threads.reset();
  s.loop.restart();
  s.loop.poll();
  s.store.reset();
  s.ucx.reset();
  s.warmer.reset();
  s.arena.reset();
  s.backend.backend.reset();
  s.backend.shared.reset();
  if (!s.device_lost.empty()) ::alarm(0);  // closed in time
}

uint16_t Server::admin_port() const { return impl_->http ? impl_->http->port() : 0; }

int Server::Run() {
  Impl& s = *impl_;
  SetThreadName("dyna-loop");
  s.signals.add(SIGTERM);
  s.signals.add(SIGINT);
  s.signals.add(SIGHUP);
  std::function<void()> wait = [&] {
    s.signals.async_wait([&](const auto& error, int signal) {
      if (error) return;
      s.OnSignal(signal);
      wait();
    });
  };
  wait();
  if (!s.backend.gpu.empty())
    LogInfo("backend: {}, driver {}", s.backend.gpu, s.backend.driver);
  else if (!s.backend.why_cpu.empty())
    LogInfo("backend: the CPU, because {}", s.backend.why_cpu);
  // The socket opens when every block that outlived us is known: until then there is nobody to
  // serve.
  s.store->Recover([&s](Status recovered) {
    if (!recovered.ok()) {
      LogError("the bank cannot be read: {}", recovered.ToString());
      s.exit_code = 1;
      s.loop.stop();
      return;
    }
    if (s.stopping) return;
    auto allowed = [&s](uid_t uid) {
      const auto& uids = s.options.server.uids;
      if (uids.empty()) return uid == 0 || uid == geteuid();
      return std::find(uids.begin(), uids.end(), uid) != uids.end();
    };
    auto listener = Listener::Open(*s.host, s.options.server.socket, allowed);
    if (!listener.ok()) {
      LogError("cannot listen: {}", listener.status().ToString());
      s.exit_code = 1;
      s.loop.stop();
      return;
    }
    s.listener = std::move(*listener);
    s.ready = true;
    LogInfo("ready: socket {} arena {} bytes, {}, {} codec threads, policy {}, admin {}",
            s.options.server.socket, s.options.arena.bytes, s.backend.backend->description(),
            s.codec->threads(), s.options.policy.name,
            s.http ? "http://" + s.options.admin.address + ":" + std::to_string(s.http->port())
                   : "off");
    admin::SdNotify("READY=1");
    s.warmer->Start();
  });
  s.loop.run();
  LogInfo("stopped");
  return s.exit_code;
}

}  // namespace dyna
