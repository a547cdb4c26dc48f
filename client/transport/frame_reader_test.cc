#include "client/transport/frame_reader.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

#include "client/transport/channel_test_util.h"
#include "client/transport/send_queue.h"

namespace dyna {
namespace {

std::vector<std::byte> Serialise(const OutFrame& frame, bool checksum) {
  ChannelOptions options;
  options.checksum = checksum;
  const auto header = EncodeFrameHeader(*MakeHeader(frame, {}, options, true));
  std::vector<std::byte> out;
  const auto append = [&out](std::span<const std::byte> bytes) {
    const size_t at = out.size();
    out.resize(at + bytes.size());
    if (!bytes.empty()) std::memcpy(out.data() + at, bytes.data(), bytes.size());
  };
  append(header);
  append(frame.control);
  for (const auto& part : frame.payload) append(part);
  return out;
}

// Feeds `bytes` in pieces of 1..max_piece, as a socket would.
Status Feed(FrameReader& reader, RecordingSink& sink, std::span<const std::byte> bytes,
            std::mt19937& rng, size_t max_piece) {
  FrameSink* to = &sink;
  while (!bytes.empty()) {
    size_t want = std::min(bytes.size(), 1 + rng() % max_piece), given = 0;
    for (const iovec& space : reader.Space()) {
      const size_t n = std::min(want - given, space.iov_len);
      if (n > 0) std::memcpy(space.iov_base, bytes.data() + given, n);
      given += n;
    }
    EXPECT_GT(given, 0u) << "no room to read into";
    if (given == 0) return Internal("stuck");
    DYNA_RETURN_IF_ERROR(reader.Consume(given, &to));
    bytes = bytes.subspan(given);
  }
  return Status::Ok();
}

class FrameReaderTest : public testing::Test {
 protected:
  FrameReaderTest() : seed_(std::random_device{}()), rng_(seed_) {}
  unsigned seed_;
  std::mt19937 rng_;
};

TEST_F(FrameReaderTest, AnyCutGivesTheSameFrames) {
  SCOPED_TRACE("seed " + std::to_string(seed_));
  for (int round = 0; round < 60; ++round) {
    std::vector<std::byte> stream;
    std::vector<std::vector<std::byte>> payloads;
    for (uint64_t id = 0; id < 12; ++id) {
      const size_t sizes[] = {0, 1, 100, 5000, 70'000, 200'000};
      payloads.push_back(TestBytes(sizes[rng_() % 6], static_cast<uint32_t>(id)));
      OutFrame frame = TestFrame(1, id, sizes[rng_() % 6]);
      if (!payloads.back().empty()) frame.payload = {payloads.back()};
      const auto bytes = Serialise(frame, rng_() % 2);
      stream.insert(stream.end(), bytes.begin(), bytes.end());
    }
    ChannelStats stats;
    FrameReader reader({}, stats);
    RecordingSink sink;
    const size_t pieces[] = {7, 100, 4096, 100'000, 1 << 20};
    if (round % 3 == 0) sink.on_frame = [](Received&) { return Admission::Refuse(); };
    ASSERT_TRUE(Feed(reader, sink, stream, rng_, pieces[rng_() % 5]).ok());
    ASSERT_EQ(sink.frames.size(), 12u);
    EXPECT_FALSE(reader.in_frame());
    for (uint64_t id = 0; id < 12; ++id) {
      const Received& got = *sink.frames[id];
      EXPECT_EQ(got.control, TestBytes(got.header.control_len, static_cast<uint32_t>(id)));
      if (round % 3 == 0 || payloads[id].empty()) continue;
      EXPECT_TRUE(got.payload_status.ok());
      EXPECT_EQ(got.payload, payloads[id]);
    }
  }
}

// Whatever a peer sends, the reader answers with a Status; run under ASan by the sanitizer job.
TEST_F(FrameReaderTest, MutatedStreamsNeverDoHarm) {
  SCOPED_TRACE("seed " + std::to_string(seed_));
  const auto payload = TestBytes(3000);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::byte> stream;
    for (uint64_t id = 0; id < 4; ++id) {
      const auto bytes = Serialise(TestFrame(1, id, 200, {payload}), true);
      stream.insert(stream.end(), bytes.begin(), bytes.end());
    }
    const size_t flips = 1 + rng_() % 4;
    for (size_t i = 0; i < flips; ++i)
      stream[rng_() % stream.size()] ^= std::byte{1} << (rng_() % 8);
    if (rng_() % 2) stream.resize(rng_() % stream.size());
    ChannelStats stats;
    FrameReader reader({}, stats);
    RecordingSink sink;
    const Status status = Feed(reader, sink, stream, rng_, 2000);
    refused += !status.ok();
    for (auto& f : sink.frames) {
      if (!f->has_payload || !f->payload_status.ok()) continue;
      EXPECT_EQ(f->payload, payload);
    }
    reader.Abandon({StatusCode::kCancelled, "end"});
  }
  EXPECT_GT(refused, 50);
}

TEST_F(FrameReaderTest, AWrongChecksumIsInvalidAndTheStreamGoesOn) {
  const auto payload = TestBytes(100'000);
  auto stream = Serialise(TestFrame(1, 1, 5, {payload}), true);
  stream[stream.size() - 1] ^= std::byte{1};
  const auto second = Serialise(TestFrame(1, 2, 5, {payload}), true);
  stream.insert(stream.end(), second.begin(), second.end());
  ChannelStats stats;
  FrameReader reader({}, stats);
  RecordingSink sink;
  ASSERT_TRUE(Feed(reader, sink, stream, rng_, 1 << 20).ok());
  ASSERT_EQ(sink.frames.size(), 2u);
  EXPECT_EQ(sink.frames[0]->payload_status.code(), StatusCode::kInvalid);
  EXPECT_TRUE(sink.frames[1]->payload_status.ok());
  EXPECT_EQ(stats.rejected_frames, 1u);
}

TEST_F(FrameReaderTest, AnnouncedDescriptorsMustHaveCome) {
  OutFrame frame = TestFrame(1, 1, 5);
  frame.fds.resize(2);
  const auto stream = Serialise(frame, false);
  ChannelStats stats;
  FrameReader reader({}, stats);
  RecordingSink sink;
  std::vector<UniqueFd> one(1);
  ASSERT_TRUE(reader.AddFds(std::move(one)).ok());
  EXPECT_EQ(Feed(reader, sink, stream, rng_, 1000).code(), StatusCode::kInvalid);
  EXPECT_TRUE(sink.frames.empty());
  EXPECT_EQ(reader.AddFds(std::vector<UniqueFd>(15)).code(), StatusCode::kInvalid);
}

TEST_F(FrameReaderTest, ADestinationOfTheWrongSizeIsOurDefect) {
  const auto payload = TestBytes(100);
  ChannelStats stats;
  FrameReader reader({}, stats);
  RecordingSink sink;
  std::vector<std::byte> small(99);
  Status told;
  sink.on_frame = [&](Received&) {
    return Admission::Into(std::span(small), [&](const Status& s) { told = s; });
  };
  EXPECT_EQ(Feed(reader, sink, Serialise(TestFrame(1, 1, 5, {payload}), false), rng_, 1000).code(),
            StatusCode::kInternal);
  reader.Abandon({StatusCode::kCancelled, "end"});
  EXPECT_EQ(told.code(), StatusCode::kCancelled);
}

TEST(SendQueueTest, IsBoundedByBytesAndCount) {
  ChannelOptions options;
  options.max_send_bytes = 1000;
  options.max_send_frames = 3;
  SendQueue queue(options);
  const auto push = [&](size_t control) {
    OutFrame frame = TestFrame(1, 1, control);
    const FrameHeader header = *MakeHeader(frame, {}, options, true);
    return queue.Push(header, std::move(frame), {}).code();
  };
  EXPECT_EQ(push(5000), StatusCode::kOk) << "one frame may exceed the bound alone";
  EXPECT_EQ(push(0), StatusCode::kRetry);
  std::vector<SendDone> finished;
  EXPECT_EQ(queue.Advance(5063, &finished), 0u);
  EXPECT_EQ(push(0), StatusCode::kOk);
  EXPECT_EQ(queue.Advance(1, &finished), 1u);
  EXPECT_EQ(push(0), StatusCode::kOk);
  EXPECT_EQ(push(0), StatusCode::kOk);
  EXPECT_EQ(push(0), StatusCode::kRetry);
  EXPECT_EQ(queue.bytes(), 3 * 64u);
}

TEST(SendQueueTest, ADescriptorStartsItsOwnBatch) {
  SendQueue queue({});
  for (int i = 0; i < 3; ++i) {
    OutFrame frame = TestFrame(1, 1, 10);
    if (i == 1) frame.fds.resize(1);
    const FrameHeader header = *MakeHeader(frame, {}, {}, true);
    ASSERT_TRUE(queue.Push(header, std::move(frame), {}).ok());
  }
  std::array<iovec, 16> pieces;
  std::span<UniqueFd> fds;
  std::vector<SendDone> finished;
  EXPECT_EQ(queue.Gather(pieces, &fds), 2u);
  EXPECT_TRUE(fds.empty());
  queue.Advance(74, &finished);
  EXPECT_EQ(queue.Gather(pieces, &fds), 4u);
  EXPECT_EQ(fds.size(), 1u);
  queue.Advance(1, &finished);
  EXPECT_EQ(queue.Gather(pieces, &fds), 4u);
  EXPECT_TRUE(fds.empty()) << "sent twice";
}

TEST(MakeHeaderTest, RefusesWhatAFrameCannotBe) {
  OutFrame bits = TestFrame(1, 1, 0);
  bits.flags = kFlagChecksum;
  EXPECT_EQ(MakeHeader(bits, {}, {}, true).status().code(), StatusCode::kInvalid);
  OutFrame many = TestFrame(1, 1, 0);
  many.fds.resize(16);
  EXPECT_EQ(MakeHeader(many, {}, {}, true).status().code(), StatusCode::kTooLarge);
  OutFrame big = TestFrame(1, 1, 0);
  static std::byte byte;
  big.payload.push_back({&byte, size_t{2} << 30});  // never read
  EXPECT_EQ(MakeHeader(big, {}, {}, true).status().code(), StatusCode::kTooLarge);
}

}  // namespace
}  // namespace dyna
