// What the store is told at start; daemon/server maps the operator's options to it.
#pragma once

#include <chrono>
#include <cstdint>

#include "daemon/policy/options.h"

namespace dyna {

struct StoreOptions {
  PolicyOptions policy;
  LearnerOptions learner;
  double reuse_half_life_s = 600;
  // The nursery (young.cc): share of the arena, beside the budget; how many times its weight a tile
  // there has; for how long without a report. 0 ms: none.
  double young_share = 1.0 / 16;
  double young_weight = 8;
  std::chrono::milliseconds young_for{10'000};
  uint64_t budget_bytes = 0;  // 0: the arena, less headroom
  uint64_t token_budget = 0;  // of one chain, summed over its layers (token_budget.h); 0: none
  double headroom = 0.05;     // of the arena, kept free for what is in flight
  double floor_share = 0.5;   // of the budget: leased + exact + pinned bytes
  // Above this price (log2; 0: an average tile leaves 4 bits for 2) moving a cold block to disk is
  // cheaper than fewer bits.
  double spill_log2_price = 6;
  std::chrono::milliseconds lease_ttl{30'000};
  std::chrono::milliseconds max_lease_ttl{600'000};
  std::chrono::milliseconds open_put_timeout{30'000};
  uint32_t open_puts = 1024;         // blocks being written, of one session
  uint32_t leased_blocks = 1 << 20;  // of one session, each counted in each lease
  uint64_t open_put_bytes = 1ull << 30;
  uint32_t contexts = 64;
  uint64_t max_blocks = 4'000'000;        // bounds the table
  uint64_t disk_in_flight = 64ull << 20;  // bytes on their way to the disks
  uint64_t report_queue = 64ull << 20;    // bytes of statistics waiting; the oldest is dropped
  uint32_t reports_in_flight = 2;         // score jobs at once
  uint32_t demotions_in_flight = 32;      // segments
};

}  // namespace dyna
