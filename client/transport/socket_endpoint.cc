#include "client/transport/socket_endpoint.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <cerrno>
#include <charconv>
#include <cstring>

#include "client/base/os.h"

namespace dyna {

Result<SocketEndpoint> SocketEndpoint::Parse(std::string_view text) {
  SocketEndpoint endpoint;
  const std::string shown = "endpoint \"" + std::string(text) + "\"";
  if (text.substr(0, 5) == "unix:") text.remove_prefix(5);
  if (text.substr(0, 1) == "/") {
    if (text.size() >= sizeof(sockaddr_un::sun_path))
      return Invalid(shown + ": a socket path has at most 107 bytes");
    endpoint.path = text;
    return endpoint;
  }
  if (text.substr(0, 4) == "tcp:") text.remove_prefix(4);
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0)
    return Invalid(shown + ": neither an absolute path nor host:port");
  std::string_view host = text.substr(0, colon), port = text.substr(colon + 1);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), endpoint.port);
  if (error != std::errc() || end != port.data() + port.size())
    return Invalid(shown + ": port \"" + std::string(port) + "\" is not 0..65535");
  endpoint.is_unix = false;
  endpoint.host = host;
  return endpoint;
}

std::string SocketEndpoint::ToString() const {
  if (is_unix) return "unix:" + path;
  const bool v6 = host.find(':') != std::string::npos;
  return "tcp:" + (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

Result<SocketAddress> Resolve(const SocketEndpoint& endpoint) {
  SocketAddress address;
  if (endpoint.is_unix) {
    sockaddr_un un{};
    un.sun_family = AF_UNIX;
    if (endpoint.path.empty() || endpoint.path.size() >= sizeof un.sun_path)
      return Invalid("socket path of " + std::to_string(endpoint.path.size()) + " bytes");
    std::memcpy(un.sun_path, endpoint.path.data(), endpoint.path.size());
    std::memcpy(&address.storage, &un, sizeof un);
    address.size = sizeof un;
    return address;
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const std::string port = std::to_string(endpoint.port);
  const int error = ::getaddrinfo(endpoint.host.c_str(), port.c_str(), &hints, &found);
  if (error != 0)
    return Invalid("cannot resolve " + endpoint.ToString() + ": " + ::gai_strerror(error));
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.size = found->ai_addrlen;
  ::freeaddrinfo(found);
  return address;
}

Result<PeerCredentials> GetPeerCredentials(int socket) {
  int domain = 0;
  socklen_t size = sizeof domain;
  if (::getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0)
    return ErrnoStatus("SO_DOMAIN", errno);
  if (domain != AF_UNIX) return Unsupported("a TCP peer has no process credentials");
  ucred cred{};
  size = sizeof cred;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &cred, &size) != 0)
    return ErrnoStatus("SO_PEERCRED", errno);
  return PeerCredentials{cred.uid, cred.gid, cred.pid};
}

}  // namespace dyna
