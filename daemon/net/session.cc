#include "daemon/net/session.h"

#include <utility>

#include "client/base/log.h"
#include "client/base/os.h"

namespace dyna {
namespace {

ChannelOptions SocketOptions(const NetLimits& limits) {
  ChannelOptions options;
  options.limits.max_payload = limits.request_bytes;
  return options;
}

}  // namespace

Session::Session(SessionHost& host, SessionId id, const PeerCredentials& peer,
                 std::function<void()> gone)
    : host_(host),
      caller_{id, host.tenant_of(peer.uid)},
      peer_(peer),
      gone_(std::move(gone)),
      report_second_(host.clock.Now()) {}

Session::~Session() = default;

std::shared_ptr<Session> Session::Start(SessionHost& host, SessionId id, UniqueFd socket,
                                        const PeerCredentials& peer, std::function<void()> gone) {
  std::shared_ptr<Session> s(new Session(host, id, peer, std::move(gone)));
  // End of stream is not enough: a forked child keeps its parent's socket open.
  auto watch = PeerWatch::OfSocket(host.loop, socket.get(), [weak = std::weak_ptr(s)] {
    if (auto self = weak.lock()) self->Close({StatusCode::kCancelled, "its process died"});
  });
  if (watch.ok()) s->watch_ = std::move(*watch);
  auto channel =
      MakeSocketChannel(host.loop, std::move(socket), SocketOptions(host.limits), &s->socket_);
  if (!channel.ok()) {
    LogWarn("client pid {}: {}", peer.pid, channel.status().ToString());
    return nullptr;
  }
  s->socket_.channel = std::move(*channel);
  ++host.stats.clients;
  return s;
}

Session::Request::~Request() {
  --session->inflight_;
  --session->host_.stats.inflight_requests;
  session->inflight_bytes_ -= bytes;
}

void Session::Close(const Status& reason) {
  if (std::exchange(closed_, true)) return;
  LogDebug("client {} (pid {}): {}", name_, peer_.pid, reason.ToString());
  watch_.reset();
  socket_.channel->Close();
  if (ucx_) ucx_->channel->Close();
  host_.store.CloseSession(caller_.session);
  for (const auto& [id, region] : regions_) Uncount(*region);
  regions_.clear();  // jobs that still use one hold it
  --host_.stats.clients;
  host_.executor.Post(std::move(gone_));
}

Status Session::Push(const wire::Message& message) {
  const auto control = wire::Serialize(message);
  const auto bytes = std::as_bytes(std::span(control));
  OutFrame out;
  out.type = static_cast<uint8_t>(wire::TypeOf(message));
  out.control.assign(bytes.begin(), bytes.end());
  return socket_.channel->Send(std::move(out));
}

void Session::RevokeLease(uint64_t lease) {
  // Whoever misses it hears LEASE_LOST from the next fetch.
  if (!closed_) (void)Push(wire::LeaseRevoked{lease});
}

void Session::Goaway(std::string reason) {
  if (closed_) return;
  (void)Push(wire::Goaway{std::move(reason)});
  socket_.channel->CloseAfterSends();
  Close({StatusCode::kCancelled, "told to go away"});
}

void Session::OnClosed(Port& port, const Status& reason) {
  if (&port == ucx_.get()) {
    // UCX alone failed: the socket still works, the client falls back to it.
    LogWarn("client {} (pid {}): UCX channel closed: {}", name_, peer_.pid, reason.ToString());
    return;
  }
  Close(reason);
}

Admission Session::OnFrame(Port& port, const InFrame& frame) {
  auto request = std::make_shared<Request>();
  request->session = shared_from_this();
  request->port = &port;
  request->id = frame.header.request_id;
  request->bytes = frame.header.payload_len;
  request->start = host_.clock.Now();
  request->type = static_cast<wire::Type>(frame.header.type);
  ++inflight_;
  ++host_.stats.inflight_requests;
  inflight_bytes_ += request->bytes;
  const auto refuse = [&](const Status& status) {
    ReplyStatus(request, status);
    return Admission::Refuse();
  };

  const auto control =
      std::span(reinterpret_cast<const uint8_t*>(frame.control.data()), frame.control.size());
  auto message = wire::Parse(control);
  if (!message.ok()) {
    ++host_.stats.rejected_frames;
    return refuse(message.status());
  }
  if (static_cast<uint8_t>(wire::TypeOf(*message)) != frame.header.type) {
    ++host_.stats.rejected_frames;
    return refuse(Invalid("frame type " + std::to_string(frame.header.type) +
                          " carries a message of type " +
                          std::to_string(static_cast<int>(wire::TypeOf(*message)))));
  }
  const bool hello = std::holds_alternative<wire::Hello>(*message);
  if (greeted_ == hello || (hello && &port != &socket_))
    return refuse(Invalid(greeted_ ? "Hello was said already" : "say Hello first"));
  if (greeted_ && !SameToken(frame.header.token, token_)) {
    ++host_.stats.auth_failures;
    return refuse({StatusCode::kUnauthenticated, "the session token is not this session's"});
  }
  if (inflight_ > host_.limits.requests || inflight_bytes_ > host_.limits.request_bytes)
    return refuse(
        {StatusCode::kRetry, "more in flight than the credits that HelloReply granted", 5});
  return Dispatch(request, std::move(*message), frame);
}

Admission Session::Dispatch(const RequestRef& request, wire::Message message,
                            const InFrame& frame) {
  Admission admission = std::visit([&](auto& m) { return Handle(request, frame, m); }, message);
  // A payload that nobody asked for is skipped.
  if (admission.verdict == Admission::Verdict::kHandled && frame.header.payload_len != 0)
    return Admission::Refuse();
  return admission;
}

void Session::Reply(const RequestRef& request, const wire::Message& message, StatusCode code,
                    std::vector<std::span<const std::byte>> payload, SendDone sent) {
  OpStats& op = host_.stats.ops[request->type];
  ++op.results[static_cast<size_t>(code) & 15];
  op.seconds.Observe(std::chrono::duration<double>(host_.clock.Now() - request->start).count());
  if (closed_) {
    if (sent)
      host_.executor.Post([sent = std::move(sent)] { sent({StatusCode::kCancelled, "closed"}); });
    return;
  }
  OutFrame out;
  out.type = static_cast<uint8_t>(wire::TypeOf(message));
  out.request_id = request->id;
  const auto control = wire::Serialize(message);
  const auto bytes = std::as_bytes(std::span(control));
  out.control.assign(bytes.begin(), bytes.end());
  out.payload = std::move(payload);
  const Status queued = request->port->channel->Send(std::move(out), sent);
  if (queued.ok()) return;
  if (sent) host_.executor.Post([sent = std::move(sent), queued] { sent(queued); });
  // It asked and does not read the answers: memory for them is not ours to waste.
  if (request->port == &socket_)
    Close({StatusCode::kDeadline, "replies pile up: " + queued.ToString()});
}

void Session::ReplyStatus(const RequestRef& request, const Status& status) {
  Reply(request, wire::StatusReply{status}, status.code());
}

Admission Session::Receive(const RequestRef& request, uint64_t bytes,
                           std::function<void(std::shared_ptr<StagingPool::Buffer>)> then) {
  auto buffer = host_.staging->Take(bytes);
  if (!buffer.ok()) return Refuse(request, buffer.status());
  const auto into = (*buffer)->bytes();
  return Admission::Into(
      into, [this, request, buffer = *buffer, then = std::move(then)](const Status& arrived) {
        if (arrived.ok())
          then(buffer);
        else if (arrived.code() != StatusCode::kCancelled)
          ReplyStatus(request, arrived);
      });
}

bool Session::TakeReportBytes(uint64_t bytes) {
  const TimePoint now = host_.clock.Now();
  if (now - report_second_ >= std::chrono::seconds(1)) {
    report_second_ = now;
    report_bytes_ = 0;
  }
  if (report_bytes_ + bytes > host_.limits.report_bytes_per_s && report_bytes_ != 0) return false;
  report_bytes_ += bytes;
  return true;
}

}  // namespace dyna
