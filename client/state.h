// What contexts and leases are inside the library. Fields are set before they are shared, or are
// atomic; any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/rope.h"
#include "schemas/context.h"
#include "schemas/wire.h"

namespace dyna {

class ClientCore;

struct ContextState {
  ContextSpec spec;
  std::vector<std::byte> profile;  // sent again to a daemon that was restarted
  std::vector<RopeTable> ropes;    // one for each of spec.ropes
  Fingerprint fingerprint = 0;
};

struct LeaseState {
  std::weak_ptr<ClientCore> core;
  std::shared_ptr<ContextState> context;
  Shard shard;
  std::vector<wire::LookupHit> hits;
  uint64_t id = 0;
  uint32_t run = 0;
  uint64_t epoch = 0;  // of the connection that gave it
  std::atomic<bool> lost{false};
  std::atomic<bool> released{false};
};

}  // namespace dyna
