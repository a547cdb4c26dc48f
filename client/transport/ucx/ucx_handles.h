// UCX's handles with owners, its status codes as Status, its safe settings. The only place that
// knows how a context and a worker are made.
//
// One thread, the worker's.
#pragma once

#include <ucp/api/ucp.h>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "client/transport/ucx_transport.h"
#include "schemas/status.h"

namespace dyna::ucx {

// "what: UCX's words" as the status a caller of a channel understands.
Status ToStatus(std::string_view what, ucs_status_t status);

class Context {
 public:
  Context() = default;
  ~Context() {
    if (handle_) ucp_cleanup(handle_);
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  Status Open(const UcxOptions& options);
  ucp_context_h get() const { return handle_; }
  bool handles_cuda() const { return cuda_; }

 private:
  ucp_context_h handle_ = nullptr;
  bool cuda_ = false;
};

class Worker {
 public:
  Worker() = default;
  ~Worker() { Destroy(false); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  Status Open(const Context& context);
  // Nothing of UCX touches memory of its requests any more. `forgotten`: some may be left, which
  // is worth no warning for each.
  void Destroy(bool forgotten);
  ucp_worker_h get() const { return handle_; }
  int event_fd() const { return event_fd_; }
  size_t max_am_header() const { return max_am_header_; }
  std::span<const std::byte> address() const { return address_; }  // in its envelope

 private:
  ucp_worker_h handle_ = nullptr;
  int event_fd_ = -1;
  size_t max_am_header_ = 0;
  std::vector<std::byte> address_;
};

// UCX aborts on a damaged address and cannot be told its length. So ours travel in an envelope
// (magic, UCX's major and minor version, length, checksum), which is checked here.
std::vector<std::byte> WrapAddress(std::span<const std::byte> raw);
// INVALID, or UNSUPPORTED for another version of UCX. No defence against a peer that means harm.
Result<std::vector<std::byte>> UnwrapAddress(std::span<const std::byte> envelope);

}  // namespace dyna::ucx
