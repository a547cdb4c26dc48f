// Takes connections on the control socket and keeps their sessions.
//
// Thread rule: the loop's.
#pragma once

#include <memory>
#include <unordered_map>

#include "client/transport/socket_listener.h"
#include "daemon/net/session.h"

namespace dyna {

class Listener {
 public:
  // `allowed`: who may connect. AF_UNIX only: nobody is authenticated over TCP yet.
  static Result<std::unique_ptr<Listener>> Open(SessionHost& host, const std::string& socket,
                                                std::function<bool(uid_t)> allowed);
  ~Listener();

  void StopAccepting() { socket_.reset(); }
  void GoawayAll(const std::string& reason);
  // Tells the session, if it is still there, that its lease ended.
  void RevokeLease(SessionId session, uint64_t lease);
  size_t sessions() const { return sessions_.size(); }

 private:
  explicit Listener(SessionHost& host) : host_(host) {}
  void Accept(UniqueFd socket, Result<PeerCredentials> peer);

  SessionHost& host_;
  std::function<bool(uid_t)> allowed_;
  std::unique_ptr<SocketListener> socket_;
  std::unordered_map<SessionId, std::shared_ptr<Session>> sessions_;
  SessionId next_ = 1;
  // Callbacks of sessions that end after this object.
  std::shared_ptr<Listener*> self_ = std::make_shared<Listener*>(this);
};

}  // namespace dyna
