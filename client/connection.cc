#include "client/connection.h"

#include <algorithm>
#include <utility>

#include "client/base/os.h"
#include "client/state.h"
#include "client/transport/socket_channel.h"
#include "client/transport/socket_connector.h"

namespace dyna {
namespace {
constexpr std::chrono::milliseconds kFirstBackoff{10}, kLastBackoff{1000};
// End of stream comes a little before the process is gone.
constexpr std::chrono::milliseconds kDeathPoll{5}, kDeathWait{1000};
}  // namespace

Connection::Connection(asio::io_context& loop, const Clock& clock, const ClientOptions& options,
                       SocketEndpoint endpoint, Flights& flights, Owner owner)
    : loop_(loop),
      clock_(clock),
      options_(options),
      endpoint_(std::move(endpoint)),
      flights_(flights),
      owner_(std::move(owner)),
      executor_(loop),
      timers_(executor_, clock) {
  flights_.OnStuck([this](const Status& reason) { Lose(reason); });
}

Connection::~Connection() { *self_ = nullptr; }

void Connection::Start(std::function<void(Status)> first) {
  first_ = std::move(first);
  if (options_.bulk == Bulk::kUcx) {
    UcxOptions ucx;
    ucx.tls = options_.ucx_tls;
    ucx.net_devices = options_.ucx_net_devices;
    auto transport = UcxTransport::Create(loop_, ucx);
    if (!transport.ok()) return std::exchange(first_, nullptr)(transport.status());
    ucx_ = std::move(*transport);
  }
  Connect();
}

void Connection::Connect() {
  state_ = State::kConnecting;
  ConnectSocket(loop_, endpoint_, options_.connect_timeout,
                [self = self_](Result<UniqueFd> socket) {
                  if (*self != nullptr) (*self)->OnConnected(std::move(socket));
                });
}

ChannelOptions Connection::channel_options() const {
  ChannelOptions o;
  o.checksum = options_.checksum;
  o.max_send_bytes = uint64_t{1} << 31;  // the credits bound both
  o.max_send_frames = options_.max_calls + (size_t{1} << 16);
  return o;
}

void Connection::OnConnected(Result<UniqueFd> socket) {
  if (state_ != State::kConnecting) return;
  if (!socket.ok()) return Lose(socket.status());
  if (endpoint_.is_unix) {
    auto watch = PeerWatch::OfSocket(loop_, socket->get(), [self = self_] {
      if (*self != nullptr) (*self)->Lose(Status(StatusCode::kCancelled, "the daemon died"));
    });
    watch_ = watch.ok() ? std::move(*watch) : nullptr;  // another pid namespace: never sure
  }
  auto channel = MakeSocketChannel(loop_, std::move(*socket), channel_options(), &sink_);
  if (!channel.ok()) return Lose(channel.status());
  socket_ = std::move(*channel);
  ++epoch_;
  SayHello();
}

void Connection::SayHello() {
  state_ = State::kHandshake;
  wire::Hello hello;
  hello.features = wire::kFeatureMasks | wire::kFeatureAsStored;
  hello.client_name = options_.name;
  hello.token = options_.token;
  if (ucx_) {
    auto end = ucx_->Open();
    if (!end.ok()) return Lose(end.status());
    ucx_end_ = std::move(*end);
    hello.features |= wire::kFeatureUcx;
    const auto address = ucx_end_->address();
    const auto* bytes = reinterpret_cast<const uint8_t*>(address.data());
    hello.ucx_address.assign(bytes, bytes + address.size());
  }
  Call call;
  call.request = std::move(hello);
  call.deadline = handshake_deadline();
  call.done = [this, epoch = epoch_](Result<wire::Message> reply) {
    if (state_ == State::kHandshake && epoch == epoch_)
      OnHello(Expect<wire::HelloReply>(std::move(reply)));
  };
  flights_.Urgent(*socket_, epoch_, std::move(call));
}

void Connection::OnHello(Result<wire::HelloReply> reply) {
  if (!reply.ok()) return Lose(reply.status());
  if (!reply->status.ok()) return Lose(reply->status);
  hello_ = std::move(*reply);
  socket_->SetToken(hello_.session_token);
  if (Status s = ConnectUcx(); !s.ok()) return Lose(s);
  RegisterAgain();
}

Status Connection::ConnectUcx() {
  if (!ucx_) return {};
  if (hello_.ucx_address.empty())
    return Unsupported("the daemon offers no UCX to this client (its log says why)");
  DYNA_ASSIGN_OR_RETURN(ucx_channel_,
                        ucx_end_->Connect(std::as_bytes(std::span(hello_.ucx_address)),
                                          hello_.session_token, channel_options(), &sink_));
  ucx_end_.reset();
  return {};
}

void Connection::RegisterAgain() {
  to_register_ = 1;  // this function itself
  if (socket_->carries_fds())
    for (const auto& region : owner_.regions()) {
      // A daemon without a GPU now: what names such memory is staged (MakePlan).
      if (region->on_device() && (hello_.features & wire::kFeatureDeviceRegions) == 0) continue;
      Call call;
      auto described = region->Describe(&call.fds);
      if (region->retired() || !described.ok()) continue;
      call.request = std::move(*described);
      call.deadline = handshake_deadline();
      call.done = [this, region, epoch = epoch_](Result<wire::Message> reply) {
        if (epoch != epoch_) return;
        const auto got = Expect<wire::RegisterRegionReply>(std::move(reply));
        if (got.ok() && got->status.ok()) {
          region->id = got->region;
          region->epoch = epoch;
        }
        OneRegistered();
      };
      ++to_register_;
      flights_.Urgent(*socket_, epoch_, std::move(call));
    }
  for (const auto& context : owner_.contexts()) {
    Call call;
    call.request = wire::OpenContext{context->spec};
    if (!context->profile.empty()) call.payload.push_back(context->profile);
    call.deadline = handshake_deadline();
    call.done = [this, context, epoch = epoch_](Result<wire::Message>) {
      if (epoch == epoch_) OneRegistered();  // refused: its calls will be CONTEXT_UNKNOWN
    };
    ++to_register_;
    flights_.Urgent(*socket_, epoch_, std::move(call));
  }
  OneRegistered();
}

void Connection::OneRegistered() {
  if (--to_register_ == 0 && state_ == State::kHandshake) BecomeReady();
}

void Connection::BecomeReady() {
  state_ = State::kReady;
  backoff_ = std::chrono::milliseconds(0);
  owner_.ready();
  if (first_) std::exchange(first_, nullptr)(Status::Ok());
  flights_.Open(
      {socket_.get(), ucx_channel_.get(), epoch_, hello_.request_credits, hello_.byte_credits});
}

Admission Connection::OnFrame(const InFrame& frame) {
  const auto type = static_cast<wire::Type>(frame.header.type);
  if (type != wire::Type::kGoaway && type != wire::Type::kLeaseRevoked)
    return flights_.OnReply(frame);
  const auto message =
      wire::Parse({reinterpret_cast<const uint8_t*>(frame.control.data()), frame.control.size()});
  if (!message.ok()) return Admission::Close(message.status());
  if (const auto* revoked = std::get_if<wire::LeaseRevoked>(&*message))
    owner_.lease_revoked(revoked->lease);
  return frame.header.payload_len > 0 ? Admission::Refuse() : Admission::Handled();
}

void Connection::Lose(const Status& reason) {
  if (state_ == State::kLost || state_ == State::kClosed) return;
  state_ = State::kLost;
  for (auto* channel : {&socket_, &ucx_channel_})
    if (*channel) {
      (*channel)->Close();
      executor_.Post([gone = std::move(*channel)] {});  // we may be inside its callback
    }
  owner_.lost();
  const Status lost(StatusCode::kCancelled,
                    "connection to the daemon lost: " + std::string(reason.message()));
  flights_.Lost(lost);
  if (!options_.reconnect) flights_.LostForGood(lost);
  if (first_) {
    state_ = State::kClosed;
    return std::exchange(first_, nullptr)(reason);
  }
  SettleSoon(clock_.Now() + kDeathWait, reason);
}

void Connection::SettleSoon(TimePoint give_up, Status reason) {
  if (state_ != State::kLost) return;
  if (flights_.has_unsettled()) {
    const bool dead = watch_ && !watch_->alive();
    if (!dead && watch_ && clock_.Now() < give_up) {
      timers_.AddAfter(kDeathPoll, [this, give_up, reason] { SettleSoon(give_up, reason); });
      return;
    }
    flights_.Settle(dead, Status(StatusCode::kCancelled, "the daemon died"));
  }
  watch_.reset();
  Retry();
}

void Connection::Retry() {
  if (!options_.reconnect) return;
  backoff_ = std::clamp(backoff_ * 2, kFirstBackoff, kLastBackoff);
  // A quarter of it at random: the workers of a node must not come all at once.
  const auto jitter = std::chrono::milliseconds(
      static_cast<int64_t>(RandomU64() % static_cast<uint64_t>(backoff_.count() / 4 + 1)));
  timers_.AddAfter(backoff_ - jitter, [this] {
    if (state_ == State::kLost) Connect();
  });
}

void Connection::Close() {
  state_ = State::kClosed;
  for (auto* channel : {&socket_, &ucx_channel_})
    if (*channel) (*channel)->Close();
  socket_.reset();
  ucx_channel_.reset();
  ucx_end_.reset();
  ucx_.reset();
  watch_.reset();
  if (first_) std::exchange(first_, nullptr)(Status(StatusCode::kCancelled, "closed"));
}

}  // namespace dyna
