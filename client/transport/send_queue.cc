#include "client/transport/send_queue.h"

#include <string>
#include <utility>

namespace dyna {

Result<FrameHeader> MakeHeader(const OutFrame& frame, const SessionToken& token,
                               const ChannelOptions& options, bool carries_fds) {
  constexpr uint16_t kOurs = kFlagChecksum | (0xF << kFdCountShift);
  if (frame.flags & kOurs) return Invalid("frame: flags use the transport's bits");
  if (!carries_fds && !frame.fds.empty())
    return Unsupported("this channel does not carry descriptors");
  if (frame.fds.size() > kMaxFrameFds) return TooLarge("frame: more than 15 descriptors");
  uint64_t payload = 0;
  for (const auto& part : frame.payload) payload += part.size();
  if (frame.control.size() > options.limits.max_control)
    return TooLarge("frame: control of " + std::to_string(frame.control.size()) +
                    " bytes, at most " + std::to_string(options.limits.max_control));
  if (payload > options.limits.max_payload)
    return TooLarge("frame: payload of " + std::to_string(payload) + " bytes, at most " +
                    std::to_string(options.limits.max_payload));
  FrameHeader header;
  header.type = frame.type;
  header.flags = static_cast<uint16_t>(frame.flags | (frame.fds.size() << kFdCountShift));
  header.request_id = frame.request_id;
  header.token = token;
  header.control_len = static_cast<uint32_t>(frame.control.size());
  header.payload_len = payload;
  header.deadline_ms = frame.deadline_ms;
  if (options.checksum && payload > 0) {
    header.flags |= kFlagChecksum;
    header.payload_crc32c = PayloadCrc32c(frame.payload);
  }
  return header;
}

Status SendQueue::Push(const FrameHeader& header, OutFrame frame, SendDone done) {
  const uint64_t size = kFrameHeaderBytes + header.control_len + header.payload_len;
  if (!items_.empty() &&
      (bytes_ + size > options_.max_send_bytes || items_.size() >= options_.max_send_frames))
    return {StatusCode::kRetry,
            "send queue: " + std::to_string(bytes_) + " bytes wait for the peer", 1};
  items_.push_back({EncodeFrameHeader(header), std::move(frame), std::move(done), size});
  bytes_ += size;
  return Status::Ok();
}

size_t SendQueue::Gather(std::span<iovec> out, std::span<UniqueFd>* fds) {
  size_t used = 0;
  uint64_t skip = sent_;
  *fds = {};
  const auto add = [&](const std::byte* data, size_t size) {
    if (skip >= size) {
      skip -= size;
    } else if (used < out.size()) {
      out[used++] = {const_cast<std::byte*>(data) + skip, size - static_cast<size_t>(skip)};
      skip = 0;
    }
  };
  for (size_t i = 0; i < items_.size() && used < out.size(); ++i) {
    Item& item = items_[i];
    if (!item.frame.fds.empty()) {
      if (i > 0) break;
      if (sent_ == 0) *fds = item.frame.fds;
    }
    add(item.header.data(), item.header.size());
    add(item.frame.control.data(), item.frame.control.size());
    for (const auto& part : item.frame.payload) add(part.data(), part.size());
  }
  return used;
}

size_t SendQueue::Advance(size_t n, std::vector<SendDone>* finished) {
  size_t frames = 0;
  bytes_ -= n;
  sent_ += n;
  while (!items_.empty() && sent_ >= items_.front().size) {
    sent_ -= items_.front().size;
    if (items_.front().done) finished->push_back(std::move(items_.front().done));
    items_.pop_front();
    ++frames;
  }
  return frames;
}

std::vector<SendDone> SendQueue::Clear() {
  std::vector<SendDone> waiting;
  for (auto& item : items_)
    if (item.done) waiting.push_back(std::move(item.done));
  items_.clear();
  sent_ = bytes_ = 0;
  return waiting;
}

}  // namespace dyna
