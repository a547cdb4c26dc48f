// What only UCX has: addresses, tokens, ports that must not open (deaths: ucx_death_test.cc).
#include "client/transport/ucx_transport.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
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
    left_end_ = std::move(*left_->Open());
    right_end_ = std::move(*right_->Open());
  }
  Result<std::shared_ptr<Channel>> Left() {
    return left_end_->Connect(right_end_->address(), token_, {}, &left_sink_);
  }
  Result<std::shared_ptr<Channel>> Right() {
    return right_end_->Connect(left_end_->address(), token_, {}, &right_sink_);
  }
  bool Run(const std::function<bool()>& ready, milliseconds limit = std::chrono::seconds(60)) {
    return RunUntil({&left_loop_, &right_loop_}, ready, limit);
  }

  asio::io_context left_loop_, right_loop_;
  SessionToken token_{};
  RecordingSink left_sink_, right_sink_;
  std::unique_ptr<UcxTransport> left_, right_;
  std::unique_ptr<UcxEnd> left_end_, right_end_;
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
  auto a = Left();
  ASSERT_TRUE(a.ok()) << a.status().ToString();
  EXPECT_EQ(ListeningPorts(), std::set<std::string>{});
  // The check itself can fail: with tcp a port opens.
  UcxOptions tcp;
  tcp.tls = "tcp";
  asio::io_context loop;
  auto other = UcxTransport::Create(loop, tcp);
  ASSERT_TRUE(other.ok()) << other.status().ToString();
  auto end = (*other)->Open();
  ASSERT_TRUE(end.ok()) << end.status().ToString();
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
    return left_end_->Connect(address, token_, {}, &left_sink_).status().code();
  };
  const auto right = right_end_->address();
  const std::vector<std::byte> good(right.begin(), right.end());
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
  EXPECT_EQ(left_end_->Connect(right_end_->address(), {}, {}, &left_sink_).status().code(),
            StatusCode::kInvalid);
  auto left = *Left();
  auto right = *Right();
  EXPECT_EQ(Left().status().code(), StatusCode::kInvalid) << "a second channel";
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
  auto left = *Left();
  const auto data = TestBytes(100);
  EXPECT_EQ(left->Send(TestFrame(1, 1, 961, {data})).code(), StatusCode::kTooLarge);
  EXPECT_EQ(left->Send(TestFrame(1, 1, 960, {data})).code(), StatusCode::kOk);
}

// Sleeping, not spinning: nothing happens while nothing is sent, and no event is missed after.
TEST_F(UcxTest, IdleCostsNothingAndWakesUp) {
  auto left = *Left();
  auto right = *Right();
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

// Each end is a worker with its shared memory and descriptors: both go with the channel.
TEST_F(UcxTest, AnEndLeavesNothing) {
  const auto descriptors = [] {
    int n = 0;
    for (int fd = 0; fd < 4096; ++fd) n += ::fcntl(fd, F_GETFD) >= 0;
    return n;
  };
  UcxOptions options;
  options.max_workers = 2;
  asio::io_context loop;
  auto ucx = std::move(*UcxTransport::Create(loop, options));
  int before = 0;
  for (int i = 0; i < 20; ++i) {
    RecordingSink sink;
    auto unused = std::move(*ucx->Open());
    auto end = std::move(*ucx->Open());
    EXPECT_EQ(ucx->Open().status().code(), StatusCode::kQuota);
    auto channel = *end->Connect(left_end_->address(), token_, {}, &sink);
    EXPECT_EQ(ucx->stats().channels, 1u);
    const int during = descriptors();
    unused.reset();
    end.reset();
    EXPECT_FALSE(channel->closed());
    channel.reset();
    ASSERT_TRUE(
        RunUntil({&loop}, [&] { return ucx->stats().channels + ucx->stats().closing == 0; }));
    if (i == 0) before = descriptors();  // the loop has its own by now
    EXPECT_EQ(descriptors(), before) << i;
    EXPECT_GT(during, before);
  }
  EXPECT_EQ(ucx->stats().abandoned_requests, 0u);
}

}  // namespace
}  // namespace dyna
