// What every session shares: the store, the loop, the limits, and who may do what.
//
// Thread rule: the loop's. Outlives its sessions.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "client/base/asio.h"
#include "client/base/clock.h"
#include "client/transport/ucx_transport.h"
#include "daemon/net/net_stats.h"
#include "daemon/net/staging.h"
#include "daemon/store/codec_runner.h"
#include "daemon/store/store.h"
#include "kernels/shared_device.h"

namespace dyna {

struct NetLimits {
  uint32_t clients = 256;
  uint32_t requests = 256;                // in flight, of one client
  uint64_t request_bytes = 256ull << 20;  // payload in flight, of one client
  uint32_t regions = 64;                  // of one client
  uint64_t region_bytes = 64ull << 30;
  uint64_t report_bytes_per_s = 64ull << 20;  // statistics of one client; more is dropped, counted
};

struct SessionHost {
  asio::io_context& loop;
  Executor& executor;
  const Clock& clock;
  Store& store;
  CodecRunner& codec;
  NetLimits limits;
  uint64_t instance_id = 0;
  std::string version;
  std::shared_ptr<StagingPool> staging;
  NetStats stats{};
  bool draining = false;
  SharedDevice* shared = nullptr;  // where clients' memory on the GPU is opened; null: nowhere

  // `work` where it may block (the driver), then `done` on the loop. Also works when nothing
  // computes any more.
  std::function<void(std::function<void()> work, std::function<void()> done)> off_loop{};
  std::function<TenantId(uid_t)> tenant_of{};
  std::function<bool(uid_t)> is_operator{};  // may set the budget
  // Loads UCX on first use; the Status says why there is none.
  std::function<Result<UcxTransport*>()> ucx{};
  // JSON for people (wire::Query); `tenant` sees its own blocks only.
  std::function<Result<std::string>(const Caller&, const wire::Query&)> query{};
};

}  // namespace dyna
