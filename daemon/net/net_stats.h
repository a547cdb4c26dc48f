// What the sessions count, by value; metrics read it.
#pragma once

#include <array>
#include <cstdint>
#include <map>

#include "client/base/histogram.h"
#include "schemas/status.h"
#include "schemas/wire.h"

namespace dyna {

struct OpStats {
  std::array<uint64_t, 16> results{};  // by StatusCode
  Histogram seconds;                   // from the frame's arrival to its reply
};

struct NetStats {
  uint64_t clients = 0, clients_refused = 0, auth_failures = 0;
  uint64_t rejected_frames = 0;  // control that failed the door
  uint64_t regions = 0, region_bytes = 0, poisoned_regions = 0;
  uint64_t device_regions = 0;  // of `regions`: memory of the GPU
  uint64_t inflight_requests = 0;
  std::map<wire::Type, OpStats> ops;
};

}  // namespace dyna
