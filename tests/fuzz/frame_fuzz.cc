// The door of frames and the reader that cuts a stream into them. The first byte says how large
// the pieces are, and whether headers get the checksum that makes them pass.
#include "client/transport/frame.h"

#include <algorithm>

#include "client/transport/frame_reader.h"
#include "kernels/crc32c.h"
#include "tests/fuzz/fuzz.h"

namespace dyna {
namespace {

constexpr FrameLimits kLimits{4096, 16384};

class Sink final : public FrameSink {
 public:
  Admission OnFrame(const InFrame& frame) override {
    DYNA_FUZZ_CHECK(frame.control.size() == frame.header.control_len);
    DYNA_FUZZ_CHECK(frame.control.size() <= kLimits.max_control);
    DYNA_FUZZ_CHECK(frame.header.payload_len <= kLimits.max_payload);
    if (frame.header.payload_len == 0) return Admission::Handled();
    if (frame.header.request_id % 5 == 0) return Admission::Refuse();
    if (frame.header.request_id % 7 == 0) return Admission::Close(Invalid("enough"));
    auto memory = std::make_shared<std::vector<std::byte>>(frame.header.payload_len);
    ++open_;
    const std::span<std::byte> all(*memory);
    const size_t cut = all.size() / 3;
    return Admission::Into({all.first(cut), all.subspan(cut)},
                           [this, memory](const Status&) { --open_; });
  }
  void OnClosed(const Status&) override {}
  int open() const { return open_; }

 private:
  int open_ = 0;
};

// A valid header of the 64 bytes at `at`: their lengths, folded into the limits.
void Seal(std::byte* at) {
  FrameHeader header;
  header.type = static_cast<uint8_t>(at[5]);
  header.request_id = static_cast<uint8_t>(at[8]);
  uint16_t control, payload;
  std::memcpy(&control, at + 32, 2);
  std::memcpy(&payload, at + 36, 2);
  header.control_len = control % (kLimits.max_control + 2);
  header.payload_len = payload % (kLimits.max_payload + 2);
  if (at[6] != std::byte{0}) {
    header.flags = kFlagChecksum;
    std::memcpy(&header.payload_crc32c, at + 52, 4);
  }
  const auto bytes = EncodeFrameHeader(header);
  std::memcpy(at, bytes.data(), bytes.size());
}

void Headers(std::span<const std::byte> bytes) {
  const auto plain = ParseFrameHeader(bytes, kLimits);
  if (plain.ok()) {
    const auto again = EncodeFrameHeader(*plain);
    DYNA_FUZZ_CHECK(std::memcmp(again.data(), bytes.data(), again.size()) == 0);
  }
  if (bytes.size() < kFrameHeaderBytes) return;
  std::array<std::byte, kFrameHeaderBytes> header;
  std::memcpy(header.data(), bytes.data(), header.size());
  const uint32_t crc = Crc32c(std::span<const std::byte>(header).first(60));
  std::memcpy(&header[60], &crc, 4);
  const auto sealed = ParseFrameHeader(header, kLimits);
  if (sealed.ok()) DYNA_FUZZ_CHECK(EncodeFrameHeader(*sealed) == header);
}

void Stream(std::vector<std::byte> bytes, size_t piece, bool seal) {
  ChannelStats stats;
  Sink sink;
  FrameSink* to = &sink;
  FrameReader reader(kLimits, stats);
  if (seal)  // headers where the frames before them end
    for (size_t at = 0; at + kFrameHeaderBytes <= bytes.size();) {
      Seal(&bytes[at]);
      const auto header = ParseFrameHeader(std::span(bytes).subspan(at), kLimits);
      if (!header.ok()) break;
      at += kFrameHeaderBytes + header->control_len + header->payload_len;
    }
  for (size_t at = 0; at < bytes.size();) {
    size_t want = std::min(piece, bytes.size() - at), given = 0;
    for (const iovec& space : reader.Space()) {
      const size_t n = std::min(want - given, space.iov_len);
      if (n > 0) std::memcpy(space.iov_base, &bytes[at + given], n);
      given += n;
      if (given == want) break;
    }
    DYNA_FUZZ_CHECK(given > 0);
    if (!reader.Consume(given, &to).ok()) break;
    at += given;
  }
  reader.Abandon(Status(StatusCode::kCancelled, "the end"));
  DYNA_FUZZ_CHECK(sink.open() == 0);  // each admitted payload ends exactly once
}

}  // namespace
}  // namespace dyna

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::vector<std::byte> bytes = dyna::fuzz::Copy(data + 1, size - 1);
  dyna::Headers(bytes);
  dyna::Stream(bytes, size_t{1} + (data[0] >> 1) * size_t{37}, data[0] & 1);
  return 0;
}
