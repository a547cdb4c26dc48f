// What the daemon tells about itself: one plain Snapshot, and the table that turns it into
// Prometheus metrics. A new metric is a field of a Snapshot's struct and a row in metrics.cc.
//
// The loop thread fills a Snapshot when somebody asks; nothing here keeps state.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/base/histogram.h"
#include "daemon/arena/arena.h"
#include "daemon/store/stats.h"
#include "daemon/tier/spill_store.h"

namespace dyna::admin {

struct RequestFact {  // one kind of request: "put", "fetch", "lookup"
  std::string_view op;
  std::array<uint64_t, 16> results{};  // by StatusCode
  Histogram seconds;                   // from the frame's arrival to its reply
};

struct TenantFact {
  std::string name;
  uint64_t bytes = 0, quota_bytes = 0;  // quota 0: none
};

struct UcxFact {
  bool loaded = false;
  uint64_t channels = 0, rescued_wakeups = 0, endpoint_errors = 0, rejected_frames = 0;
  uint64_t closing = 0, abandoned_requests = 0;
};

struct BackendFact {
  std::string name;         // "cpu", "cuda"
  std::string gpu, driver;  // "" on the CPU
  std::string why_cpu;      // why `auto` took no device
  std::string last_error;   // of a device
  uint64_t failures = 0, redone_jobs = 0;
  bool lost = false;
};

struct Snapshot {
  // who and since when
  std::string version, isa, policy;
  uint64_t instance_id = 0;
  double uptime_seconds = 0;
  bool draining = false;
  std::vector<std::string> not_ready;  // reasons; empty: ready
  // the parts
  BackendFact backend;
  StoreStats store;
  ArenaStats arena;
  bool spill_enabled = false, bank_enabled = false;
  SpillStats spill, bank;
  UcxFact ucx;
  std::vector<RequestFact> requests;
  std::vector<TenantFact> tenants;  // at most 100
  std::vector<ContextFact> contexts;
  // sessions and memory of clients
  uint64_t clients = 0, clients_refused = 0, rejected_frames = 0, auth_failures = 0;
  uint64_t regions = 0, region_bytes = 0, poisoned_regions = 0;
  uint64_t device_regions = 0, pinned_bytes = 0;  // of the arena
  uint64_t open_puts = 0, inflight_requests = 0;
  uint64_t staging_bytes = 0, staging_used_bytes = 0;
  // threads
  uint64_t codec_queue = 0, codec_threads = 0, log_dropped = 0;
  Histogram loop_delay;  // from posting to running
  // configuration
  uint64_t reloads = 0, reload_failures = 0;
};

enum class Type : uint8_t { kCounter, kGauge, kHistogram };

// Where a row puts its samples: label values in the order of the row's label names.
class Samples {
 public:
  struct Sample {
    std::vector<std::string> labels;
    double value = 0;
    const Histogram* histogram = nullptr;  // of the snapshot, which outlives this
  };
  void Add(double value) { samples_.push_back({{}, value}); }
  void Add(std::vector<std::string> labels, double value) {
    samples_.push_back({std::move(labels), value});
  }
  void Add(std::vector<std::string> labels, const Histogram& histogram) {
    samples_.push_back({std::move(labels), 0, &histogram});
  }
  const std::vector<Sample>& list() const { return samples_; }

 private:
  std::vector<Sample> samples_;
};

struct Descriptor {
  std::string_view name;  // without "dynacompress_"
  Type type;
  std::string_view help;
  std::vector<std::string_view> labels;
  void (*emit)(const Snapshot&, Samples&);
};

std::span<const Descriptor> Descriptors();

// The text format that Prometheus scrapes.
std::string MetricsText(const Snapshot& snapshot);

// "plain8", "level7" of a K tile; "2bit", "mean" of a V tile (schemas/types.h kind).
std::string KindLabel(bool is_key, uint8_t kind);

}  // namespace dyna::admin
