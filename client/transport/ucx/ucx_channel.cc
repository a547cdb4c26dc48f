#include "client/transport/ucx/ucx_channel.h"

#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "client/transport/send_queue.h"
#include "kernels/crc32c.h"

namespace dyna::ucx {
namespace {

constexpr size_t kMaxControlReceives = 16;  // of 1 MiB at most each

uint32_t Crc(std::span<const std::span<std::byte>> parts) {
  uint32_t crc = 0;
  for (const auto& part : parts) crc = Crc32c(part, crc);
  return crc;
}

// UCX's view of a scatter list: one buffer as such, several as IOV.
struct Buffers {
  std::vector<ucp_dt_iov_t> list;
  template <typename Part>
  void Set(const std::vector<Part>& parts) {
    for (const auto& part : parts) {
      if (!part.empty())
        list.push_back({const_cast<void*>(static_cast<const void*>(part.data())), part.size()});
    }
  }
  void Describe(ucp_request_param_t* param, void** buffer, size_t* count) {
    param->op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
    if (list.size() == 1) {
      param->datatype = ucp_dt_make_contig(1);
      *buffer = list[0].buffer;
      *count = list[0].length;
    } else {
      param->datatype = UCP_DATATYPE_IOV;
      *buffer = list.data();
      *count = list.size();
    }
  }
};

}  // namespace

// Everything that UCX may touch until the request ends.
struct UcxChannel::SendOp {
  std::shared_ptr<UcxChannel> channel;
  std::array<std::byte, kMaxHeader> header;
  OutFrame frame;
  Buffers buffers;
  uint64_t size = 0;
  SendDone done;
};

struct UcxChannel::ReceiveOp {
  std::shared_ptr<UcxChannel> channel;
  FrameHeader header;
  std::vector<std::byte> control;          // where a large control lands
  std::vector<std::span<std::byte>> into;  // where a payload lands
  std::function<void(const Status&)> done;
  Buffers buffers;
};

Status UcxChannel::Open(void* address) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = static_cast<const ucp_address_t*>(address);
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &OnEndpointError;
  params.err_handler.arg = this;
  return ToStatus("ucp_ep_create", ucp_ep_create(worker_->handle(), &params, &endpoint_));
}

Status UcxChannel::Send(OutFrame frame, SendDone done) {
  if (closed()) return {StatusCode::kCancelled, "the channel is closed"};
  DYNA_ASSIGN_OR_RETURN(FrameHeader header, MakeHeader(frame, token_, options_, false));
  const uint64_t size = kFrameHeaderBytes + header.control_len + header.payload_len;
  if (!sends_.empty() &&
      (queued_bytes_ + size > options_.max_send_bytes || sends_.size() >= options_.max_send_frames))
    return {StatusCode::kRetry,
            "send queue: " + std::to_string(queued_bytes_) + " bytes wait for the peer", 1};
  const bool with_payload = header.payload_len > 0;
  if (with_payload && kFrameHeaderBytes + header.control_len > kMaxHeader)
    return TooLarge("frame: control of " + std::to_string(header.control_len) +
                    " bytes beside a payload, at most 960 over UCX");

  auto op = std::make_unique<SendOp>();
  op->channel = shared_from_this();
  op->frame = std::move(frame);
  op->size = size;
  op->done = std::move(done);
  const auto encoded = EncodeFrameHeader(header);
  std::memcpy(op->header.data(), encoded.data(), encoded.size());
  size_t header_size = kFrameHeaderBytes;
  if (with_payload) {
    if (header.control_len > 0)
      std::memcpy(op->header.data() + header_size, op->frame.control.data(), header.control_len);
    header_size += header.control_len;
    op->buffers.Set(op->frame.payload);
  } else if (header.control_len > 0) {
    op->buffers.Set(std::vector<std::span<const std::byte>>{op->frame.control});
  }

  const uint64_t data_size = with_payload ? header.payload_len : header.control_len;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                       UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.cb.send = &OnSent;
  param.user_data = op.get();
  param.memory_type = UCS_MEMORY_TYPE_HOST;  // device memory is staged by its owner (traps: UCX)
  param.flags = data_size >= kRendezvousFrom ? UCP_AM_SEND_FLAG_RNDV : UCP_AM_SEND_FLAG_EAGER;
  void* buffer = nullptr;
  size_t count = 0;
  if (data_size > 0) op->buffers.Describe(&param, &buffer, &count);

  if (sends_.empty()) progress_ = std::chrono::steady_clock::now();
  queued_bytes_ += size;
  worker_->OperationStarted();
  SendOp* raw = op.release();  // UCX's until OnSent, which may run before this call returns
  sends_.insert(raw);
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(endpoint_, kAmId, raw->header.data(), header_size, buffer, count, &param);
  if (request == nullptr) {
    SendEnded(raw, UCS_OK);
  } else if (UCS_PTR_IS_ERR(request)) {
    SendEnded(raw, UCS_PTR_STATUS(request));
  } else {
    WatchForStall();
  }
  if (worker_ != nullptr) worker_->Kick();
  return Status::Ok();
}

