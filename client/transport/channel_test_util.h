// Two ends of a channel, each on its loop, for the suites that every kind of channel must pass.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "client/base/asio.h"
#include "client/transport/channel.h"

namespace dyna {

inline std::vector<std::byte> TestBytes(size_t n, uint32_t seed = 1) {
  std::vector<std::byte> out(n);
  uint32_t x = seed * 2654435761u + 1;
  for (auto& b : out) {
    x = x * 1664525u + 1013904223u;
    b = static_cast<std::byte>(x >> 24);
  }
  return out;
}

// A frame as it was received, payload included.
struct Received {
  FrameHeader header;
  std::vector<std::byte> control;
  std::vector<std::byte> payload;
  std::vector<UniqueFd> fds;
  bool has_payload = false;  // its completion ran
  Status payload_status;
};

// Takes every payload into memory of its own, unless told otherwise.
class RecordingSink : public FrameSink {
 public:
  Admission OnFrame(const InFrame& frame) override {
    auto got = std::make_shared<Received>();
    got->header = frame.header;
    got->control.assign(frame.control.begin(), frame.control.end());
    for (auto& fd : frame.fds) got->fds.push_back(std::move(fd));
    frames.push_back(got);
    if (on_frame) return on_frame(*got);
    if (frame.header.payload_len == 0) return Admission::Handled();
    return Take(got);
  }
  static Admission Take(const std::shared_ptr<Received>& got) {
    got->payload.resize(got->header.payload_len);
    // Two parts of uneven size, to exercise the scatter list.
    const std::span<std::byte> all(got->payload);
    const size_t cut = all.size() / 3;
    return Admission::Into({all.first(cut), all.subspan(cut)}, [got](const Status& status) {
      EXPECT_FALSE(got->has_payload) << "completed twice";
      got->has_payload = true;
      got->payload_status = status;
    });
  }
  void OnClosed(const Status& reason) override {
    EXPECT_FALSE(closed) << "closed twice";
    closed = true;
    close_reason = reason;
  }

  std::vector<std::shared_ptr<Received>> frames;
  std::function<Admission(Received&)> on_frame;
  bool closed = false;
  Status close_reason;
};

// Runs the loops until `ready`; false after `limit`. A loop left out stands for a process that
// does not run.
inline bool RunUntil(std::initializer_list<asio::io_context*> loops,
                     const std::function<bool()>& ready,
                     std::chrono::milliseconds limit = std::chrono::seconds(60)) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!ready()) {
    if (std::chrono::steady_clock::now() > end) return false;
    size_t work = 0;
    for (asio::io_context* loop : loops) {
      loop->restart();
      work += loop->poll_one();  // one: a loop that never runs dry must not hide the limit
    }
    if (work == 0) {
      (*loops.begin())->restart();
      (*loops.begin())->run_one_for(std::chrono::milliseconds(1));
    }
  }
  return true;
}

inline OutFrame TestFrame(uint8_t type, uint64_t id, size_t control,
                          std::vector<std::span<const std::byte>> payload = {}) {
  OutFrame frame;
  frame.type = type;
  frame.request_id = id;
  frame.control = TestBytes(control, static_cast<uint32_t>(id));
  frame.payload = std::move(payload);
  return frame;
}

}  // namespace dyna
