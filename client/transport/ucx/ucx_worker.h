// The worker behind UcxTransport: one UCX context and worker, the routing of active messages to
// channels by session token, and the closing of endpoints.
//
// One thread, the loop's.
#pragma once

#include <ucp/api/ucp.h>

#include <map>
#include <memory>
#include <set>

#include "client/transport/ucx/ucx_handles.h"
#include "client/transport/ucx_worker_api.h"

namespace dyna::ucx {

class UcxChannel;

inline constexpr unsigned kAmId = 1;

class UcxWorker final : public UcxWorkerApi, public std::enable_shared_from_this<UcxWorker> {
 public:
  UcxWorker(const UcxOptions& options, const UcxHost& host) : options_(options), host_(host) {}
  ~UcxWorker() override;
  Status Open();

  std::span<const std::byte> address() const override { return worker_.address(); }
  std::string version() const override { return ucp_get_version_string(); }
  bool handles_cuda_memory() const override { return context_.handles_cuda(); }
  Result<std::shared_ptr<Channel>> Connect(std::span<const std::byte> address,
                                           const SessionToken& token, const ChannelOptions& options,
                                           FrameSink* sink) override;
  UcxStats stats() const override;
  int event_fd() const override { return worker_.event_fd(); }
  unsigned Progress() override { return ucp_worker_progress(worker_.get()); }
  bool Arm() override { return ucp_worker_arm(worker_.get()) == UCS_OK; }
  void Shutdown(Duration limit) override;

  // For channels.
  ucp_worker_h handle() const { return worker_.get(); }
  Executor& executor() { return *host_.executor; }
  void Kick() { host_.kick(); }
  uint64_t operations() const override { return operations_; }
  void OperationStarted() { ++operations_; }
  void OperationEnded() { --operations_; }
  void EndpointFailed() { ++stats_.endpoint_errors; }
  bool Rename(const SessionToken& from, const SessionToken& to);
  void Remove(const SessionToken& token) { channels_.erase(token); }
  // Not from inside a UCX callback. `force` when a request may never complete otherwise; `keep`
  // lives until the endpoint is gone.
  void CloseEndpoint(ucp_ep_h endpoint, bool force, std::shared_ptr<void> keep);
  void Enrol(UcxChannel* channel) { all_.insert(channel); }
  void Leave(UcxChannel* channel) { all_.erase(channel); }

 private:
  static ucs_status_t OnMessage(void* self, const void* header, size_t header_size, void* data,
                                size_t size, const ucp_am_recv_param_t* param);
  ucs_status_t Route(std::span<const std::byte> header, void* data, size_t size, bool rendezvous);

  const UcxOptions options_;
  UcxHost host_;
  Context context_;
  Worker worker_;
  std::map<SessionToken, UcxChannel*> channels_;  // open ones
  std::set<UcxChannel*> all_;                     // closed ones too, until they are destroyed
  uint64_t operations_ = 0;                       // requests that UCX has not ended
  UcxStats stats_;
};

}  // namespace dyna::ucx
