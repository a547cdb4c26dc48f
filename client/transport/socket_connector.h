// Connects a stream socket, with a deadline. Lives on the loop's thread.
#pragma once

#include <chrono>
#include <functional>

#include "client/base/asio.h"
#include "client/base/unique_fd.h"
#include "client/transport/socket_endpoint.h"
#include "schemas/status.h"

namespace dyna {

// `done` runs once, from the loop: a connected non-blocking socket, DEADLINE, INVALID (endpoint),
// or CANCELLED (nobody listens, refused; the message says what the system said).
void ConnectSocket(asio::io_context& loop, const SocketEndpoint& endpoint,
                   std::chrono::milliseconds deadline, std::function<void(Result<UniqueFd>)> done);

// The same, waiting on the calling thread.
Result<UniqueFd> ConnectSocketBlocking(const SocketEndpoint& endpoint,
                                       std::chrono::milliseconds deadline);

}  // namespace dyna
