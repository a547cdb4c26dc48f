// What a Client and its contexts share: the library's one thread, the connection and what is kept
// over connections. Methods say who may call them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "client/base/asio.h"
#include "client/base/fork_guard.h"
#include "client/basis_cache.h"
#include "client/connection.h"
#include "client/device_api.h"
#include "client/flights.h"
#include "client/region_table.h"
#include "client/requests.h"
#include "client/staging_pool.h"
#include "client/state.h"
#include "kernels/backend.h"

namespace dyna {

class ClientCore : public std::enable_shared_from_this<ClientCore> {
 public:
  // Connects; waits for the first try.
  static Result<std::shared_ptr<ClientCore>> Start(ClientOptions options);
  // Ends every call and the thread. Once, any thread. In a forked child: nothing is touched.
  void Stop();

  // ---- any thread
  Status CheckUsable() const;             // UNSUPPORTED in a forked child
  bool Post(std::function<void()> task);  // false: stopped
  bool on_loop() const { return std::this_thread::get_id() == loop_thread_; }
  const ClientOptions& options() const { return options_; }
  RegionTable& regions() { return regions_; }
  DeviceApi& device() { return device_; }
  TimePoint DeadlineOf(Deadline d) const {
    return clock_.Now() + (d.count() > 0 ? d : options_.deadline);
  }
  ClientInfo info() const;

  // ---- the loop
  ClientStats CollectStats() const;
  void Submit(Call call) { flights_->Submit(std::move(call)); }
  // Not OK: the connection is lost, and ClientOptions::reconnect is false.
  const Status& lost_for_good() const { return flights_->lost_for_good(); }
  uint64_t epoch() const { return connection_->epoch(); }
  uint64_t byte_credits() const { return connection_->hello().byte_credits; }
  bool has_ucx() const { return connection_->has_ucx(); }
  bool same_host() const { return connection_->endpoint().is_unix; }
  TimePoint Now() const { return clock_.Now(); }
  void At(TimePoint when, std::function<void()> task);  // Stop() runs it early
  ClientStaging& staging() { return *staging_; }
  BasisCache& bases() { return bases_; }
  Backend& backend() { return *backend_; }
  using Registered = std::function<void(Result<std::shared_ptr<RegisteredRegion>>)>;
  void RegisterRegion(std::shared_ptr<Region> region, TimePoint deadline, Registered done);
  void RegisterGpu(std::shared_ptr<GpuRegion> region, TimePoint deadline, Registered done);
  // `done` when the daemon has let go of it. No later call names it.
  void ReleaseRegion(const std::shared_ptr<RegisteredRegion>& region, TimePoint deadline,
                     std::function<void(Status)> done);
  void AddContext(const std::shared_ptr<ContextState>& context) { contexts_.push_back(context); }
  void AddLease(const std::shared_ptr<LeaseState>& lease) { leases_[lease->id] = lease; }
  void ForgetLease(uint64_t id) { leases_.erase(id); }
  void CountInPlace(uint64_t bytes, bool staged) {
    bytes_in_place_ += bytes;
    if (staged) bytes_staged_ += bytes;
  }

  ClientCore(ClientOptions options, SocketEndpoint endpoint, std::unique_ptr<Backend> backend);
  ~ClientCore();

 private:
  void Run(std::function<void(Status)> first);
  Connection::Owner MakeOwner();
  void Snapshot();  // for info()
  RegisteredRegion::Gone WhenGone();
  void Register(std::shared_ptr<RegisteredRegion> handle, TimePoint deadline, Registered done);
  void Deregister(uint32_t id, uint64_t epoch);

  const ClientOptions options_;
  const ForkGuard fork_guard_;
  SystemClock clock_;
  asio::io_context loop_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{loop_.get_executor()};
  AsioExecutor executor_{loop_};
  DeviceApi& device_;
  std::unique_ptr<Backend> backend_;
  RegionTable regions_;
  BasisCache bases_;
  std::vector<std::weak_ptr<ContextState>> contexts_;
  std::unordered_map<uint64_t, std::weak_ptr<LeaseState>> leases_;
  std::unique_ptr<Flights> flights_;
  std::unique_ptr<Connection> connection_;
  std::shared_ptr<ClientStaging> staging_;
  uint64_t bytes_in_place_ = 0, bytes_staged_ = 0;
  std::set<std::shared_ptr<std::function<void()>>> later_;  // bounded by the calls there may be

  std::thread thread_;
  std::thread::id loop_thread_;
  mutable std::mutex mutex_;  // what follows
  bool stopped_ = false;
  ClientInfo info_;
};

// Makes a T that says `s`: results carry their status in one of two ways.
template <typename T>
T FailedWith(Status s) {
  if constexpr (requires(T t) { t.segments; }) {
    T t;
    t.status = std::move(s);
    return t;
  } else {
    return T(std::move(s));
  }
}

// Starts an asynchronous call on the loop; `start` gets `done`. When the library cannot take it
// (stopped, forked) `done` runs here.
template <typename T, typename Start>
void RunAsync(const std::shared_ptr<ClientCore>& core, std::function<void(T)> done, Start start) {
  if (Status s = core->CheckUsable(); !s.ok()) return done(FailedWith<T>(s));
  auto shared = std::make_shared<std::function<void(T)>>(std::move(done));
  if (!core->Post([shared, start = std::move(start)]() mutable { start(std::move(*shared)); }))
    (*shared)(FailedWith<T>(Status(StatusCode::kCancelled, "the client is closed")));
}

// Waits for it. Every call has a deadline, so this ends.
template <typename T, typename Async>
T Await(const std::shared_ptr<ClientCore>& core, Async async) {
  if (core->on_loop()) return FailedWith<T>(Invalid("blocking call inside a completion callback"));
  std::mutex mutex;
  std::condition_variable ready;
  std::optional<T> result;
  async([&](T value) {
    std::lock_guard lock(mutex);
    result.emplace(std::move(value));
    ready.notify_one();  // under the lock: the waiter's stack goes as soon as it sees the result
  });
  std::unique_lock lock(mutex);
  ready.wait(lock, [&] { return result.has_value(); });
  return std::move(*result);
}

}  // namespace dyna
