// Cuts a byte stream into frames. It never reads itself: the channel reads into Space() and tells
// how much came. Payload bytes land in the sink's memory directly; what is buffered here is
// bounded by 64 KiB and the control limit.
//
// One thread, the channel's.
#pragma once

#include <sys/uio.h>

#include <array>
#include <deque>
#include <span>
#include <vector>

#include "client/transport/channel.h"

namespace dyna {

class FrameReader {
 public:
  // `stats` outlives it.
  FrameReader(const FrameLimits& limits, ChannelStats& stats);

  // Where the next bytes of the stream go; never empty. Valid until the next Consume().
  std::span<iovec> Space();
  // `n` bytes were read into Space(). Calls sink->OnFrame and completions; stops early once
  // *sink is null. Not OK: the stream cannot be understood any further.
  Status Consume(size_t n, FrameSink* const* sink);

  // Descriptors that arrived with the bytes about to be consumed.
  Status AddFds(std::vector<UniqueFd> fds);

  // Ends an admitted payload that will not be completed.
  void Abandon(const Status& reason);
  // Mid-frame: the end of the stream here is a truncation.
  bool in_frame() const { return state_ != State::kHead || begin_ != end_; }

 private:
  enum class State : uint8_t { kHead, kControl, kPayload, kSkip };

  Status Process(FrameSink* const* sink);
  Status Dispatch(std::span<const std::byte> control, FrameSink* const* sink);
  Status Admit(Admission admission);
  void Land(size_t n);  // n bytes of payload are in place
  void FinishPayload();

  const FrameLimits limits_;
  ChannelStats& stats_;
  State state_ = State::kHead;
  FrameHeader header_;
  std::vector<std::byte> buffer_;  // the stream's bytes [begin_, end_) not yet understood
  size_t begin_ = 0, end_ = 0;
  std::vector<std::byte> control_;  // of a frame whose control does not fit into buffer_
  size_t control_have_ = 0;
  std::vector<std::span<std::byte>> into_;
  size_t part_ = 0;    // the first part of into_ with room left
  uint64_t left_ = 0;  // payload bytes still to come
  uint32_t crc_ = 0;
  std::function<void(const Status&)> done_;
  std::deque<UniqueFd> fds_;
  std::vector<iovec> space_;
};

}  // namespace dyna
