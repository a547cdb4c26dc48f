// Frames on their way into a stream socket, in order, bounded by bytes and count.
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

// The header of `frame` as it goes out; computes the checksum if the options say so.
// TOO_LARGE, INVALID (the transport's flag bits) or UNSUPPORTED (descriptors).
Result<FrameHeader> MakeHeader(const OutFrame& frame, const SessionToken& token,
                               const ChannelOptions& options, bool carries_fds);

class SendQueue {
 public:
  explicit SendQueue(const ChannelOptions& options) : options_(options) {}

  // RETRY when it is full.
  Status Push(const FrameHeader& header, OutFrame frame, SendDone done);

  // The next bytes for the socket, at most out.size() pieces, and the descriptors that must go
  // with the first of them. Frames with descriptors start a batch of their own.
  size_t Gather(std::span<iovec> out, std::span<UniqueFd>* fds);
  // `n` bytes of that were taken. Completions of whole frames are appended to `finished`.
  // Returns how many frames were finished.
  size_t Advance(size_t n, std::vector<SendDone>* finished);

  std::vector<SendDone> Clear();
  bool empty() const { return items_.empty(); }
  uint64_t bytes() const { return bytes_; }

 private:
  struct Item {
    std::array<std::byte, kFrameHeaderBytes> header;
    OutFrame frame;
    SendDone done;
    uint64_t size;
  };
  const ChannelOptions options_;
  std::deque<Item> items_;
  uint64_t sent_ = 0;   // of the first item
  uint64_t bytes_ = 0;  // not yet sent, of all
};

}  // namespace dyna