void UcxChannel::OnSent(void* request, ucs_status_t status, void* op) {
  auto* send = static_cast<SendOp*>(op);
  send->channel->SendEnded(send, status);
  ucp_request_free(request);
}

void UcxChannel::SendEnded(SendOp* raw, ucs_status_t status) {
  const std::unique_ptr<SendOp> op(raw);
  if (worker_) worker_->OperationEnded();
  sends_.erase(raw);
  queued_bytes_ -= op->size;
  progress_ = std::chrono::steady_clock::now();
  if (status == UCS_OK) {
    ++stats_.frames_out;
    stats_.bytes_out += op->size;
  }
  // Refused by the peer's sink: its typed reply is on the way. The memory is free either way, as
  // over a socket.
  const Status result = status == UCS_ERR_REJECTED ? Status::Ok() : ToStatus("UCX send", status);
  if (op->done) {
    Later([done = std::move(op->done), result] { done(result); });
  }
  if (draining_ && sends_.empty()) Later([self = shared_from_this()] { self->Close(); });
}

bool UcxChannel::Ask(const FrameHeader& header, std::span<const std::byte> control,
                     Admission* admission) {
  ++stats_.frames_in;
  stats_.bytes_in += kFrameHeaderBytes + header.control_len;
  *admission = sink_->OnFrame({header, control, {}});
  if (admission->verdict == Admission::Verdict::kClose) {
    Later([self = shared_from_this(), reason = admission->reason] { self->Finish(reason, true); });
  }
  if (header.payload_len == 0) return false;
  if (admission->verdict != Admission::Verdict::kInto) {
    stats_.refused_payload_bytes += header.payload_len;
    return false;
  }
  uint64_t room = 0;
  for (const auto& part : admission->into) room += part.size();
  Status problem;
  if (room != header.payload_len)
    problem = Internal("admitted " + std::to_string(room) + " bytes for a payload of " +
                       std::to_string(header.payload_len));
  if (closed_) problem = {StatusCode::kCancelled, "the channel is closed"};
  if (problem.ok()) return true;
  if (admission->done) {
    Later([done = std::move(admission->done), problem] { done(problem); });
  }
  return false;
}

ucs_status_t UcxChannel::Receive(const FrameHeader& header, std::span<const std::byte> control,
                                 void* data, size_t size, bool rendezvous) {
  if (!sink_) return UCS_ERR_REJECTED;
  if (header.control_len > options_.limits.max_control ||
      header.payload_len > options_.limits.max_payload) {
    ++stats_.rejected_frames;
    Later([self = shared_from_this()] {
      self->Finish(TooLarge("frame: over the limits of this session"), true);
    });
    return UCS_ERR_REJECTED;
  }
  if (header.payload_len == 0) {
    if (!rendezvous) {
      Admission ignored;
      Ask(header, {static_cast<const std::byte*>(data), size}, &ignored);
      return UCS_OK;
    }
    if (control_receives_ >= kMaxControlReceives) return UCS_ERR_NO_RESOURCE;
    ++control_receives_;
    auto op = std::make_unique<ReceiveOp>();
    op->header = header;
    op->control.resize(header.control_len);
    op->into = {std::span(op->control)};
    return StartReceive(std::move(op), data);
  }

  Admission admission;
  if (!Ask(header, control, &admission)) return UCS_ERR_REJECTED;
  auto op = std::make_unique<ReceiveOp>();
  op->header = header;
  op->into = std::move(admission.into);
  op->done = std::move(admission.done);
  if (rendezvous) return StartReceive(std::move(op), data);
  const auto* from = static_cast<const std::byte*>(data);
  for (const auto& part : op->into) {
    if (!part.empty()) std::memcpy(part.data(), from, part.size());
    from += part.size();
  }
  worker_->OperationStarted();
  op->channel = shared_from_this();
  receives_.insert(op.get());
  ReceiveEnded(op.release(), UCS_OK);
  return UCS_OK;
}

