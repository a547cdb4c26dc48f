// A channel carries frames between two processes: the one interface of the stream socket
// (socket_channel.h) and of UCX active messages (ucx_transport.h).
//
// Thread rule: a channel, its sink and all callbacks live on one executor's thread. No callback
// ever runs inside Send() or Close().
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "client/base/unique_fd.h"
#include "client/transport/frame.h"
#include "schemas/status.h"

namespace dyna {

// What to send. The channel fills in the token, the lengths and the checksum.
struct OutFrame {
  uint8_t type = 0;
  uint16_t flags = 0;  // without the transport's bits
  uint64_t request_id = 0;
  uint32_t deadline_ms = 0;
  std::vector<std::byte> control;                   // owned by the channel from Send() on
  std::vector<std::span<const std::byte>> payload;  // must stay as it is until `done`
  std::vector<UniqueFd> fds;                        // AF_UNIX only; closed here once sent
};
// OK means handed to the transport and that `payload` is the caller's again; it is not an
// acknowledgement by the peer. May be empty.
using SendDone = std::function<void(const Status&)>;

// What has arrived of a frame when the sink is asked: everything but the payload. Valid during the
// call only; `fds` may be moved out, those that are not are closed.
struct InFrame {
  const FrameHeader& header;
  std::span<const std::byte> control;
  std::span<UniqueFd> fds;
};

// The sink's answer: where the payload goes, before a byte of it moves.
struct Admission {
  enum class Verdict : uint8_t { kHandled, kInto, kRefused, kClose };
  Verdict verdict = Verdict::kHandled;
  std::vector<std::span<std::byte>> into;
  std::function<void(const Status&)> done;
  Status reason;

  // A frame without payload is dealt with; a frame with payload: as Refuse().
  static Admission Handled() { return {}; }
  // The payload is written to `parts`, whose sizes add up to payload_len. `done` runs exactly
  // once, after the channel's last access to them: OK, INVALID (checksum) or CANCELLED (closed).
  static Admission Into(std::vector<std::span<std::byte>> parts,
                        std::function<void(const Status&)> done) {
    return {Verdict::kInto, std::move(parts), std::move(done), {}};
  }
  static Admission Into(std::span<std::byte> part, std::function<void(const Status&)> done) {
    return Into(std::vector<std::span<std::byte>>{part}, std::move(done));
  }
  // The payload is skipped; the sink sends the typed reply itself, now or later.
  static Admission Refuse() { return {Verdict::kRefused, {}, {}, {}}; }
  // The peer broke the protocol: the channel closes, OnClosed(reason) follows.
  static Admission Close(Status reason) { return {Verdict::kClose, {}, {}, std::move(reason)}; }
};

// Receives what a channel reads. It must outlive the channel or call Close() on it first; after
// Close() it is not called again.
class FrameSink {
 public:
  virtual ~FrameSink() = default;
  // Each frame once, in the order of sending (socket), header and token checked as far as the
  // transport can. The sink may Send() or Close() from here.
  virtual Admission OnFrame(const InFrame& frame) = 0;
  // Once, unless Close() was called: end of stream (CANCELLED), protocol error (INVALID, ...), a
  // peer that stopped reading (DEADLINE). No frame follows.
  virtual void OnClosed(const Status& reason) = 0;
};

struct ChannelOptions {
  FrameLimits limits;
  uint64_t max_send_bytes = 64u << 20;  // queued, payload included; one frame may exceed it alone
  size_t max_send_frames = 4096;
  std::chrono::milliseconds stall_timeout{10000};  // bytes queued and none taken by the peer
  bool checksum = false;  // of what is sent; what arrives with one is verified
};

struct ChannelStats {
  uint64_t frames_in = 0, frames_out = 0;
  uint64_t bytes_in = 0, bytes_out = 0;  // headers included
  uint64_t refused_payload_bytes = 0;    // skipped (socket) or never moved (UCX)
  uint64_t rejected_frames = 0;          // failed the door
};

class Channel {
 public:
  virtual ~Channel() = default;

  // OK: queued, and `done` will run exactly once. Otherwise nothing was queued and `done` never
  // runs: RETRY (the queue is full: the peer reads too slowly), TOO_LARGE, UNSUPPORTED
  // (descriptors on this channel), CANCELLED (closed).
  virtual Status Send(OutFrame frame, SendDone done = {}) = 0;

  // Carried by every frame sent from now on.
  virtual void SetToken(const SessionToken& token) = 0;

  // No further callback of the sink. Queued sends and admitted payloads end CANCELLED, each when
  // its memory is no longer touched. May be called twice, and from any callback.
  virtual void Close() = 0;
  // Close() once everything queued has gone out, or after stall_timeout; nothing is read any more.
  virtual void CloseAfterSends() = 0;

  virtual bool closed() const = 0;
  virtual bool carries_fds() const = 0;
  virtual uint64_t queued_bytes() const = 0;
  virtual const ChannelStats& stats() const = 0;
};

}  // namespace dyna
