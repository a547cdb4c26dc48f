// What every kind of channel must do, over AF_UNIX, TCP and UCX.
#include "client/transport/channel.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/transport/channel_test_util.h"
#include "client/transport/socket_channel.h"
#include "client/transport/socket_connector.h"
#include "client/transport/socket_listener.h"
#include "client/transport/ucx_transport.h"

namespace dyna {
namespace {

using std::chrono::milliseconds;

enum class Kind { kUnix, kTcp, kUcx };

class ChannelTest : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    token_.fill(7);
    Open({});
  }
  void TearDown() override {
    left_.reset();
    right_.reset();
    for (asio::io_context* loop : {&left_loop_, &right_loop_}) {
      loop->restart();
      loop->poll();
    }
  }

  // Replaces both ends. `left` sends, `right` receives, unless a test says otherwise.
  void Open(const ChannelOptions& options) {
    left_.reset();
    right_.reset();
    if (GetParam() == Kind::kUcx) return OpenUcx(options);
    int fds[2] = {-1, -1};
    if (GetParam() == Kind::kUnix) {
      ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    } else {
      auto listener = SocketListener::Open(
          right_loop_, *SocketEndpoint::Parse("127.0.0.1:0"), 0600,
          [&](UniqueFd fd, Result<PeerCredentials>) { fds[1] = fd.release(); });
      ASSERT_TRUE(listener.ok()) << listener.status().ToString();
      auto connected = ConnectSocketBlocking((*listener)->endpoint(), milliseconds(1000));
      ASSERT_TRUE(connected.ok()) << connected.status().ToString();
      fds[0] = connected->release();
      ASSERT_TRUE(Run([&] { return fds[1] >= 0; }));
    }
    left_ = *MakeSocketChannel(left_loop_, UniqueFd(fds[0]), options, &left_sink_);
    right_ = *MakeSocketChannel(right_loop_, UniqueFd(fds[1]), options, &right_sink_);
    left_->SetToken(token_);
    right_->SetToken(token_);
  }
  void OpenUcx(const ChannelOptions& options) {
    left_ucx_.reset();
    right_ucx_.reset();
    auto left = UcxTransport::Create(left_loop_, {});
    if (left.status().code() == StatusCode::kUnsupported) GTEST_SKIP() << left.status().ToString();
    ASSERT_TRUE(left.ok()) << left.status().ToString();
    left_ucx_ = std::move(*left);
    right_ucx_ = std::move(*UcxTransport::Create(right_loop_, {}));
    const auto left_end = std::move(*left_ucx_->Open()), right_end = std::move(*right_ucx_->Open());
    left_ = *left_end->Connect(right_end->address(), token_, options, &left_sink_);
    right_ = *right_end->Connect(left_end->address(), token_, options, &right_sink_);
  }
  bool Run(const std::function<bool()>& ready) {
    return RunUntil({&left_loop_, &right_loop_}, ready);
  }

  asio::io_context left_loop_, right_loop_;
  SessionToken token_{};
  RecordingSink left_sink_, right_sink_;
  std::unique_ptr<UcxTransport> left_ucx_, right_ucx_;
  std::shared_ptr<Channel> left_, right_;
};

TEST_P(ChannelTest, FramesArriveInOrderAndWhole) {
  int sent = 0;
  for (uint64_t id = 1; id <= 200; ++id) {
    OutFrame frame = TestFrame(static_cast<uint8_t>(id), id, id % 50 * 20);
    frame.flags = 0x10;
    frame.deadline_ms = 5;
    ASSERT_TRUE(left_->Send(std::move(frame), [&](const Status& s) { sent += s.ok(); }).ok());
    EXPECT_EQ(sent, 0) << "a callback ran inside Send";
  }
  ASSERT_TRUE(Run([&] { return right_sink_.frames.size() == 200 && sent == 200; }));
  for (uint64_t id = 1; id <= 200; ++id) {
    const Received& got = *right_sink_.frames[id - 1];
    EXPECT_EQ(got.header.request_id, id);
    EXPECT_EQ(got.header.type, static_cast<uint8_t>(id));
    EXPECT_EQ(got.header.flags, 0x10);
    EXPECT_EQ(got.header.deadline_ms, 5u);
    EXPECT_EQ(got.header.token, token_);
    EXPECT_EQ(got.control, TestBytes(id % 50 * 20, static_cast<uint32_t>(id)));
  }
  EXPECT_EQ(left_->stats().frames_out, 200u);
  EXPECT_EQ(right_->stats().frames_in, 200u);
  EXPECT_EQ(left_->stats().bytes_out, right_->stats().bytes_in);
}

