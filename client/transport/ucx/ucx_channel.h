// A session's frames as UCX active messages to one endpoint (design 7): without payload the AM
// header is the FrameHeader and the AM data is the control; with payload the AM header is both and
// the AM data is the payload, by rendezvous unless it is small.
//
// One thread, the loop's. User callbacks never run inside a call of ours.
#pragma once

#include <ucp/api/ucp.h>

#include <memory>
#include <unordered_set>
#include <vector>

#include "client/transport/channel.h"
#include "client/transport/ucx/ucx_worker.h"

namespace dyna::ucx {

inline constexpr size_t kMaxHeader = 1024;           // FrameHeader and control beside a payload
inline constexpr size_t kRendezvousFrom = 32 << 10;  // bytes of AM data

class UcxChannel final : public Channel, public std::enable_shared_from_this<UcxChannel> {
 public:
  UcxChannel(UcxWorker& worker, const SessionToken& token, const ChannelOptions& options,
             FrameSink* sink)
      : worker_(&worker), token_(token), options_(options), sink_(sink) {}

  Status Open(void* address);
  void Dropped() {
    if (!draining_) Close();
  }

  Status Send(OutFrame frame, SendDone done) override;
  void SetToken(const SessionToken& token) override;
  void Close() override { Finish({StatusCode::kCancelled, "the channel is closed"}, false); }
  void CloseAfterSends() override;
  bool closed() const override { return closed_ || draining_; }
  bool carries_fds() const override { return false; }
  uint64_t queued_bytes() const override { return queued_bytes_; }
  const ChannelStats& stats() const override { return stats_; }

  // From the worker, inside UCX's progress. The answer is the AM callback's.
  ucs_status_t Receive(const FrameHeader& header, std::span<const std::byte> control, void* data,
                       size_t size, bool rendezvous);
  const SessionToken& token() const { return token_; }
  // What was put off; the worker calls it when the loop may not run any more.
  void RunLater();
  // UCX's worker is gone: ends what it has not ended. The number of such requests.
  size_t Abandon();
  // Ours goes too.
  void Detach() { worker_ = nullptr; }

 private:
  struct SendOp;
  struct ReceiveOp;

  static void OnSent(void* request, ucs_status_t status, void* op);
  static void OnReceived(void* request, ucs_status_t status, size_t length, void* op);
  static void OnEndpointError(void* self, ucp_ep_h endpoint, ucs_status_t status);

  ucs_status_t StartReceive(std::unique_ptr<ReceiveOp> op, void* data);
  void SendEnded(SendOp* op, ucs_status_t status);
  void ReceiveEnded(ReceiveOp* op, ucs_status_t status);
  // The sink's verdict on a frame; true when the payload shall be moved.
  bool Ask(const FrameHeader& header, std::span<const std::byte> control, Admission* admission);
  void Later(std::function<void()> callback);
  void WatchForStall();
  void Finish(Status reason, bool tell_sink);

  UcxWorker* worker_;
  SessionToken token_;
  const ChannelOptions options_;
  FrameSink* sink_;  // null once it must not be called
  ucp_ep_h endpoint_ = nullptr;
  ChannelStats stats_;
  uint64_t queued_bytes_ = 0;
  std::unordered_set<SendOp*> sends_;  // that UCX has not ended; each owns itself
  std::unordered_set<ReceiveOp*> receives_;
  size_t control_receives_ = 0;  // large controls under way, bounded
  TimePoint progress_{};
  bool watching_ = false;
  bool failed_ = false;  // the endpoint said so
  bool draining_ = false;
  bool closed_ = false;
  std::vector<std::function<void()>> later_;
  bool later_posted_ = false;
};

}  // namespace dyna::ucx
