#include "daemon/server/arena_warmer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "client/base/log.h"

namespace dyna {
namespace {
constexpr uint64_t kPiece = 256u << 20;
}

ArenaWarmer::ArenaWarmer(Arena& arena, CodecRunner& codec, SharedDevice* device, const Clock& clock,
                         Wanted wanted)
    : arena_(arena), codec_(codec), device_(device), clock_(clock), wanted_(wanted) {}

ArenaWarmer::~ArenaWarmer() {
  Stop();
  if (pinned_ > 0) device_->UnpinHost();
}

void ArenaWarmer::Start() {
  started_ = clock_.Now();
  Next(0);
}

void ArenaWarmer::Next(uint64_t from) {
  if (*stopped_ || (!wanted_.prefault && !wanted_.pin)) return;
  if (from >= arena_.capacity()) return Finish();
  const uint64_t bytes = std::min(kPiece, arena_.capacity() - from);
  struct Outcome {
    int error = 0;
    Status pinned;
  };
  auto outcome = std::make_shared<Outcome>();
  const std::span<std::byte> piece(arena_.base() + from, bytes);
  codec_.Run(
      bytes,
      [piece, outcome, wanted = wanted_, device = device_] {
        // Pinning touches it, too, but with small pages.
        if (madvise(piece.data(), piece.size(), MADV_POPULATE_WRITE) != 0) outcome->error = errno;
        if (wanted.pin) outcome->pinned = device->PinHost(piece);
      },
      [this, from, bytes, outcome, stopped = stopped_] {
        if (wanted_.pin && outcome->pinned.ok()) pinned_ = from + bytes;
        if (*stopped) return;
        if (wanted_.prefault && outcome->error != 0) {
          LogWarn("arena: not pre-faulted: {}", std::strerror(outcome->error));
          wanted_.prefault = false;
        }
        if (!outcome->pinned.ok()) {
          LogWarn(
              "arena: pinned are {} of {} bytes, segments in the others are copied once more: {}",
              pinned_, arena_.capacity(), outcome->pinned.message());
          wanted_.pin = false;
        }
        Next(from + bytes);
      });
}

void ArenaWarmer::Finish() {
  if (pinned_ == arena_.capacity())
    LogInfo("arena: {} bytes pinned in {} ms: the GPU moves segments by itself", pinned_,
            std::chrono::duration_cast<std::chrono::milliseconds>(clock_.Now() - started_).count());
}

}  // namespace dyna
