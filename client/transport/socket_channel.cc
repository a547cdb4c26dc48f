#include "client/transport/socket_channel.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "client/base/os.h"
#include "client/transport/frame_reader.h"
#include "client/transport/send_queue.h"

namespace dyna {
namespace {

constexpr size_t kTurnBytes = 2 << 20;  // read in one go before others get the loop
constexpr size_t kMaxIovecs = 64;
constexpr int kSocketBuffer = 1 << 20;  // as far as the system allows

Status Closed() { return {StatusCode::kCancelled, "the channel is closed"}; }

class SocketChannel final : public Channel, public std::enable_shared_from_this<SocketChannel> {
 public:
  SocketChannel(asio::io_context& loop, int fd, bool is_unix, const ChannelOptions& options,
                FrameSink* sink)
      : loop_(loop),
        descriptor_(loop, fd),
        stall_timer_(loop),
        is_unix_(is_unix),
        options_(options),
        sink_(sink),
        reader_(options.limits, stats_),
        queue_(options) {}

  void Start() { WaitReadable(); }
  // The last handle is gone.
  void Dropped() {
    if (!draining_) Close();
  }

  Status Send(OutFrame frame, SendDone done) override;
  void SetToken(const SessionToken& token) override { token_ = token; }
  void Close() override { Finish(Closed(), /*tell_sink=*/false); }
  void CloseAfterSends() override;
  bool closed() const override { return closed_ || draining_; }
  bool carries_fds() const override { return is_unix_; }
  uint64_t queued_bytes() const override { return queue_.bytes(); }
  const ChannelStats& stats() const override { return stats_; }

 private:
  void WaitReadable();
  void WaitWritable();
  void WatchForStall();
  void Read();
  // Bytes read; 0 at the end of stream, -errno on error.
  ssize_t ReadSome(std::vector<UniqueFd>* fds, bool* fds_lost);
  ssize_t WriteSome();
  void Write();
  void DeliverFinished();
  void Finish(Status reason, bool tell_sink);

  asio::io_context& loop_;
  asio::posix::stream_descriptor descriptor_;
  asio::steady_timer stall_timer_;
  const bool is_unix_;
  const ChannelOptions options_;
  FrameSink* sink_;  // null once it must not be called
  ChannelStats stats_;
  FrameReader reader_;
  SendQueue queue_;
  SessionToken token_{};
  std::vector<SendDone> finished_;
  bool finished_posted_ = false;
  bool write_blocked_ = false;  // waiting for the socket to take more
  bool watching_ = false;
  std::chrono::steady_clock::time_point progress_;
  bool draining_ = false;
  bool closed_ = false;
};

Status SocketChannel::Send(OutFrame frame, SendDone done) {
  if (closed()) return Closed();
  DYNA_ASSIGN_OR_RETURN(FrameHeader header, MakeHeader(frame, token_, options_, is_unix_));
  DYNA_RETURN_IF_ERROR(queue_.Push(header, std::move(frame), std::move(done)));
  if (!write_blocked_) Write();  // at once: a wake-up later is most of a small call's time
  if (!finished_.empty() && !finished_posted_) {
    finished_posted_ = true;
    asio::post(loop_, [self = shared_from_this()] { self->DeliverFinished(); });
  }
  return Status::Ok();
}

void SocketChannel::CloseAfterSends() {
  if (closed_) return;
  sink_ = nullptr;
  draining_ = true;
  if (queue_.empty()) Close();
}

void SocketChannel::WaitReadable() {
  descriptor_.async_wait(asio::posix::stream_descriptor::wait_read,
                         [self = shared_from_this()](const boost::system::error_code& error) {
                           if (!error && self->sink_) self->Read();
                         });
}

void SocketChannel::Read() {
  for (size_t turn = 0; turn < kTurnBytes;) {
    std::vector<UniqueFd> fds;
    bool fds_lost = false;
    const ssize_t n = ReadSome(&fds, &fds_lost);
    if (n == -EAGAIN) return WaitReadable();
    if (n == -EINTR) continue;
    if (n <= 0) {
      const std::string where = reader_.in_frame() ? " in the middle of a frame" : "";
      return Finish({StatusCode::kCancelled,
                     n == 0 ? "the peer closed the connection" + where
                            : "read: " + std::string(std::strerror(static_cast<int>(-n))) + where},
                    true);
    }
    Status status =
        fds_lost ? Invalid("frame: descriptors were cut off") : reader_.AddFds(std::move(fds));
    if (status.ok()) status = reader_.Consume(static_cast<size_t>(n), &sink_);
    if (!status.ok()) return Finish(std::move(status), true);
    if (!sink_) return;  // closed from a callback
    turn += static_cast<size_t>(n);
  }
  asio::post(loop_, [self = shared_from_this()] {
    if (self->sink_) self->Read();
  });
}

ssize_t SocketChannel::ReadSome(std::vector<UniqueFd>* fds, bool* fds_lost) {
  const std::span<iovec> space = reader_.Space();
  msghdr message{};
  message.msg_iov = space.data();
  message.msg_iovlen = space.size();
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFrameFds * sizeof(int))> ancillary;
  if (is_unix_) {
    message.msg_control = ancillary.data();
    message.msg_controllen = ancillary.size();
  }
  const ssize_t n =
      ::recvmsg(descriptor_.native_handle(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0) return -errno;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      fds->emplace_back(fd);
    }
  }
  *fds_lost = (message.msg_flags & MSG_CTRUNC) != 0;
  return n;
}

