// Accepts connections on AF_UNIX or TCP. Lives on the loop's thread.
#pragma once

#include <functional>
#include <memory>

#include "client/base/asio.h"
#include "client/base/unique_fd.h"
#include "client/transport/socket_endpoint.h"
#include "schemas/status.h"

namespace dyna {

class SocketListener {
 public:
  // `peer` has credentials on AF_UNIX only (otherwise UNSUPPORTED).
  using OnAccept = std::function<void(UniqueFd socket, Result<PeerCredentials> peer)>;

  // A socket file that nobody listens on any more is replaced; one in use is an error (EXISTS is
  // never returned: INVALID naming the path). The file gets `mode`.
  static Result<std::unique_ptr<SocketListener>> Open(asio::io_context& loop,
                                                      const SocketEndpoint& endpoint, mode_t mode,
                                                      OnAccept on_accept);
  ~SocketListener();  // stops accepting, removes the socket file

  // With the port that was chosen when 0 was asked for.
  const SocketEndpoint& endpoint() const;

 private:
  struct Core;
  explicit SocketListener(std::shared_ptr<Core> core);
  std::shared_ptr<Core> core_;
};

}  // namespace dyna
