#include "client/transport/ucx/ucx_worker.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "client/transport/ucx/ucx_channel.h"

namespace dyna::ucx {
namespace {

// Limits are the session's, known only once the token has named it.
constexpr FrameLimits kAnything{~uint32_t{0}, ~uint64_t{0}};

}  // namespace

UcxWorker::~UcxWorker() {
  for (UcxChannel* channel : all_) channel->Detach();
}

Status UcxWorker::Open() {
  DYNA_RETURN_IF_ERROR(context_.Open(options_));
  DYNA_RETURN_IF_ERROR(worker_.Open(context_));
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
  if (channels_.count(token)) return Invalid("UCX channel: the session has one already");
  if (channels_.size() >= options_.max_channels)
    return Status(StatusCode::kQuota,
                  "UCX: more than " + std::to_string(options_.max_channels) + " channels");
  auto channel = std::make_shared<UcxChannel>(*this, token, options, sink);
  DYNA_RETURN_IF_ERROR(channel->Open(raw.data()));
  channels_[token] = channel.get();
  Kick();
  return std::shared_ptr<Channel>(channel.get(), [channel](Channel*) { channel->Dropped(); });
}

bool UcxWorker::Rename(const SessionToken& from, const SessionToken& to) {
  const auto it = channels_.find(from);
  if (it == channels_.end() || channels_.count(to) || to == SessionToken{}) return false;
  channels_[to] = it->second;
  channels_.erase(from);
  return true;
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
    ++stats_.malformed_frames;
    return UCS_ERR_REJECTED;
  }
  const auto it = channels_.find(parsed->token);
  if (it == channels_.end()) {
    ++stats_.unknown_token_frames;
    return UCS_ERR_REJECTED;
  }
  return it->second->Receive(*parsed, control, data, size, rendezvous);
}

void UcxWorker::CloseEndpoint(ucp_ep_h endpoint, bool force, std::shared_ptr<void> keep) {
  using Keep = std::pair<UcxWorker*, std::shared_ptr<void>>;
  auto* held = new Keep(this, std::move(keep));
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = force ? UCP_EP_CLOSE_FLAG_FORCE : 0;
  param.user_data = held;
  param.cb.send = [](void* request, ucs_status_t, void* arg) {
    auto* done = static_cast<Keep*>(arg);
    done->first->OperationEnded();
    delete done;
    ucp_request_free(request);
  };
  OperationStarted();
  const ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint, &param);
  if (request == nullptr || UCS_PTR_IS_ERR(request)) {
    OperationEnded();
    delete held;
  }
  Kick();
}

void UcxWorker::Shutdown(Duration limit) {
  const TimePoint end = std::chrono::steady_clock::now() + limit;
  const auto each = [this](auto&& call) {
    std::vector<std::shared_ptr<UcxChannel>> channels;  // a call may destroy some
    for (UcxChannel* channel : all_)
      if (auto alive = channel->weak_from_this().lock()) channels.push_back(std::move(alive));
    for (const auto& channel : channels) call(*channel);
  };
  each([](UcxChannel& channel) { channel.Close(); });
  do {
    each([](UcxChannel& channel) { channel.RunLater(); });
    while (Progress() > 0) {
    }
    each([](UcxChannel& channel) { channel.RunLater(); });
  } while (operations_ > 0 && std::chrono::steady_clock::now() < end);
}

UcxStats UcxWorker::stats() const {
  UcxStats stats = stats_;
  stats.channels = channels_.size();
  return stats;
}

}  // namespace dyna::ucx
