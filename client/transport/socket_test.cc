// What only a socket has: listening, connecting, garbage from outside, peers that die.
#include "client/transport/socket_channel.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>

#include "client/transport/channel_test_util.h"
#include "client/transport/peer_watch.h"
#include "client/transport/socket_connector.h"
#include "client/transport/socket_listener.h"

namespace dyna {
namespace {

using std::chrono::milliseconds;

class SocketTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "/dyna_socket_test_" + std::to_string(::getpid()) + ".sock";
    ::unlink(path_.c_str());
    endpoint_.path = path_;
  }
  void Listen() {
    auto listener = SocketListener::Open(loop_, endpoint_, 0600,
                                         [&](UniqueFd fd, Result<PeerCredentials> peer) {
                                           accepted_.push_back(std::move(fd));
                                           peers_.push_back(std::move(peer));
                                         });
    ASSERT_TRUE(listener.ok()) << listener.status().ToString();
    listener_ = std::move(*listener);
  }
  bool Run(const std::function<bool()>& ready) { return RunUntil({&loop_}, ready); }
  // A channel whose other end is a bare descriptor.
  std::shared_ptr<Channel> HalfPair(UniqueFd* other) {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    other->reset(fds[1]);
    return *MakeSocketChannel(loop_, UniqueFd(fds[0]), {}, &sink_);
  }

  asio::io_context loop_;
  std::string path_;
  SocketEndpoint endpoint_;
  std::unique_ptr<SocketListener> listener_;
  std::vector<UniqueFd> accepted_;
  std::vector<Result<PeerCredentials>> peers_;
  RecordingSink sink_;
};

TEST(SocketEndpointTest, Parses) {
  const auto text = [](std::string_view s) {
    const auto e = SocketEndpoint::Parse(s);
    return e.ok() ? e->ToString() : std::string(StatusName(e.status().code()));
  };
  EXPECT_EQ(text("/run/d.sock"), "unix:/run/d.sock");
  EXPECT_EQ(text("unix:/run/d.sock"), "unix:/run/d.sock");
  EXPECT_EQ(text("127.0.0.1:7400"), "tcp:127.0.0.1:7400");
  EXPECT_EQ(text("[::1]:0"), "tcp:[::1]:0");
  EXPECT_EQ(text("tcp:host:65535"), "tcp:host:65535");
  for (const auto* bad : {"", "unix:", "relative.sock", ":80", "host:", "host:65536", "host:-1",
                          "host:80x", "tcp:"}) {
    EXPECT_EQ(text(bad), "INVALID") << bad;
  }
  EXPECT_EQ(text("/" + std::string(107, 'x')), "INVALID");
}

TEST_F(SocketTest, TellsWhoConnected) {
  Listen();
  struct stat st {};
  ASSERT_EQ(::stat(path_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
  Result<UniqueFd> client = Internal("none");
  ConnectSocket(loop_, endpoint_, milliseconds(1000), [&](auto r) { client = std::move(r); });
  ASSERT_TRUE(Run([&] { return client.ok() && accepted_.size() == 1; }));
  ASSERT_TRUE(peers_[0].ok());
  EXPECT_EQ(peers_[0]->uid, ::getuid());
  EXPECT_EQ(peers_[0]->pid, ::getpid());
}

TEST_F(SocketTest, ReplacesAStaleFileButNotALiveOneOrAFile) {
  {
    // A daemon that was killed: bound, never unlinked.
    UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM, 0));
    const SocketAddress address = *Resolve(endpoint_);
    ASSERT_EQ(::bind(dead.get(), address.get(), address.size), 0);
  }
  Listen();
  const auto second = SocketListener::Open(loop_, endpoint_, 0600, [](auto, auto) {});
  EXPECT_EQ(second.status().code(), StatusCode::kInvalid);
  listener_.reset();
  EXPECT_NE(::access(path_.c_str(), F_OK), 0) << "the socket file stays behind";
  UniqueFd file(::open(path_.c_str(), O_CREAT | O_RDWR, 0600));
  EXPECT_EQ(SocketListener::Open(loop_, endpoint_, 0600, [](auto, auto) {}).status().code(),
            StatusCode::kInvalid);
  ::unlink(path_.c_str());
}

TEST_F(SocketTest, ConnectingFailsTyped) {
  Status status;
  ConnectSocket(loop_, endpoint_, milliseconds(1000), [&](auto r) { status = r.status(); });
  EXPECT_TRUE(status.ok()) << "called back inside the call";
  ASSERT_TRUE(Run([&] { return !status.ok(); }));
  EXPECT_EQ(status.code(), StatusCode::kCancelled);
  EXPECT_NE(status.message().find(path_), std::string::npos) << status.ToString();
}

TEST_F(SocketTest, ConnectingHasADeadline) {
  // A listener whose backlog is full and never accepted: SYNs go unanswered.
  UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  SocketAddress address = *Resolve(*SocketEndpoint::Parse("127.0.0.1:0"));
  ASSERT_EQ(::bind(listener.get(), address.get(), address.size), 0);
  ASSERT_EQ(::listen(listener.get(), 0), 0);
  address.size = sizeof address.storage;
  ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address.storage), &address.size);
  SocketEndpoint endpoint;
  endpoint.is_unix = false;
  endpoint.host = "127.0.0.1";
  endpoint.port = ntohs(reinterpret_cast<const sockaddr_in&>(address.storage).sin_port);
  std::vector<UniqueFd> fill;
  Status last;
  for (int i = 0; i < 8 && last.ok(); ++i) {
    auto one = ConnectSocketBlocking(endpoint, milliseconds(50));
    last = one.status();
    if (one.ok()) fill.push_back(std::move(*one));
  }
  EXPECT_EQ(last.code(), StatusCode::kDeadline) << last.ToString();
  Status async;
  ConnectSocket(loop_, endpoint, milliseconds(20), [&](auto r) { async = r.status(); });
  ASSERT_TRUE(Run([&] { return !async.ok(); }));
  EXPECT_EQ(async.code(), StatusCode::kDeadline);
}

