// Tells when a process has died. End of stream is not enough: a forked child keeps its parent's
// socket open. Lives on the loop's thread.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>

#include "client/base/asio.h"
#include "client/base/unique_fd.h"
#include "schemas/status.h"

namespace dyna {

class PeerWatch {
 public:
  // Of the process at the other end of an AF_UNIX socket. UNSUPPORTED where the process is not
  // visible (another pid namespace) or the kernel has no pidfd.
  static Result<std::unique_ptr<PeerWatch>> OfSocket(asio::io_context& loop, int socket,
                                                     std::function<void()> died);
  static Result<std::unique_ptr<PeerWatch>> OfPid(asio::io_context& loop, pid_t pid,
                                                  std::function<void()> died);
  ~PeerWatch();  // `died` never runs after this

  // Asked now, without waiting for the loop.
  bool alive() const;

 private:
  struct Core;
  explicit PeerWatch(std::shared_ptr<Core> core);
  static std::unique_ptr<PeerWatch> Start(asio::io_context& loop, UniqueFd pidfd,
                                          std::function<void()> died);
  std::shared_ptr<Core> core_;
};

}  // namespace dyna
