#include "client/transport/socket_connector.h"

#include <poll.h>

#include <cerrno>
#include <memory>
#include <utility>

#include "client/base/clock.h"
#include "client/base/os.h"

namespace dyna {
namespace {

Status ConnectError(const SocketEndpoint& endpoint, int error) {
  return ErrnoStatus("cannot connect to " + endpoint.ToString(), error, StatusCode::kCancelled);
}
Status ConnectDeadline(const SocketEndpoint& endpoint) {
  return {StatusCode::kDeadline, "no connection to " + endpoint.ToString() + " in time"};
}

int PendingError(int socket) {
  int error = 0;
  socklen_t size = sizeof error;
  return ::getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : errno;
}

// Started: `in_progress` says whether it must be waited for. EAGAIN of AF_UNIX (backlog full) is
// an error that a reconnector tries again.
Result<UniqueFd> Begin(const SocketEndpoint& endpoint, bool* in_progress) {
  DYNA_ASSIGN_OR_RETURN(SocketAddress address, Resolve(endpoint));
  UniqueFd fd(::socket(address.get()->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return ErrnoStatus("socket", errno);
  *in_progress = false;
  if (::connect(fd.get(), address.get(), address.size) != 0) {
    if (errno != EINPROGRESS) return ConnectError(endpoint, errno);
    *in_progress = true;
  }
  return fd;
}

struct Attempt {
  explicit Attempt(asio::io_context& loop) : descriptor(loop), timer(loop) {}
  void Finish(Result<UniqueFd> result) {
    if (auto callback = std::exchange(done, nullptr)) {
      timer.cancel();
      callback(std::move(result));
    }
  }
  asio::posix::stream_descriptor descriptor;
  asio::steady_timer timer;
  SocketEndpoint endpoint;
  std::function<void(Result<UniqueFd>)> done;
};

}  // namespace

void ConnectSocket(asio::io_context& loop, const SocketEndpoint& endpoint,
                   std::chrono::milliseconds deadline, std::function<void(Result<UniqueFd>)> done) {
  auto attempt = std::make_shared<Attempt>(loop);
  attempt->endpoint = endpoint;
  attempt->done = std::move(done);
  bool in_progress = false;
  Result<UniqueFd> begun = Begin(endpoint, &in_progress);
  if (!begun.ok() || !in_progress) {
    auto shared = std::make_shared<Result<UniqueFd>>(std::move(begun));
    asio::post(loop, [attempt, shared] { attempt->Finish(std::move(*shared)); });
    return;
  }
  attempt->descriptor.assign(begun->release());
  attempt->descriptor.async_wait(asio::posix::stream_descriptor::wait_write,
                                 [attempt](const boost::system::error_code& aborted) {
                                   if (aborted) return;
                                   UniqueFd fd(attempt->descriptor.release());
                                   if (const int error = PendingError(fd.get())) {
                                     attempt->Finish(ConnectError(attempt->endpoint, error));
                                   } else {
                                     attempt->Finish(std::move(fd));
                                   }
                                 });
  attempt->timer.expires_after(deadline);
  attempt->timer.async_wait([attempt](const boost::system::error_code& aborted) {
    if (aborted) return;
    boost::system::error_code ignored;
    attempt->descriptor.close(ignored);
    attempt->Finish(ConnectDeadline(attempt->endpoint));
  });
}

Result<UniqueFd> ConnectSocketBlocking(const SocketEndpoint& endpoint,
                                       std::chrono::milliseconds deadline) {
  bool in_progress = false;
  DYNA_ASSIGN_OR_RETURN(UniqueFd fd, Begin(endpoint, &in_progress));
  const TimePoint end = SystemClock().Now() + deadline;
  while (in_progress) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - SystemClock().Now());
    if (left.count() <= 0) return ConnectDeadline(endpoint);
    pollfd p{fd.get(), POLLOUT, 0};
    const int n = ::poll(&p, 1, static_cast<int>(left.count()));
    if (n < 0 && errno != EINTR) return ErrnoStatus("poll", errno);
    if (n <= 0) continue;
    if (const int error = PendingError(fd.get())) return ConnectError(endpoint, error);
    in_progress = false;
  }
  return fd;
}

}  // namespace dyna
