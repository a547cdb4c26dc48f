// Makes the arena's memory ready beside the service, a piece at a time: touched, because a first
// touch costs more than a put's copy, and pinned, so that the GPU moves segments by itself. Serving
// what outlived us does not wait for it.
//
// Thread rule: the loop's; the work runs on a codec thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "client/base/clock.h"
#include "daemon/arena/arena.h"
#include "daemon/store/codec_runner.h"
#include "kernels/shared_device.h"

namespace dyna {

class ArenaWarmer {
 public:
  struct Wanted {
    bool prefault = false;
    bool pin = false;  // REQUIRES a device
  };
  // All of them outlive it, but for `codec`, which may end first.
  ArenaWarmer(Arena& arena, CodecRunner& codec, SharedDevice* device, const Clock& clock,
              Wanted wanted);
  ~ArenaWarmer();  // REQUIRES that no job uses the arena

  void Start();
  void Stop() { *stopped_ = true; }  // after the piece that is under way
  uint64_t pinned_bytes() const { return pinned_; }

 private:
  void Next(uint64_t from);
  void Finish();

  Arena& arena_;
  CodecRunner& codec_;
  SharedDevice* const device_;
  const Clock& clock_;
  Wanted wanted_;
  TimePoint started_;
  uint64_t pinned_ = 0;
  std::shared_ptr<bool> stopped_ = std::make_shared<bool>(false);
};

}  // namespace dyna
