#include "client/transport/socket_listener.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "client/base/os.h"
#include "client/transport/socket_connector.h"

namespace dyna {
namespace {

constexpr int kBacklog = 512;
// Out of descriptors: the waiting connections stay in the backlog; do not spin on them.
constexpr std::chrono::milliseconds kBackOff{100};

// A daemon that was killed leaves its file behind; a live one answers.
Status RemoveStaleFile(const SocketEndpoint& endpoint) {
  struct stat st {};
  if (::lstat(endpoint.path.c_str(), &st) != 0) return Status::Ok();
  if (!S_ISSOCK(st.st_mode)) return Invalid(endpoint.path + " exists and is not a socket");
  if (ConnectSocketBlocking(endpoint, std::chrono::milliseconds(200)).ok())
    return Invalid(endpoint.path + ": another process listens there");
  if (::unlink(endpoint.path.c_str()) != 0) return ErrnoStatus(endpoint.path, errno);
  return Status::Ok();
}

}  // namespace

struct SocketListener::Core : std::enable_shared_from_this<Core> {
  Core(asio::io_context& loop, int fd) : descriptor(loop, fd), timer(loop) {}

  void Wait() {
    descriptor.async_wait(asio::posix::stream_descriptor::wait_read,
                          [self = shared_from_this()](const boost::system::error_code& error) {
                            if (!error && self->open) self->AcceptAll();
                          });
  }

  void AcceptAll() {
    for (int n = 0; n < 64 && open; ++n) {  // then let others run
      UniqueFd fd(
          ::accept4(descriptor.native_handle(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (fd) {
        Result<PeerCredentials> peer = GetPeerCredentials(fd.get());
        const auto self = shared_from_this();  // the callback may destroy the listener
        on_accept(std::move(fd), std::move(peer));
      } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        timer.expires_after(kBackOff);
        timer.async_wait([self = shared_from_this()](const boost::system::error_code& error) {
          if (!error && self->open) self->Wait();
        });
        return;
      } else if (errno == EAGAIN) {
        break;
      }  // ECONNABORTED and the like: of that connection only
    }
    if (open) Wait();
  }

  asio::posix::stream_descriptor descriptor;
  asio::steady_timer timer;
  OnAccept on_accept;
  SocketEndpoint endpoint;
  dev_t device = 0;
  ino_t inode = 0;
  bool open = true;
};

Result<std::unique_ptr<SocketListener>> SocketListener::Open(asio::io_context& loop,
                                                             const SocketEndpoint& endpoint,
                                                             mode_t mode, OnAccept on_accept) {
  const std::string what = "cannot listen on " + endpoint.ToString();
  DYNA_ASSIGN_OR_RETURN(SocketAddress address, Resolve(endpoint));
  if (endpoint.is_unix) DYNA_RETURN_IF_ERROR(RemoveStaleFile(endpoint));
  UniqueFd fd(::socket(address.get()->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return ErrnoStatus(what, errno);
  const int on = 1;
  if (!endpoint.is_unix) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(fd.get(), address.get(), address.size) != 0)
    return ErrnoStatus(what, errno, StatusCode::kInvalid);
  // Nobody can connect before listen(): no moment with another mode.
  if (endpoint.is_unix && ::chmod(endpoint.path.c_str(), mode) != 0)
    return ErrnoStatus(what, errno);
  if (::listen(fd.get(), kBacklog) != 0) return ErrnoStatus(what, errno);

  auto core = std::make_shared<Core>(loop, fd.release());
  core->on_accept = std::move(on_accept);
  core->endpoint = endpoint;
  if (endpoint.is_unix) {
    struct stat st {};
    if (::stat(endpoint.path.c_str(), &st) != 0) return ErrnoStatus(what, errno);
    core->device = st.st_dev;
    core->inode = st.st_ino;
  } else {
    SocketAddress bound;
    bound.size = sizeof bound.storage;
    ::getsockname(core->descriptor.native_handle(), reinterpret_cast<sockaddr*>(&bound.storage),
                  &bound.size);
    in_port_t port;  // at the same place in sockaddr_in and sockaddr_in6
    std::memcpy(&port, reinterpret_cast<std::byte*>(&bound.storage) + sizeof(sa_family_t),
                sizeof port);
    core->endpoint.port = ntohs(port);
  }
  core->Wait();
  return std::unique_ptr<SocketListener>(new SocketListener(std::move(core)));
}

SocketListener::SocketListener(std::shared_ptr<Core> core) : core_(std::move(core)) {}

SocketListener::~SocketListener() {
  core_->open = false;
  boost::system::error_code ignored;
  core_->descriptor.close(ignored);
  core_->timer.cancel();
  // Only our own file: a successor may have replaced it.
  struct stat st {};
  if (core_->endpoint.is_unix && ::stat(core_->endpoint.path.c_str(), &st) == 0 &&
      st.st_dev == core_->device && st.st_ino == core_->inode) {
    ::unlink(core_->endpoint.path.c_str());
  }
}

const SocketEndpoint& SocketListener::endpoint() const { return core_->endpoint; }

}  // namespace dyna
