#include "client/transport/peer_watch.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "client/base/os.h"
#include "client/transport/socket_endpoint.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Linux 6.5: no window in which the pid could be another's
#endif

namespace dyna {
namespace {

Result<UniqueFd> OpenPidfd(pid_t pid) {
  if (pid <= 0) return Unsupported("the peer's process is not visible from here");
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd) {
    return ErrnoStatus("pidfd_open", errno,
                       errno == ESRCH ? StatusCode::kCancelled : StatusCode::kUnsupported);
  }
  return fd;
}

}  // namespace

struct PeerWatch::Core : std::enable_shared_from_this<Core> {
  Core(asio::io_context& loop, int fd) : descriptor(loop, fd) {}
  void Wait() {
    descriptor.async_wait(asio::posix::stream_descriptor::wait_read,
                          [self = shared_from_this()](const boost::system::error_code& error) {
                            if (error || !self->died) return;
                            std::exchange(self->died, nullptr)();
                          });
  }
  asio::posix::stream_descriptor descriptor;
  std::function<void()> died;
};

PeerWatch::PeerWatch(std::shared_ptr<Core> core) : core_(std::move(core)) {}

PeerWatch::~PeerWatch() {
  core_->died = nullptr;
  boost::system::error_code ignored;
  core_->descriptor.close(ignored);
}

std::unique_ptr<PeerWatch> PeerWatch::Start(asio::io_context& loop, UniqueFd pidfd,
                                            std::function<void()> died) {
  auto core = std::make_shared<Core>(loop, pidfd.release());
  core->died = std::move(died);
  core->Wait();
  return std::unique_ptr<PeerWatch>(new PeerWatch(std::move(core)));
}

Result<std::unique_ptr<PeerWatch>> PeerWatch::OfSocket(asio::io_context& loop, int socket,
                                                       std::function<void()> died) {
  int raw = -1;
  socklen_t size = sizeof raw;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &raw, &size) == 0)
    return Start(loop, UniqueFd(raw), std::move(died));
  DYNA_ASSIGN_OR_RETURN(PeerCredentials peer, GetPeerCredentials(socket));
  return OfPid(loop, peer.pid, std::move(died));
}

Result<std::unique_ptr<PeerWatch>> PeerWatch::OfPid(asio::io_context& loop, pid_t pid,
                                                    std::function<void()> died) {
  DYNA_ASSIGN_OR_RETURN(UniqueFd pidfd, OpenPidfd(pid));
  return Start(loop, std::move(pidfd), std::move(died));
}

bool PeerWatch::alive() const {
  pollfd p{core_->descriptor.native_handle(), POLLIN, 0};
  return ::poll(&p, 1, 0) == 0;
}

}  // namespace dyna
