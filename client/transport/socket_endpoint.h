// Where a stream socket listens or connects: "unix:/run/d.sock", "/run/d.sock", "127.0.0.1:7400",
// "[::1]:7400", "tcp:host:7400". A value; any thread.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "client/base/unique_fd.h"
#include "schemas/status.h"

namespace dyna {

struct SocketEndpoint {
  bool is_unix = true;
  std::string path;  // is_unix
  std::string host;  // otherwise: an address, or a name that the resolver knows
  uint16_t port = 0;

  static Result<SocketEndpoint> Parse(std::string_view text);
  std::string ToString() const;
};

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};
// May block on a name that is not an address.
Result<SocketAddress> Resolve(const SocketEndpoint& endpoint);

struct PeerCredentials {
  uid_t uid = 0;
  gid_t gid = 0;
  pid_t pid = 0;  // 0: not visible from our pid namespace
};
// SO_PEERCRED, of the process that connected; UNSUPPORTED on TCP.
Result<PeerCredentials> GetPeerCredentials(int socket);

}  // namespace dyna
