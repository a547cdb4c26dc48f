// What only UCX has: addresses, tokens, ports that must not open, peers that die without a word.
#include "client/transport/ucx_transport.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>

#include "client/base/os.h"
#include "client/transport/channel_test_util.h"

namespace dyna {
namespace {

using std::chrono::milliseconds;

class UcxTest : public testing::Test {
 protected:
  void SetUp() override {
    token_.fill(9);
    auto made = UcxTransport::Create(left_loop_, {});
    if (made.status().code() == StatusCode::kUnsupported) GTEST_SKIP() << made.status().ToString();
    ASSERT_TRUE(made.ok()) << made.status().ToString();
    left_ = std::move(*made);
    right_ = std::move(*UcxTransport::Create(right_loop_, {}));
  }
  bool Run(const std::function<bool()>& ready, milliseconds limit = std::chrono::seconds(60)) {
    return RunUntil({&left_loop_, &right_loop_}, ready, limit);
  }

  asio::io_context left_loop_, right_loop_;
  SessionToken token_{};
  RecordingSink left_sink_, right_sink_;
  std::unique_ptr<UcxTransport> left_, right_;
};

// Listening TCP sockets of this process, by inode.
std::set<std::string> ListeningPorts() {
  std::set<std::string> own, found;
  for (int fd = 0; fd < 1024; ++fd) {
    char link[64] = {};
    const std::string path = "/proc/self/fd/" + std::to_string(fd);
    if (::readlink(path.c_str(), link, sizeof link - 1) > 0) own.insert(link);
  }
  for (const auto* table : {"/proc/self/net/tcp", "/proc/self/net/tcp6"}) {
    std::ifstream in(table);
    for (std::string line; std::getline(in, line);) {
      char local[64], remote[64], state[8], inode[32];
      if (std::sscanf(line.c_str(), " %*s %63s %63s %7s %*s %*s %*s %*s %*s %31s", local, remote,
                      state, inode) != 4)
        continue;
      if (std::string(state) == "0A" && own.count("socket:[" + std::string(inode) + "]"))
        found.insert(local);
    }
  }
  return found;
}

TEST_F(UcxTest, OpensNoPort) {
  auto a = left_->Connect(right_->address(), token_, {}, &left_sink_);
  ASSERT_TRUE(a.ok()) << a.status().ToString();
  EXPECT_EQ(ListeningPorts(), std::set<std::string>{});
  // The check itself can fail: with tcp a port opens.
  UcxOptions tcp;
  tcp.tls = "tcp";
  asio::io_context loop;
  auto other = UcxTransport::Create(loop, tcp);
  ASSERT_TRUE(other.ok()) << other.status().ToString();
  EXPECT_FALSE(ListeningPorts().empty());
}

TEST_F(UcxTest, ItsHandlersAndHooksStayOff) {
  for (const int signal : {SIGSEGV, SIGILL, SIGFPE}) {
    struct sigaction action {};
    ::sigaction(signal, nullptr, &action);
    EXPECT_EQ(action.sa_handler, SIG_DFL) << signal;
  }
  EXPECT_EQ(std::getenv("UCX_ERROR_SIGNALS"), nullptr) << "the environment is as it was";
  EXPECT_EQ(std::getenv("UCX_POSIX_ERROR_HANDLING"), nullptr);
}

TEST_F(UcxTest, GarbageAddressesAreRefused) {
  const auto connect = [&](std::vector<std::byte> address) {
    return left_->Connect(address, token_, {}, &left_sink_).status().code();
  };
  const std::vector<std::byte> good(right_->address().begin(), right_->address().end());
  EXPECT_EQ(connect({}), StatusCode::kInvalid);
  EXPECT_EQ(connect({std::byte{1}}), StatusCode::kInvalid);
  EXPECT_EQ(connect(TestBytes(77)), StatusCode::kInvalid);
  EXPECT_EQ(connect(TestBytes(100'000)), StatusCode::kInvalid);
  for (size_t n = 0; n < good.size(); ++n)
    EXPECT_NE(connect({good.begin(), good.begin() + static_cast<long>(n)}), StatusCode::kOk);
  for (size_t i = 0; i < good.size(); ++i) {
    auto bad = good;
    bad[i] ^= std::byte{0x10};
    EXPECT_NE(connect(bad), StatusCode::kOk) << "byte " << i;
  }
  EXPECT_EQ(connect(good), StatusCode::kOk);
}

TEST_F(UcxTest, AForgedTokenReachesNoSession) {
  auto left = *left_->Connect(right_->address(), token_, {}, &left_sink_);
  auto right = *right_->Connect(left_->address(), token_, {}, &right_sink_);
  EXPECT_EQ(left_->Connect(right_->address(), token_, {}, &left_sink_).status().code(),
            StatusCode::kInvalid);
  EXPECT_EQ(left_->Connect(right_->address(), {}, {}, &left_sink_).status().code(),
            StatusCode::kInvalid);
  SessionToken forged = token_;
  forged[15] ^= 1;
  left->SetToken(forged);
  const auto data = TestBytes(1 << 20);
  int ended = 0;
  ASSERT_TRUE(left->Send(TestFrame(1, 1, 10)).ok());
  ASSERT_TRUE(left->Send(TestFrame(1, 2, 10, {data}), [&](const Status&) { ++ended; }).ok());
  ASSERT_TRUE(Run([&] { return right_->stats().unknown_token_frames == 2 && ended == 1; }));
  EXPECT_TRUE(right_sink_.frames.empty());
  left->SetToken(token_);
  ASSERT_TRUE(left->Send(TestFrame(1, 3, 10)).ok());
  ASSERT_TRUE(Run([&] { return right_sink_.frames.size() == 1; }));
}

TEST_F(UcxTest, ControlBesideAPayloadIsBounded) {
  auto left = *left_->Connect(right_->address(), token_, {}, &left_sink_);
  const auto data = TestBytes(100);
  EXPECT_EQ(left->Send(TestFrame(1, 1, 961, {data})).code(), StatusCode::kTooLarge);
  EXPECT_EQ(left->Send(TestFrame(1, 1, 960, {data})).code(), StatusCode::kOk);
}

// Sleeping, not spinning: nothing happens while nothing is sent, and no event is missed after.
TEST_F(UcxTest, IdleCostsNothingAndWakesUp) {
  auto left = *left_->Connect(right_->address(), token_, {}, &left_sink_);
  auto right = *right_->Connect(left_->address(), token_, {}, &right_sink_);
  ASSERT_TRUE(left->Send(TestFrame(1, 1, 10)).ok());
  ASSERT_TRUE(Run([&] { return right_sink_.frames.size() == 1; }));
  uint64_t woken = 2;
  for (int window = 0; window < 50 && woken > 1; ++window) {  // until wire-up has settled
    const auto before = right_->stats().wakeups;
    Run([] { return false; }, milliseconds(200));
    woken = right_->stats().wakeups - before;
  }
  EXPECT_LE(woken, 1u);
  for (uint64_t i = 0; i < 300; ++i) {
    ASSERT_TRUE(left->Send(TestFrame(1, i, 10)).ok());
    ASSERT_TRUE(Run([&] { return right_sink_.frames.size() == 2 + i; }));
  }
  EXPECT_EQ(left_->stats().rescued_wakeups + right_->stats().rescued_wakeups, 0u);
}

// A client is killed with rendezvous under way both ways. Its socket's end of stream (here: the
// test) closes the channel; every completion runs and the memory is ours again.
// Off: in one of three runs two of three rendezvous sends to a killed peer do not end within 60 s.
TEST_F(UcxTest, DISABLED_AKilledPeerFreesWhatItHeld) {
  int to_child[2], to_parent[2];
  ASSERT_EQ(::pipe(to_child), 0);
  ASSERT_EQ(::pipe(to_parent), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::execl("/proc/self/exe", "transport_test", "--gtest_filter=UcxChild.DISABLED_Run",
            "--gtest_also_run_disabled_tests", std::to_string(to_child[0]).c_str(),
            std::to_string(to_parent[1]).c_str(), nullptr);
    ::_exit(127);
  }
  ::close(to_parent[1]);  // so that a child that fails is an end of file
  const auto address = left_->address();
  const auto size = static_cast<uint32_t>(address.size());
  ASSERT_EQ(::write(to_child[1], &size, 4), 4);
  ASSERT_EQ(::write(to_child[1], address.data(), size), static_cast<ssize_t>(size));
  uint32_t child_size = 0;
  ASSERT_EQ(::read(to_parent[0], &child_size, 4), 4);
  std::vector<std::byte> child_address(child_size);
  ASSERT_EQ(::read(to_parent[0], child_address.data(), child_size),
            static_cast<ssize_t>(child_size));
  auto channel = *left_->Connect(child_address, token_, {}, &left_sink_);
  ASSERT_TRUE(RunUntil({&left_loop_}, [&] { return left_sink_.frames.size() >= 3; }));
  const auto data = TestBytes(16 << 20);
  int ended = 0;
  for (int i = 0; i < 3; ++i)
    ASSERT_TRUE(channel->Send(TestFrame(1, 1, 5, {data}), [&](const Status&) { ++ended; }).ok());
  RunUntil(
      {&left_loop_}, [] { return false; }, milliseconds(20));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  channel->Close();
  const bool all = RunUntil({&left_loop_}, [&] {
    int taken = 0;
    for (auto& f : left_sink_.frames) taken += f->has_payload;
    return ended == 3 && taken == static_cast<int>(left_sink_.frames.size());
  });
  EXPECT_TRUE(all) << ended << " sends ended";
  // The transport still serves others.
  auto next = *left_->Connect(right_->address(), token_, {}, &left_sink_);
  auto right = *right_->Connect(left_->address(), token_, {}, &right_sink_);
  ASSERT_TRUE(next->Send(TestFrame(1, 77, 5, {data})).ok());
  ASSERT_TRUE(
      Run([&] { return !right_sink_.frames.empty() && right_sink_.frames[0]->has_payload; }));
  EXPECT_EQ(right_sink_.frames[0]->payload, data);
}

}  // namespace

// The other process of the test above: sends large payloads until it is killed.
TEST(UcxChild, DISABLED_Run) {
  const auto args = testing::internal::GetArgvs();
  if (args.size() < 2) GTEST_SKIP();
  const int in = std::atoi(args[args.size() - 2].c_str());
  const int out = std::atoi(args[args.size() - 1].c_str());
  asio::io_context loop;
  auto made = UcxTransport::Create(loop, {});
  ASSERT_TRUE(made.ok()) << made.status().ToString();
  auto ucx = std::move(*made);
  uint32_t size = 0;
  ASSERT_EQ(::read(in, &size, 4), 4);
  std::vector<std::byte> address(size);
  ASSERT_EQ(::read(in, address.data(), size), static_cast<ssize_t>(size));
  const auto own = static_cast<uint32_t>(ucx->address().size());
  ASSERT_EQ(::write(out, &own, 4), 4);
  ASSERT_EQ(::write(out, ucx->address().data(), own), static_cast<ssize_t>(own));
  SessionToken token;
  token.fill(9);
  RecordingSink sink;
  auto channel = *ucx->Connect(address, token, {}, &sink);
  const auto data = TestBytes(4 << 20);
  RunUntil(
      {&loop},
      [&] {
        if (channel->queued_bytes() < (8u << 20)) (void)channel->Send(TestFrame(1, 1, 5, {data}));
        return false;
      },
      std::chrono::seconds(120));  // an orphan ends
}

}  // namespace dyna
