// The worker behind a UcxEnd: the one channel over it, its endpoint, and its own end.
//
// One thread, the loop's.
#pragma once

#include <ucp/api/ucp.h>

#include <memory>

#include "client/transport/ucx/ucx_handles.h"
#include "client/transport/ucx_worker_api.h"

namespace dyna::ucx {

class UcxChannel;

inline constexpr unsigned kAmId = 1;

class UcxWorker final : public UcxWorkerApi, public std::enable_shared_from_this<UcxWorker> {
 public:
  UcxWorker(std::shared_ptr<const Context> context, const UcxOptions& options, const UcxHost& host)
      : context_(std::move(context)), options_(options), host_(host) {}
  Status Open();

  std::span<const std::byte> address() const override { return worker_.address(); }
  Result<std::shared_ptr<Channel>> Connect(std::span<const std::byte> address,
                                           const SessionToken& token, const ChannelOptions& options,
                                           FrameSink* sink) override;
  int event_fd() const override { return worker_.event_fd(); }
  unsigned Progress() override { return ended_ ? 0 : ucp_worker_progress(worker_.get()); }
  bool Arm() override { return ucp_worker_arm(worker_.get()) == UCS_OK; }
  uint64_t operations() const override { return operations_; }
  void Close() override;
  bool Drain() override;
  void End() override;

  // For the channel.
  ucp_worker_h handle() const { return worker_.get(); }
  Executor& executor() { return *host_.executor; }
  void Kick() { host_.kick(); }
  void OperationStarted() { ++operations_; }
  void OperationEnded();
  void EndpointFailed() { ++host_.stats->endpoint_errors; }
  // The channel closed. `endpoint` (or null) is closed too, `force` when a request may never
  // complete otherwise; the worker ends soon. Not from inside a UCX callback.
  void Retire(ucp_ep_h endpoint, bool force);

 private:
  static ucs_status_t OnMessage(void* self, const void* header, size_t header_size, void* data,
                                size_t size, const ucp_am_recv_param_t* param);
  ucs_status_t Route(std::span<const std::byte> header, void* data, size_t size, bool rendezvous);
  void CloseEndpoint(ucp_ep_h endpoint, bool force);
  void EndSoon();

  const std::shared_ptr<const Context> context_;
  const UcxOptions options_;
  const UcxHost host_;
  Worker worker_;
  std::shared_ptr<UcxChannel> channel_;  // closed too, until the end
  uint64_t operations_ = 0;              // requests that UCX has not ended
  bool retiring_ = false;
  bool ended_ = false;
};

}  // namespace dyna::ucx
