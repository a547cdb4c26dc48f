// UCX for this process: one worker on one event loop, channels to peers over it. UCX itself is in
// the shared object dyna_ucx, loaded on first use (ucx_loader.h).
//
// Lives on the loop's thread. AM frames carry no sender: a frame finds its channel by the session
// token in its header, and one with an unknown token is refused and counted.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/base/asio_executor.h"
#include "client/transport/channel.h"
#include "schemas/status.h"

namespace dyna {

class UcxPump;
class UcxWorkerApi;

struct UcxOptions {
  std::string tls = "self,posix";              // with these two UCX opens no port at all
  std::string net_devices = "lo";              // else UCX listens on every interface
  std::chrono::microseconds busy_poll{0};      // spin this long before sleeping
  std::chrono::milliseconds safety_tick{250};  // while channels exist
  std::chrono::milliseconds keepalive{0};      // UCX's own; 0: off, the socket tells of death
  uint32_t max_channels = 1024;
};

struct UcxStats {
  uint64_t wakeups = 0;          // of the event descriptor
  uint64_t rescued_wakeups = 0;  // work that only the safety tick found
  uint64_t unknown_token_frames = 0;
  uint64_t malformed_frames = 0;
  uint64_t endpoint_errors = 0;
  uint64_t channels = 0;
};

class UcxTransport {
 public:
  // UNSUPPORTED: built without UCX, its library missing, or without shared-memory transports.
  static Result<std::unique_ptr<UcxTransport>> Create(asio::io_context& loop,
                                                      const UcxOptions& options);
  // Channels still open are closed; runs UCX until their memory is free.
  ~UcxTransport();

  // To give to a peer in Hello or HelloReply.
  std::span<const std::byte> address() const;
  std::string version() const;       // of the library that was loaded
  bool handles_cuda_memory() const;  // else: stage device memory through the host

  // `address` MUST come from a peer that may crash us: UCX aborts on a garbage one. The caller
  // decides that (design 6); what can be checked (size) is.
  Result<std::shared_ptr<Channel>> Connect(std::span<const std::byte> address,
                                           const SessionToken& token, const ChannelOptions& options,
                                           FrameSink* sink);
  UcxStats stats() const;

 private:
  UcxTransport();
  std::unique_ptr<AsioExecutor> executor_;
  std::shared_ptr<UcxWorkerApi> worker_;
  std::shared_ptr<UcxPump> pump_;
};

}  // namespace dyna