ssize_t SocketChannel::WriteSome() {
  std::array<iovec, kMaxIovecs> pieces;
  std::span<UniqueFd> fds;
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = queue_.Gather(pieces, &fds);
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFrameFds * sizeof(int))> ancillary{};
  if (!fds.empty()) {
    message.msg_control = ancillary.data();
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    for (size_t i = 0; i < fds.size(); ++i) {
      const int fd = fds[i].get();
      std::memcpy(CMSG_DATA(c) + i * sizeof fd, &fd, sizeof fd);
    }
  }
  const ssize_t n = ::sendmsg(descriptor_.native_handle(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  return n < 0 ? -errno : n;
}

void SocketChannel::Write() {
  while (!queue_.empty()) {
    const ssize_t n = WriteSome();
    if (n == -EINTR) continue;
    if (n == -EAGAIN) return WaitWritable();
    if (n < 0) {
      // From the loop: Send() promised not to call back.
      const Status reason{StatusCode::kCancelled,
                          "write: " + std::string(std::strerror(static_cast<int>(-n)))};
      write_blocked_ = true;
      asio::post(loop_, [self = shared_from_this(), reason] { self->Finish(reason, true); });
      return;
    }
    stats_.bytes_out += static_cast<uint64_t>(n);
    stats_.frames_out += queue_.Advance(static_cast<size_t>(n), &finished_);
    progress_ = std::chrono::steady_clock::now();
  }
}

void SocketChannel::WaitWritable() {
  write_blocked_ = true;
  if (!watching_) {
    progress_ = std::chrono::steady_clock::now();
    WatchForStall();
  }
  descriptor_.async_wait(asio::posix::stream_descriptor::wait_write,
                         [self = shared_from_this()](const boost::system::error_code& error) {
                           if (error || self->closed_) return;
                           self->write_blocked_ = false;
                           self->Write();
                           self->DeliverFinished();
                           if (self->draining_ && self->queue_.empty()) self->Close();
                         });
}

void SocketChannel::WatchForStall() {
  watching_ = true;
  stall_timer_.expires_at(progress_ + options_.stall_timeout);
  stall_timer_.async_wait([self = shared_from_this()](const boost::system::error_code& error) {
    if (error || self->closed_) return;
    self->watching_ = false;
    if (!self->write_blocked_) return;
    const auto idle = std::chrono::steady_clock::now() - self->progress_;
    if (idle < self->options_.stall_timeout) return self->WatchForStall();
    self->Finish({StatusCode::kDeadline, "the peer stopped reading: " +
                                             std::to_string(self->queue_.bytes()) + " bytes wait"},
                 true);
  });
}

void SocketChannel::DeliverFinished() {
  finished_posted_ = false;
  for (auto& done : std::exchange(finished_, {})) done(Status::Ok());
}

void SocketChannel::Finish(Status reason, bool tell_sink) {
  if (closed_) return;
  closed_ = true;
  FrameSink* sink = std::exchange(sink_, nullptr);
  ::shutdown(descriptor_.native_handle(), SHUT_WR);
  boost::system::error_code ignored;
  descriptor_.close(ignored);
  stall_timer_.cancel();
  // Posted: Finish may run inside Close() and inside a callback.
  asio::post(loop_, [self = shared_from_this(), reason, waiting = queue_.Clear()] {
    self->DeliverFinished();
    self->reader_.Abandon(reason);
    for (const auto& done : waiting) done(reason);
  });
  if (tell_sink && sink) sink->OnClosed(reason);
}

}  // namespace

Result<std::shared_ptr<Channel>> MakeSocketChannel(asio::io_context& loop, UniqueFd socket,
                                                   const ChannelOptions& options, FrameSink* sink) {
  int domain = 0;
  socklen_t size = sizeof domain;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0)
    return ErrnoStatus("not a socket", errno, StatusCode::kInvalid);
  const int on = 1;
  if (domain != AF_UNIX)
    ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  else
    ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDBUF, &kSocketBuffer, sizeof kSocketBuffer);
  std::shared_ptr<SocketChannel> channel;
  try {
    channel = std::make_shared<SocketChannel>(loop, socket.get(), domain == AF_UNIX, options, sink);
  } catch (const boost::system::system_error& error) {
    return Internal(std::string("socket: ") + error.what());
  }
  (void)socket.release();
  channel->Start();
  // The handle's last copy closes; operations under way keep the channel itself.
  return std::shared_ptr<Channel>(channel.get(), [channel](Channel*) { channel->Dropped(); });
}

}  // namespace dyna
