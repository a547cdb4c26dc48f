// UCX for this process: for each peer a worker of its own on one event loop, and a channel over it.
// UCX itself is in the shared object dyna_ucx, loaded on first use (ucx_loader.h).
//
// A worker of its own, because a peer that is killed leaves in UCX, over shared memory, what
// nothing ends: a gap in our receive queue, if it was killed while it wrote, behind which nothing
// of any peer is read; and, in 1.13.1, rendezvous to it while its queue is full, cancelled, closed
// by force or not. Both end with the worker. Until then no memory that it may touch is given back:
// at most `close_timeout` after Close().
//
// Lives on the loop's thread. AM frames carry no sender: one whose token is not its channel's is
// refused and counted.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "client/base/asio_executor.h"
#include "client/transport/channel.h"
#include "schemas/status.h"

namespace dyna {

class UcxContextApi;
class UcxPump;
class UcxWorkerApi;

struct UcxOptions {
  std::string tls = "self,posix";          // with these two UCX opens no port at all
  std::string net_devices = "lo";          // else UCX listens on every interface
  std::chrono::microseconds busy_poll{0};  // spin this long before sleeping
  std::chrono::milliseconds safety_tick{250};
  std::chrono::milliseconds keepalive{0};  // UCX's own; 0: off, the socket tells of death
  // After Close(): what UCX has not ended by then ends with its worker.
  std::chrono::milliseconds close_timeout{1000};
  uint32_t max_workers = 256;  // open and closing; each 2 MiB of shared memory, 5 descriptors
};

struct UcxStats {
  uint64_t wakeups = 0;          // of the event descriptor
  uint64_t rescued_wakeups = 0;  // work that only the safety tick found
  uint64_t unknown_token_frames = 0;
  uint64_t malformed_frames = 0;
  uint64_t endpoint_errors = 0;
  uint64_t channels = 0;            // open
  uint64_t closing = 0;             // workers that wait for the end of their requests
  uint64_t abandoned_requests = 0;  // that UCX did not end before close_timeout
};

// This process's end of a line to one peer: first its address, for the peer, then the channel.
class UcxEnd {
 public:
  explicit UcxEnd(std::shared_ptr<UcxWorkerApi> worker) : worker_(std::move(worker)) {}
  ~UcxEnd();  // the channel, if there is one, lives on
  UcxEnd(const UcxEnd&) = delete;
  UcxEnd& operator=(const UcxEnd&) = delete;

  // To give to this peer, and to no other, in Hello or HelloReply.
  std::span<const std::byte> address() const;

  // Once. `address` MUST come from a peer that may crash us: UCX aborts on a garbage one. The
  // caller decides that (design 6); what can be checked (size) is.
  Result<std::shared_ptr<Channel>> Connect(std::span<const std::byte> address,
                                           const SessionToken& token, const ChannelOptions& options,
                                           FrameSink* sink);

 private:
  std::shared_ptr<UcxWorkerApi> worker_;
  bool connected_ = false;
};

class UcxTransport {
 public:
  // UNSUPPORTED: built without UCX, its library missing, or without shared-memory transports.
  static Result<std::unique_ptr<UcxTransport>> Create(asio::io_context& loop,
                                                      const UcxOptions& options);
  // Channels still open are closed; returns when nothing of UCX touches their memory, after
  // close_timeout at the latest.
  ~UcxTransport();

  std::string version() const;       // of the library that was loaded
  bool handles_cuda_memory() const;  // else: stage device memory through the host

  // QUOTA: max_workers. A few milliseconds.
  Result<std::unique_ptr<UcxEnd>> Open();
  UcxStats stats() const;

 private:
  UcxTransport(asio::io_context& loop, const UcxOptions& options);

  asio::io_context& loop_;
  const UcxOptions options_;
  AsioExecutor executor_;
  std::shared_ptr<UcxStats> stats_ = std::make_shared<UcxStats>();
  std::shared_ptr<UcxContextApi> context_;
  std::map<UcxPump*, std::shared_ptr<UcxWorkerApi>> workers_;  // that have not ended
};

}  // namespace dyna