TEST_F(SocketTest, GarbageClosesTheChannelTyped) {
  std::mt19937 rng(std::random_device{}());
  UniqueFd peer;
  auto channel = HalfPair(&peer);
  std::vector<uint8_t> garbage(1000);
  for (auto& b : garbage) b = static_cast<uint8_t>(rng());
  ASSERT_EQ(::write(peer.get(), garbage.data(), garbage.size()), 1000);
  ASSERT_TRUE(Run([&] { return sink_.closed; }));
  EXPECT_EQ(sink_.close_reason.code(), StatusCode::kInvalid);
  EXPECT_EQ(channel->stats().rejected_frames, 1u);
  EXPECT_TRUE(sink_.frames.empty());
}

TEST_F(SocketTest, ATruncatedFrameIsToldAsSuch) {
  UniqueFd peer;
  auto channel = HalfPair(&peer);
  FrameHeader header;
  header.control_len = 100;
  const auto bytes = EncodeFrameHeader(header);
  ASSERT_EQ(::write(peer.get(), bytes.data(), bytes.size()), 64);
  peer.reset();
  ASSERT_TRUE(Run([&] { return sink_.closed; }));
  EXPECT_EQ(sink_.close_reason.ToString(),
            "CANCELLED: the peer closed the connection in the middle of a frame");
}

TEST_F(SocketTest, AFloodOfDescriptorsIsRefused) {
  UniqueFd peer;
  auto channel = HalfPair(&peer);
  alignas(cmsghdr) char ancillary[CMSG_SPACE(40 * sizeof(int))] = {};
  char byte = 'D';
  iovec piece{&byte, 1};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = ancillary;
  message.msg_controllen = sizeof ancillary;
  cmsghdr* c = CMSG_FIRSTHDR(&message);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(40 * sizeof(int));
  const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  for (int i = 0; i < 40; ++i) std::memcpy(CMSG_DATA(c) + i * sizeof null, &null, sizeof null);
  ASSERT_EQ(::sendmsg(peer.get(), &message, 0), 1);
  ASSERT_TRUE(Run([&] { return sink_.closed; }));
  EXPECT_EQ(sink_.close_reason.code(), StatusCode::kInvalid);
  ::close(null);
}

// The child dies in the middle of a payload; a grandchild keeps the socket open.
TEST_F(SocketTest, AKilledPeerIsSeenThroughItsPidfd) {
  Listen();
  const pid_t child = ::fork();
  if (child == 0) {
    ::setpgid(0, 0);
    UniqueFd fd = std::move(*ConnectSocketBlocking(endpoint_, milliseconds(1000)));
    ::fcntl(fd.get(), F_SETFL, 0);
    if (::fork() == 0) {
      ::pause();
      ::_exit(0);
    }
    FrameHeader header;
    header.payload_len = 1 << 20;
    const auto bytes = EncodeFrameHeader(header);
    const std::vector<char> part(1000, 'x');
    if (::write(fd.get(), bytes.data(), 64) != 64) ::_exit(1);
    if (::write(fd.get(), part.data(), part.size()) != 1000) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  ASSERT_TRUE(Run([&] { return accepted_.size() == 1; }));
  bool died = false;
  auto watch = PeerWatch::OfSocket(loop_, accepted_[0].get(), [&] { died = true; });
  ASSERT_TRUE(watch.ok()) << watch.status().ToString();
  auto channel = *MakeSocketChannel(loop_, std::move(accepted_[0]), {}, &sink_);
  ASSERT_TRUE(Run([&] { return sink_.frames.size() == 1; }));
  EXPECT_TRUE((*watch)->alive());
  EXPECT_FALSE(died);
  ::kill(child, SIGKILL);
  ASSERT_TRUE(Run([&] { return died; }));
  EXPECT_FALSE((*watch)->alive());
  EXPECT_FALSE(sink_.closed) << "the grandchild holds the socket: there is no end of stream";
  channel->Close();
  ASSERT_TRUE(Run([&] { return sink_.frames[0]->has_payload; }));
  EXPECT_EQ(sink_.frames[0]->payload_status.code(), StatusCode::kCancelled);
  ::kill(-child, SIGKILL);  // the grandchild
  ::waitpid(child, nullptr, 0);
}

TEST_F(SocketTest, AWatchThatIsGoneIsSilent) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::pause();
    ::_exit(0);
  }
  bool died = false;
  auto watch = std::move(*PeerWatch::OfPid(loop_, child, [&] { died = true; }));
  watch.reset();
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  loop_.poll();
  EXPECT_FALSE(died);
  EXPECT_FALSE(PeerWatch::OfPid(loop_, child, [] {}).ok());
  EXPECT_EQ(PeerWatch::OfPid(loop_, 0, [] {}).status().code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace dyna