TEST_P(ChannelTest, BothDirectionsAtOnce) {
  const auto data = TestBytes(300'000);
  int answers = 0;
  right_sink_.on_frame = [&](Received& got) {
    EXPECT_TRUE(right_->Send(TestFrame(2, got.header.request_id, 10, {data})).ok());
    return Admission::Handled();
  };
  for (uint64_t id = 1; id <= 20; ++id) ASSERT_TRUE(left_->Send(TestFrame(1, id, 100)).ok());
  ASSERT_TRUE(Run([&] {
    answers = 0;
    for (auto& f : left_sink_.frames) answers += f->has_payload;
    return answers == 20;
  }));
  for (auto& f : left_sink_.frames) EXPECT_EQ(f->payload, data);
}

TEST_P(ChannelTest, PayloadsOfEverySize) {
  for (const bool checksum : {false, true}) {
    ChannelOptions options;
    options.checksum = checksum;
    Open(options);
    if (IsSkipped()) return;
    right_sink_.frames.clear();
    const size_t sizes[] = {1, 63, 4096, 8193, 65535, 65536, 100'001, 1 << 20, (8 << 20) + 3};
    std::vector<std::vector<std::byte>> data;
    for (const size_t size : sizes) data.push_back(TestBytes(size, static_cast<uint32_t>(size)));
    size_t sent = 0;
    for (size_t i = 0; i < data.size(); ++i) {
      const std::span<const std::byte> all(data[i]);
      const size_t cut = all.size() / 2;
      ASSERT_TRUE(left_
                      ->Send(TestFrame(12, i + 1, 900, {all.first(cut), {}, all.subspan(cut)}),
                             [&](const Status& s) { sent += s.ok(); })
                      .ok());
    }
    ASSERT_TRUE(Run([&] {
      size_t n = 0;
      for (auto& f : right_sink_.frames) n += f->has_payload;
      return n == data.size() && sent == n;
    }));
    for (auto& f : right_sink_.frames) {
      EXPECT_TRUE(f->payload_status.ok()) << f->payload_status.ToString();
      EXPECT_EQ(f->payload, data[f->header.request_id - 1]) << f->header.payload_len;
      EXPECT_EQ((f->header.flags & kFlagChecksum) != 0, checksum);
    }
  }
}

TEST_P(ChannelTest, LargeControl) {
  ASSERT_TRUE(left_->Send(TestFrame(1, 1, 1 << 20)).ok());
  ASSERT_TRUE(left_->Send(TestFrame(1, 2, 70'000)).ok());
  ASSERT_TRUE(left_->Send(TestFrame(1, 3, 0)).ok());
  ASSERT_TRUE(Run([&] { return right_sink_.frames.size() == 3; }));
  for (auto& f : right_sink_.frames) {
    const uint64_t id = f->header.request_id;
    const size_t size = id == 1 ? 1 << 20 : id == 2 ? 70'000 : 0;
    EXPECT_EQ(f->control, TestBytes(size, static_cast<uint32_t>(id)));
  }
  EXPECT_EQ(left_->Send(TestFrame(1, 4, (1 << 20) + 1)).code(), StatusCode::kTooLarge);
}

// Admission before bytes: a refused payload touches nothing, and the frames around it arrive.
TEST_P(ChannelTest, RefusedPayloadsAreSkipped) {
  const auto data = TestBytes(3 << 20);
  const size_t sizes[] = {100, 200'000, data.size()};
  right_sink_.on_frame = [&](Received& got) {
    if (got.header.payload_len == 0) return Admission::Handled();
    if (got.header.request_id % 2) return Admission::Refuse();
    return RecordingSink::Take(right_sink_.frames.back());
  };
  int ended = 0;
  for (uint64_t id = 1; id <= 12; ++id) {
    const size_t size = sizes[id % 3];
    ASSERT_TRUE(left_
                    ->Send(TestFrame(1, id, 50, {std::span(data).first(size)}),
                           [&](const Status&) { ++ended; })
                    .ok());
  }
  ASSERT_TRUE(left_->Send(TestFrame(9, 100, 5)).ok());
  ASSERT_TRUE(Run([&] {
    int taken = 0;
    for (auto& f : right_sink_.frames) taken += f->has_payload;
    return right_sink_.frames.size() == 13 && taken == 6 && ended == 12;
  }));
  for (auto& f : right_sink_.frames) {
    if (!f->has_payload) continue;
    EXPECT_TRUE(std::equal(f->payload.begin(), f->payload.end(), data.begin()));
  }
  EXPECT_FALSE(right_sink_.closed);
  EXPECT_EQ(right_->stats().refused_payload_bytes, 2 * (100 + 200'000 + data.size()));
}

TEST_P(ChannelTest, CloseVerdictTellsTheSink) {
  right_sink_.on_frame = [](Received&) { return Admission::Close(Invalid("no such thing")); };
  ASSERT_TRUE(left_->Send(TestFrame(1, 1, 5)).ok());
  ASSERT_TRUE(Run([&] { return right_sink_.closed; }));
  EXPECT_EQ(right_sink_.close_reason.ToString(), "INVALID: no such thing");
  EXPECT_TRUE(right_->closed());
  EXPECT_EQ(right_->Send(TestFrame(1, 1, 5)).code(), StatusCode::kCancelled);
}

TEST_P(ChannelTest, CloseInsideACallbackEndsEverythingOnce) {
  const auto data = TestBytes(4 << 20);
  int cancelled = 0, calls = 0;
  right_sink_.on_frame = [&](Received&) {
    ++calls;
    right_->Close();
    right_->Close();
    right_.reset();
    return RecordingSink::Take(right_sink_.frames.back());
  };
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(right_
                    ->Send(TestFrame(1, 1, 5, {data}),
                           [&](const Status& s) {
                             cancelled += s.code() == StatusCode::kCancelled || s.ok();
                           })
                    .ok());
  }
  left_sink_.on_frame = [&](Received&) { return Admission::Refuse(); };
  ASSERT_TRUE(left_->Send(TestFrame(1, 1, 5, {data})).ok());
  ASSERT_TRUE(
      Run([&] { return calls == 1 && cancelled == 5 && right_sink_.frames[0]->has_payload; }));
  EXPECT_EQ(right_sink_.frames[0]->payload_status.code(), StatusCode::kCancelled);
  EXPECT_FALSE(right_sink_.closed) << "OnClosed after Close()";
}

TEST_P(ChannelTest, CloseAfterSendsDeliversWhatWasQueued) {
  const auto data = TestBytes(2 << 20);
  for (uint64_t id = 1; id <= 4; ++id) ASSERT_TRUE(left_->Send(TestFrame(1, id, 5, {data})).ok());
  left_->CloseAfterSends();
  EXPECT_EQ(left_->Send(TestFrame(1, 5, 5)).code(), StatusCode::kCancelled);
  left_.reset();
  ASSERT_TRUE(Run([&] {
    int n = 0;
    for (auto& f : right_sink_.frames) n += f->has_payload && f->payload_status.ok();
    return n == 4;
  }));
}

// Never unbounded memory: first RETRY, then the channel closes with DEADLINE.
TEST_P(ChannelTest, APeerThatStopsReadingIsClosed) {
  ChannelOptions options;
  options.max_send_bytes = 4 << 20;
  options.stall_timeout = milliseconds(100);
  Open(options);
  if (IsSkipped()) return;
  const auto data = TestBytes(1 << 20);
  int ended = 0, queued = 0;
  Status status;
  while (queued < 1000) {
    status = left_->Send(TestFrame(1, 1, 5, {data}), [&](const Status&) { ++ended; });
    if (!status.ok()) break;
    ++queued;
  }
  EXPECT_EQ(status.code(), StatusCode::kRetry);
  EXPECT_LE(left_->queued_bytes(), options.max_send_bytes + (2 << 20));
  // The right end's loop does not run: a stopped process.
  ASSERT_TRUE(RunUntil({&left_loop_}, [&] { return left_sink_.closed && ended == queued; }));
  EXPECT_EQ(left_sink_.close_reason.code(), StatusCode::kDeadline);
}

TEST_P(ChannelTest, DescriptorsTravelOnAfUnixOnly) {
  OutFrame frame = TestFrame(6, 1, 20);
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  UniqueFd reader(ends[0]);
  frame.fds.emplace_back(ends[1]);
  frame.fds.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (GetParam() != Kind::kUnix) {
    EXPECT_FALSE(left_->carries_fds());
    EXPECT_EQ(left_->Send(std::move(frame)).code(), StatusCode::kUnsupported);
    return;
  }
  const auto data = TestBytes(100'000);
  ASSERT_TRUE(left_->Send(TestFrame(1, 7, 5, {data})).ok());
  ASSERT_TRUE(left_->Send(std::move(frame)).ok());
  ASSERT_TRUE(left_->Send(TestFrame(1, 8, 5)).ok());
  ASSERT_TRUE(Run([&] { return right_sink_.frames.size() == 3; }));
  EXPECT_TRUE(right_sink_.frames[0]->fds.empty());
  ASSERT_EQ(right_sink_.frames[1]->fds.size(), 2u);
  EXPECT_TRUE(right_sink_.frames[2]->fds.empty());
  UniqueFd writer = std::move(right_sink_.frames[1]->fds[0]);
  ASSERT_EQ(::write(writer.get(), "k", 1), 1);
  char c = 0;
  ASSERT_EQ(::read(reader.get(), &c, 1), 1);
  EXPECT_EQ(c, 'k');
  EXPECT_NE(::fcntl(writer.get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_P(ChannelTest, TheOtherEndGoingAwayIsTold) {
  if (GetParam() == Kind::kUcx) GTEST_SKIP() << "UCX has no end of stream: the socket tells";
  right_.reset();
  ASSERT_TRUE(Run([&] { return left_sink_.closed; }));
  EXPECT_EQ(left_sink_.close_reason.code(), StatusCode::kCancelled);
}

INSTANTIATE_TEST_SUITE_P(All, ChannelTest, testing::Values(Kind::kUnix, Kind::kTcp, Kind::kUcx),
                         [](const auto& param) {
                           return param.param == Kind::kUnix  ? "Unix"
                                  : param.param == Kind::kTcp ? "Tcp"
                                                              : "Ucx";
                         });

}  // namespace
}  // namespace dyna
