// A snapshot with something in every place, for the tests of this folder.
#pragma once

#include "daemon/admin/metrics.h"

namespace dyna::admin {

inline Snapshot FullSnapshot() {
  Snapshot s;
  s.version = "0.1.0";
  s.isa = "avx2";
  s.policy = "dynacompress";
  s.backend = {"cuda", "NVIDIA H100 (sm_90)", "CUDA 13.0", "", "cuda: launch", 2, 5, false};
  s.instance_id = 0xabcdef;
  s.uptime_seconds = 12.5;
  s.store.budget_bytes = 1000;
  s.store.charged_bytes = 250;
  s.store.raw_bytes = 900;
  s.store.host = {3, 200};
  s.store.spill = {4, 300};
  s.store.hits[static_cast<size_t>(Tier::kHost)] = 7;
  s.store.hits[static_cast<size_t>(Tier::kSpill)] = 2;
  s.store.misses = 1;
  s.store.k_tiles[kind::Level(7)] = 30;
  s.store.k_tiles[kind::kPlain8] = 10;
  s.store.v_tiles[kind::VBits(2)] = 40;
  s.store.put_error_sum = 0.25;
  s.store.tick_ns_sum = 2'000'000'000;
  s.spill_enabled = s.bank_enabled = true;
  s.spill.live_bytes = 300;
  s.spill.budget = 3000;
  RequestFact put;
  put.op = "put";
  put.results[static_cast<size_t>(StatusCode::kRetry)] = 5;
  put.seconds.Observe(15e-6);
  put.seconds.Observe(100);
  s.requests = {put};
  s.tenants = {{"team-a", 100, 200}};
  ContextFact context;
  context.context = 0x1234;
  context.model = "<script>alert('x')</script>";
  context.raw_bytes = 900;
  context.encoded_bytes = 200;
  context.bases.push_back({0x1234, 2, 0xfeed, BasisSource::kLearned, 2048, 256, 9, 4096, 0.007});
  s.contexts = {context};
  return s;
}

}  // namespace dyna::admin
