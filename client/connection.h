// The connection to the daemon: connect, Hello, register again what was registered, and once more
// with back-off when it is lost. Lives on the loop.
//
// After a loss it first finds out whether the daemon's process is dead: only then named memory of
// calls in flight is surely the caller's again (design 5).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "client/base/asio_executor.h"
#include "client/base/deadline_queue.h"
#include "client/flights.h"
#include "client/requests.h"
#include "client/transport/channel.h"
#include "client/transport/peer_watch.h"
#include "client/transport/socket_endpoint.h"
#include "client/transport/ucx_transport.h"

namespace dyna {

struct ContextState;

class Connection {
 public:
  // Asked by, and told by, the connection; all on the loop.
  struct Owner {
    std::function<std::vector<std::shared_ptr<RegisteredRegion>>()> regions;
    std::function<std::vector<std::shared_ptr<ContextState>>()> contexts;
    std::function<void(uint64_t lease)> lease_revoked;
    std::function<void()> ready;  // everything is registered; `hello` is of this daemon
    std::function<void()> lost;
  };

  Connection(asio::io_context& loop, const Clock& clock, const ClientOptions& options,
             SocketEndpoint endpoint, Flights& flights, Owner owner);
  ~Connection();

  // `first` runs once: how the first try ended. After a failure there is no second.
  void Start(std::function<void(Status)> first);
  // Ends it for good; memory of calls is let go of once the loop ran (and UCX is destroyed here).
  void Close();

  uint64_t epoch() const { return epoch_; }  // counts connections, from 1
  bool ready() const { return state_ == State::kReady; }
  const wire::HelloReply& hello() const { return hello_; }
  bool has_ucx() const { return ucx_channel_ != nullptr; }
  uint64_t reconnects() const { return epoch_ > 0 ? epoch_ - 1 : 0; }
  const SocketEndpoint& endpoint() const { return endpoint_; }

 private:
  enum class State : uint8_t { kIdle, kConnecting, kHandshake, kReady, kLost, kClosed };
  // One for each channel: which of the two closed does not matter, they go together.
  struct Sink final : FrameSink {
    explicit Sink(Connection& c) : connection(c) {}
    Admission OnFrame(const InFrame& frame) override { return connection.OnFrame(frame); }
    void OnClosed(const Status& reason) override { connection.Lose(reason); }
    Connection& connection;
  };

  void Connect();
  void OnConnected(Result<UniqueFd> socket);
  void SayHello();
  void OnHello(Result<wire::HelloReply> reply);
  Status ConnectUcx();
  void RegisterAgain();
  void OneRegistered();
  void BecomeReady();
  Admission OnFrame(const InFrame& frame);
  void Lose(const Status& reason);
  void SettleSoon(TimePoint give_up, Status reason);
  void Retry();
  ChannelOptions channel_options() const;
  TimePoint handshake_deadline() const { return clock_.Now() + options_.connect_timeout; }

  asio::io_context& loop_;
  const Clock& clock_;
  const ClientOptions& options_;
  const SocketEndpoint endpoint_;
  Flights& flights_;
  const Owner owner_;
  AsioExecutor executor_;
  DeadlineQueue timers_;
  Sink sink_{*this};
  std::function<void(Status)> first_;
  State state_ = State::kIdle;
  uint64_t epoch_ = 0;
  size_t to_register_ = 0;
  std::chrono::milliseconds backoff_{0};
  wire::HelloReply hello_;
  std::unique_ptr<PeerWatch> watch_;
  std::unique_ptr<UcxTransport> ucx_;
  std::unique_ptr<UcxEnd> ucx_end_;  // of the handshake; the channel needs it no more
  std::shared_ptr<Channel> socket_, ucx_channel_;
  std::shared_ptr<Connection*> self_ = std::make_shared<Connection*>(this);
};

}  // namespace dyna
