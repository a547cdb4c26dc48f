#include "client/transport/frame_reader.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/crc32c.h"

namespace dyna {
namespace {

constexpr size_t kBufferBytes = 64 << 10;
constexpr size_t kMaxIovecs = 64;

}  // namespace

FrameReader::FrameReader(const FrameLimits& limits, ChannelStats& stats)
    : limits_(limits), stats_(stats), buffer_(kBufferBytes) {}

std::span<iovec> FrameReader::Space() {
  space_.clear();
  if (state_ == State::kPayload) {
    for (size_t i = part_; i < into_.size() && space_.size() < kMaxIovecs; ++i)
      if (!into_[i].empty()) space_.push_back({into_[i].data(), into_[i].size()});
  } else if (state_ == State::kControl) {
    space_.push_back({control_.data() + control_have_, control_.size() - control_have_});
  }
  // Behind it the buffer, so that one read takes the next frame's header along; unless the list
  // of parts was cut, when the bytes behind it are payload still.
  if (space_.size() < kMaxIovecs) {
    if (begin_ > 0) {
      std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
    }
    space_.push_back({buffer_.data() + end_, buffer_.size() - end_});
  }
  return space_;
}

Status FrameReader::Consume(size_t n, FrameSink* const* sink) {
  stats_.bytes_in += n;
  if (state_ == State::kPayload) {
    const auto direct = static_cast<size_t>(std::min<uint64_t>(n, left_));
    Land(direct);
    n -= direct;
  } else if (state_ == State::kControl) {
    const size_t direct = std::min(n, control_.size() - control_have_);
    control_have_ += direct;
    n -= direct;
  }
  end_ += n;
  return Process(sink);
}

Status FrameReader::Process(FrameSink* const* sink) {
  while (*sink != nullptr) {
    const std::span<const std::byte> have(buffer_.data() + begin_, end_ - begin_);
    switch (state_) {
      case State::kHead: {
        if (have.size() < kFrameHeaderBytes) return Status::Ok();
        auto parsed = ParseFrameHeader(have, limits_);
        if (!parsed.ok()) {
          ++stats_.rejected_frames;
          return parsed.status();
        }
        header_ = *parsed;
        const size_t whole = kFrameHeaderBytes + header_.control_len;
        if (have.size() >= whole) {
          begin_ += whole;
          DYNA_RETURN_IF_ERROR(
              Dispatch(have.subspan(kFrameHeaderBytes, header_.control_len), sink));
        } else if (whole <= buffer_.size()) {
          return Status::Ok();  // it fits: wait for the rest (the header is parsed once more)
        } else {
          control_.resize(header_.control_len);
          control_have_ = have.size() - kFrameHeaderBytes;
          std::memcpy(control_.data(), have.data() + kFrameHeaderBytes, control_have_);
          begin_ = end_ = 0;
          state_ = State::kControl;
          return Status::Ok();
        }
        break;
      }
      case State::kControl: {
        if (control_have_ < control_.size()) return Status::Ok();
        const std::vector<std::byte> control = std::exchange(control_, {});
        state_ = State::kHead;
        DYNA_RETURN_IF_ERROR(Dispatch(control, sink));
        break;
      }
      case State::kPayload: {
        // What was read together with the header has to be moved once.
        size_t moved = 0;
        for (size_t i = part_; i < into_.size() && moved < have.size(); ++i) {
          const size_t n = std::min(have.size() - moved, into_[i].size());
          if (n > 0) std::memcpy(into_[i].data(), have.data() + moved, n);
          moved += n;
        }
        begin_ += moved;
        Land(moved);
        if (left_ > 0) return Status::Ok();
        FinishPayload();
        break;
      }
      case State::kSkip: {
        const auto n = static_cast<size_t>(std::min<uint64_t>(have.size(), left_));
        begin_ += n;
        left_ -= n;
        stats_.refused_payload_bytes += n;
        if (left_ > 0) return Status::Ok();
        state_ = State::kHead;
        break;
      }
    }
  }
  return Status::Ok();
}

Status FrameReader::Dispatch(std::span<const std::byte> control, FrameSink* const* sink) {
  std::array<UniqueFd, kMaxFrameFds> fds;
  const size_t count = header_.fd_count();
  if (count > fds_.size()) {
    ++stats_.rejected_frames;
    return Invalid("frame: " + std::to_string(count) + " descriptors announced, " +
                   std::to_string(fds_.size()) + " came");
  }
  for (size_t i = 0; i < count; ++i) {
    fds[i] = std::move(fds_.front());
    fds_.pop_front();
  }
  ++stats_.frames_in;
  left_ = header_.payload_len;
  state_ = left_ > 0 ? State::kSkip : State::kHead;
  return Admit((*sink)->OnFrame({header_, control, std::span(fds).first(count)}));
}

Status FrameReader::Admit(Admission admission) {
  if (admission.verdict == Admission::Verdict::kClose) return std::move(admission.reason);
  if (admission.verdict != Admission::Verdict::kInto) return Status::Ok();
  uint64_t room = 0;
  for (const auto& part : admission.into) room += part.size();
  done_ = std::move(admission.done);
  if (room != header_.payload_len)
    return Internal("admitted " + std::to_string(room) + " bytes for a payload of " +
                    std::to_string(header_.payload_len));
  into_ = std::move(admission.into);
  part_ = 0;
  crc_ = 0;
  state_ = State::kPayload;
  return Status::Ok();
}

void FrameReader::Land(size_t n) {
  left_ -= n;
  while (n > 0) {
    auto& part = into_[part_];
    const size_t here = std::min(n, part.size());
    // While it is in the cache.
    if (header_.flags & kFlagChecksum) crc_ = Crc32c(part.first(here), crc_);
    part = part.subspan(here);
    if (part.empty()) ++part_;
    n -= here;
  }
}

void FrameReader::FinishPayload() {
  state_ = State::kHead;
  into_.clear();
  const bool good = (header_.flags & kFlagChecksum) == 0 || crc_ == header_.payload_crc32c;
  if (!good) ++stats_.rejected_frames;
  if (auto done = std::exchange(done_, nullptr))
    done(good ? Status::Ok() : Invalid("frame: payload_crc32c does not match"));
}

Status FrameReader::AddFds(std::vector<UniqueFd> fds) {
  if (fds_.size() + fds.size() > kMaxFrameFds)
    return Invalid("frame: more than 15 descriptors came");
  for (auto& fd : fds) fds_.push_back(std::move(fd));
  return Status::Ok();
}

void FrameReader::Abandon(const Status& reason) {
  into_.clear();
  state_ = State::kSkip;
  if (auto done = std::exchange(done_, nullptr)) done(reason);
}

}  // namespace dyna
