#include "daemon/net/listener.h"

#include "client/base/log.h"

namespace dyna {

Result<std::unique_ptr<Listener>> Listener::Open(SessionHost& host, const std::string& path,
                                                 std::function<bool(uid_t)> allowed) {
  DYNA_ASSIGN_OR_RETURN(const SocketEndpoint endpoint, SocketEndpoint::Parse(path));
  if (!endpoint.is_unix)
    return Unsupported("server.socket: " + path +
                       ": an AF_UNIX path is expected (nobody is "
                       "authenticated over TCP yet)");
  std::unique_ptr<Listener> self(new Listener(host));
  self->allowed_ = std::move(allowed);
  auto opened =
      SocketListener::Open(host.loop, endpoint, 0666, [l = self.get()](UniqueFd socket, auto peer) {
        l->Accept(std::move(socket), std::move(peer));
      });
  if (!opened.ok()) return opened.status();
  self->socket_ = std::move(*opened);
  return self;
}

Listener::~Listener() {
  *self_ = nullptr;
  for (auto& [id, session] : sessions_)
    session->Close({StatusCode::kCancelled, "the daemon is stopping"});
}

void Listener::Accept(UniqueFd socket, Result<PeerCredentials> peer) {
  if (!peer.ok() || !allowed_(peer->uid)) {
    ++host_.stats.auth_failures;
    LogWarn("a connection of uid {} was refused: not in server.uids", peer.ok() ? peer->uid : -1);
    return;  // closed: it learns no more than that
  }
  if (sessions_.size() >= host_.limits.clients) {
    ++host_.stats.clients_refused;
    LogWarn("a connection was refused: {} clients are connected (limits.clients)",
            sessions_.size());
    return;
  }
  const SessionId id = next_++;
  auto session = Session::Start(host_, id, std::move(socket), *peer, [self = self_, id] {
    if (*self != nullptr) (*self)->sessions_.erase(id);
  });
  if (session) sessions_.emplace(id, std::move(session));
}

void Listener::RevokeLease(SessionId id, uint64_t lease) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return;
  const auto session = it->second;  // a full channel closes it
  session->RevokeLease(lease);
}

void Listener::GoawayAll(const std::string& reason) {
  auto all = sessions_;
  for (auto& [id, session] : all) session->Goaway(reason);
}

}  // namespace dyna
