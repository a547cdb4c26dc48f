// One client: its frames in, replies out, its regions and its credits.
//
// Thread rule: the loop's. Held by the SessionTable; callbacks that outlive it find it closed.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "client/transport/channel.h"
#include "client/transport/peer_watch.h"
#include "client/transport/region.h"
#include "client/transport/socket_channel.h"
#include "client/transport/socket_endpoint.h"
#include "daemon/net/layout.h"
#include "daemon/net/session_host.h"

namespace dyna {

class Session : public std::enable_shared_from_this<Session> {
 public:
  // `gone` runs once, on the loop, when the session has ended.
  static std::shared_ptr<Session> Start(SessionHost& host, SessionId id, UniqueFd socket,
                                        const PeerCredentials& peer, std::function<void()> gone);
  ~Session();

  SessionId id() const { return caller_.session; }
  // Tells the client to go (it reconnects elsewhere or later), then closes.
  void Goaway(std::string reason);
  void RevokeLease(uint64_t lease);
  void Close(const Status& reason);

 private:
  Status Push(const wire::Message& message);  // not an answer to anything; on the socket
  // A channel of this session and the sink of its frames: the socket's, and UCX's.
  struct Port final : FrameSink {
    Port(Session& s) : session(s) {}
    Admission OnFrame(const InFrame& frame) override { return session.OnFrame(*this, frame); }
    void OnClosed(const Status& reason) override { session.OnClosed(*this, reason); }
    Session& session;
    std::shared_ptr<Channel> channel;
  };
  // One request: what its reply needs. Credits are given back when it is destroyed.
  struct Request {
    std::shared_ptr<Session> session;
    Port* port = nullptr;
    wire::Type type{};
    uint64_t id = 0;
    uint64_t bytes = 0;
    TimePoint start;
    ~Request();
  };
  using RequestRef = std::shared_ptr<Request>;

  Session(SessionHost& host, SessionId id, const PeerCredentials& peer, std::function<void()> gone);

  Admission OnFrame(Port& port, const InFrame& frame);
  void OnClosed(Port& port, const Status& reason);
  Admission Dispatch(const RequestRef& request, wire::Message message, const InFrame& frame);

  void Reply(const RequestRef& request, const wire::Message& message, StatusCode code,
             std::vector<std::span<const std::byte>> payload = {}, SendDone sent = {});
  void ReplyStatus(const RequestRef& request, const Status& status);
  // Takes the payload into staging, then goes on with it.
  Admission Receive(const RequestRef& request, uint64_t bytes,
                    std::function<void(std::shared_ptr<StagingPool::Buffer>)> then);

  // session_handlers.cc: one a message
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::Hello& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::OpenContext& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::RegisterRegion& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::DeregisterRegion& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::Lookup& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::ReleaseLease& m);
  Admission Handle(const RequestRef& r, const InFrame& f, wire::Put& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::Fetch& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::Report& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::Delete& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::Clear& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::Pin& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::GetBasis& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::PutOpaque& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::GetOpaque& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::Query& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::SetBudget& m);
  Admission Handle(const RequestRef& r, const InFrame& f, const wire::BankDrop& m);
  template <typename T>
  Admission Handle(const RequestRef& r, const InFrame&, const T&) {
    ReplyStatus(r, Unsupported("this message is the daemon's to send"));
    return Admission::Refuse();
  }
  Admission Refuse(const RequestRef& r, const Status& status) {
    ReplyStatus(r, status);
    return Admission::Refuse();
  }
  void ConnectUcx(std::span<const std::byte> peer, wire::HelloReply* reply);
  Result<std::shared_ptr<ClientMemory>> FindRegion(uint32_t region) const;
  // Once there is room for it (RoomFor); replies.
  void RegisterHost(const RequestRef& r, const wire::RegisterRegion& m, UniqueFd memfd);
  void RegisterDevice(const RequestRef& r, const wire::RegisterRegion& m);
  Status RoomFor(const wire::RegisterRegion& m) const;
  uint32_t AddRegion(std::shared_ptr<ClientMemory> region);
  void Uncount(const ClientMemory& region);  // it leaves regions_
  bool TakeReportBytes(uint64_t bytes);

  SessionHost& host_;
  const Caller caller_;
  const PeerCredentials peer_;
  std::function<void()> gone_;
  std::string name_;
  bool greeted_ = false, closed_ = false;
  SessionToken token_{};
  Port socket_{*this};
  std::unique_ptr<Port> ucx_;
  std::unique_ptr<PeerWatch> watch_;
  std::unordered_map<uint32_t, std::shared_ptr<ClientMemory>> regions_;
  uint64_t region_bytes_ = 0;
  uint32_t opening_regions_ = 0;  // on the device, not in regions_ yet
  uint64_t opening_bytes_ = 0;
  uint32_t next_region_ = 1;
  uint32_t inflight_ = 0;
  uint64_t inflight_bytes_ = 0;
  uint64_t report_bytes_ = 0;  // of this second
  TimePoint report_second_;
};

}  // namespace dyna
