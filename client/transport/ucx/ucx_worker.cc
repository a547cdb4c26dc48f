#include "client/transport/ucx/ucx_worker.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "client/transport/ucx/ucx_channel.h"

namespace dyna::ucx {
namespace {

// Limits are the session's; its channel applies them.
constexpr FrameLimits kAnything{~uint32_t{0}, ~uint64_t{0}};
constexpr int kRoundsPerDrain = 64;

}  // namespace

Status UcxWorker::Open() {
  DYNA_RETURN_IF_ERROR(worker_.Open(*context_));
  ucp_am_handler_param_t param{};
  param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                     UCP_AM_HANDLER_PARAM_FIELD_ARG;
  param.id = kAmId;
  param.cb = &OnMessage;
  param.arg = this;
  return ToStatus("ucp_worker_set_am_recv_handler",
                  ucp_worker_set_am_recv_handler(worker_.get(), &param));
}

Result<std::shared_ptr<Channel>> UcxWorker::Connect(std::span<const std::byte> address,
                                                    const SessionToken& token,
                                                    const ChannelOptions& options,
                                                    FrameSink* sink) {
  DYNA_ASSIGN_OR_RETURN(std::vector<std::byte> raw, UnwrapAddress(address));
  if (token == SessionToken{}) return Invalid("UCX channel: the session token is zero");
  if (channel_) return Invalid("UCX channel: the session has one already");
  if (retiring_ || ended_) return Status(StatusCode::kCancelled, "UCX: closed");
  auto channel = std::make_shared<UcxChannel>(*this, token, options, sink);
  DYNA_RETURN_IF_ERROR(channel->Open(raw.data()));
  channel_ = channel;
  ++host_.stats->channels;
  Kick();
  return std::shared_ptr<Channel>(channel.get(), [channel](Channel*) { channel->Dropped(); });
}

ucs_status_t UcxWorker::OnMessage(void* self, const void* header, size_t header_size, void* data,
                                  size_t size, const ucp_am_recv_param_t* param) {
  const bool rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  const ucs_status_t status = static_cast<UcxWorker*>(self)->Route(
      {static_cast<const std::byte*>(header), header_size}, data, size, rendezvous);
  // An error lets the sender of a rendezvous know that nothing was taken (OK without a receive
  // would tell it "sent"). Of an eager message it has the data already, and UCX asserts on one.
  return rendezvous ? status : UCS_OK;
}

ucs_status_t UcxWorker::Route(std::span<const std::byte> header, void* data, size_t size,
                              bool rendezvous) {
  const auto parsed = ParseFrameHeader(header, kAnything);
  const auto control = header.subspan(std::min(header.size(), kFrameHeaderBytes));
  bool whole = parsed.ok() && parsed->fd_count() == 0;
  if (whole) {
    whole = parsed->payload_len > 0
                ? control.size() == parsed->control_len && size == parsed->payload_len
                : control.empty() && size == parsed->control_len;
  }
  if (!whole) {
    ++host_.stats->malformed_frames;
    return UCS_ERR_REJECTED;
  }
  if (!channel_ || !SameToken(parsed->token, channel_->token())) {
    ++host_.stats->unknown_token_frames;
    return UCS_ERR_REJECTED;
  }
  return channel_->Receive(*parsed, control, data, size, rendezvous);
}

void UcxWorker::OperationEnded() {
  --operations_;
  if (retiring_) EndSoon();
}

void UcxWorker::Close() {
  if (channel_) {
    channel_->Close();
  } else {
    Retire(nullptr, false);
  }
}

void UcxWorker::Retire(ucp_ep_h endpoint, bool force) {
  if (retiring_ || ended_) return;
  retiring_ = true;
  ++host_.stats->closing;
  if (channel_) --host_.stats->channels;
  if (endpoint) CloseEndpoint(endpoint, force);
  EndSoon();
  executor().PostAt(std::chrono::steady_clock::now() + options_.close_timeout,
                    [weak = weak_from_this()] {
                      if (const auto self = weak.lock()) self->End();
                    });
}

void UcxWorker::CloseEndpoint(ucp_ep_h endpoint, bool force) {
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = force ? UCP_EP_CLOSE_FLAG_FORCE : 0;
  param.user_data = this;
  param.cb.send = [](void* request, ucs_status_t, void* self) {
    ucp_request_free(request);
    static_cast<UcxWorker*>(self)->OperationEnded();
  };
  OperationStarted();
  const ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint, &param);
  if (request == nullptr || UCS_PTR_IS_ERR(request)) OperationEnded();
  Kick();
}

// Posted: we may be inside UCX.
void UcxWorker::EndSoon() {
  if (operations_ > 0 || ended_) return;
  executor().Post([weak = weak_from_this()] {
    if (const auto self = weak.lock(); self && self->operations_ == 0) self->End();
  });
}

bool UcxWorker::Drain() {
  if (ended_) return true;
  const auto self = shared_from_this();
  if (channel_) channel_->RunLater();
  for (int i = 0; i < kRoundsPerDrain && Progress() > 0; ++i) {
  }
  if (channel_) channel_->RunLater();
  return operations_ == 0;
}

void UcxWorker::End() {
  if (ended_) return;
  const auto self = shared_from_this();
  const auto channel = std::move(channel_);
  if (channel) channel->Close();
  if (retiring_) {
    --host_.stats->closing;
  } else if (channel) {
    --host_.stats->channels;
  }
  ended_ = true;
  host_.ending();
  // UCX runs the callbacks of some requests in here, and forgets others.
  worker_.Destroy(operations_ > 0);
  if (!channel) return;
  host_.stats->abandoned_requests += channel->Abandon();
  channel->Detach();
  channel->RunLater();
}

}  // namespace dyna::ucx