ucs_status_t UcxChannel::StartReceive(std::unique_ptr<ReceiveOp> op, void* data) {
  op->channel = shared_from_this();
  op->buffers.Set(op->into);
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.cb.recv_am = &OnReceived;
  param.user_data = op.get();
  param.memory_type = UCS_MEMORY_TYPE_HOST;
  void* buffer = nullptr;
  size_t count = 0;
  op->buffers.Describe(&param, &buffer, &count);
  worker_->OperationStarted();
  ReceiveOp* raw = op.release();
  receives_.insert(raw);
  const ucs_status_ptr_t request =
      ucp_am_recv_data_nbx(worker_->handle(), data, buffer, count, &param);
  if (request == nullptr) {
    ReceiveEnded(raw, UCS_OK);
  } else if (UCS_PTR_IS_ERR(request)) {
    ReceiveEnded(raw, UCS_PTR_STATUS(request));
  }
  return UCS_INPROGRESS;  // the descriptor is UCX's again
}

void UcxChannel::OnReceived(void* request, ucs_status_t status, size_t, void* op) {
  auto* receive = static_cast<ReceiveOp*>(op);
  receive->channel->ReceiveEnded(receive, status);
  ucp_request_free(request);
}

void UcxChannel::ReceiveEnded(ReceiveOp* raw, ucs_status_t status) {
  auto op = std::shared_ptr<ReceiveOp>(raw);
  if (worker_) worker_->OperationEnded();
  receives_.erase(raw);
  if (op->header.payload_len == 0) {
    --control_receives_;
    if (status != UCS_OK) return;
    Later([op] {
      Admission ignored;
      if (op->channel->sink_) op->channel->Ask(op->header, op->control, &ignored);
    });
    return;
  }
  Status result = ToStatus("UCX receive", status);
  if (result.ok()) {
    stats_.bytes_in += op->header.payload_len;
    if ((op->header.flags & kFlagChecksum) && Crc(op->into) != op->header.payload_crc32c) {
      ++stats_.rejected_frames;
      result = Invalid("frame: payload_crc32c does not match");
    }
  }
  if (closed_) result = {StatusCode::kCancelled, "the channel is closed"};
  if (op->done) {
    Later([op, result] { op->done(result); });
  }
}

void UcxChannel::Later(std::function<void()> callback) {
  later_.push_back(std::move(callback));
  if (later_posted_ || worker_ == nullptr) return;
  later_posted_ = true;
  worker_->executor().Post([self = shared_from_this()] {
    self->later_posted_ = false;
    self->RunLater();
  });
}

void UcxChannel::RunLater() {
  const auto self = shared_from_this();
  for (auto& run : std::exchange(later_, {})) run();
}

size_t UcxChannel::Abandon() {
  const size_t abandoned = sends_.size() + receives_.size();
  while (!sends_.empty()) SendEnded(*sends_.begin(), UCS_ERR_CANCELED);
  while (!receives_.empty()) ReceiveEnded(*receives_.begin(), UCS_ERR_CANCELED);
  return abandoned;
}

// Runs while something waits for the peer; a task that comes too early looks again.
void UcxChannel::WatchForStall() {
  if (watching_ || closed_) return;
  watching_ = true;
  worker_->executor().PostAt(progress_ + options_.stall_timeout, [weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self || self->closed_) return;
    self->watching_ = false;
    if (self->sends_.empty()) return;
    if (std::chrono::steady_clock::now() - self->progress_ < self->options_.stall_timeout)
      return self->WatchForStall();
    self->Finish({StatusCode::kDeadline, "the peer stopped reading: " +
                                             std::to_string(self->queued_bytes_) + " bytes wait"},
                 true);
  });
}

void UcxChannel::OnEndpointError(void* arg, ucp_ep_h, ucs_status_t status) {
  auto* self = static_cast<UcxChannel*>(arg);
  self->failed_ = true;
  if (self->closed_) return;
  self->worker_->EndpointFailed();
  self->Later([channel = self->shared_from_this(), status] {
    channel->Finish(
        {StatusCode::kCancelled, std::string("the peer is gone: ") + ucs_status_string(status)},
        true);
  });
}

void UcxChannel::SetToken(const SessionToken& token) {
  if (!closed_ && token != SessionToken{}) token_ = token;
}

void UcxChannel::CloseAfterSends() {
  if (closed_) return;
  sink_ = nullptr;
  draining_ = true;
  if (sends_.empty()) Close();
}

void UcxChannel::Finish(Status reason, bool tell_sink) {
  if (closed_) return;
  closed_ = true;
  FrameSink* sink = std::exchange(sink_, nullptr);
  // Posted: an endpoint may not be closed inside UCX's callbacks. Callbacks of sends and payloads
  // run when UCX has ended their request, or is gone.
  Later([self = shared_from_this()] {
    if (self->worker_ == nullptr) return;
    const bool force = self->failed_ || !self->sends_.empty() || !self->receives_.empty();
    self->worker_->Retire(std::exchange(self->endpoint_, nullptr), force);
  });
  if (tell_sink && sink) sink->OnClosed(reason);
}

}  // namespace dyna::ucx
