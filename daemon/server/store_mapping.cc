#include "daemon/server/store_mapping.h"

#include <algorithm>
#include <span>
#include <string>

#include "daemon/policy/policy.h"
#include "schemas/sha256.h"

namespace dyna {
namespace {
TenantId NameOf(const std::string& text) {
  return Sha256Name(std::as_bytes(std::span(text.data(), text.size())));
}
}  // namespace

Status CheckPolicy(const config::Options& o) {
  auto made = MakePolicy(StoreOptionsOf(o).policy);
  return made.status();
}

StoreOptions StoreOptionsOf(const config::Options& o) {
  StoreOptions s;
  s.policy.name = o.policy.name;
  s.policy.score_source = o.policy.score_source;
  s.policy.grain = o.policy.history == "token" ? HistoryGrain::kToken : HistoryGrain::kGroup;
  s.policy.history.half_life_tokens = o.policy.half_life_tokens;
  s.policy.hedge.hedge = o.policy.hedge;
  s.policy.hedge.gamma = o.policy.gamma;
  s.policy.hedge.half_life_tokens = o.policy.half_life_tokens;
  s.policy.omega = o.policy.omega == "off"     ? OmegaGrain::kOff
                   : o.policy.omega == "layer" ? OmegaGrain::kLayer
                                               : OmegaGrain::kHead;
  s.policy.uniform_k_bits = o.policy.uniform_k_bits;
  s.policy.uniform_v_bits = static_cast<int>(o.policy.uniform_v_bits);
  s.policy.drop.keep = o.policy.keep;
  s.policy.drop.after_ms = o.policy.drop_after_ms;
  s.policy.drop.window = static_cast<int>(o.policy.window);
  s.policy.drop.pool = static_cast<int>(o.policy.pool);
  s.policy.printed.b_min = o.policy.printed_b_min;
  s.policy.printed.b_max = o.policy.printed_b_max;
  s.policy.printed.gamma = o.policy.printed_gamma;
  s.policy.printed.lambda = o.policy.printed_lambda;
  s.policy.printed.tau = o.policy.printed_tau;
  s.learner.enabled = o.learner.enabled;
  s.learner.min_tokens = o.learner.min_tokens;
  s.learner.queries_per_dim = o.learner.queries_per_dim;
  s.learner.sample_every = o.learner.sample_every;
  s.learner.min_gain = o.learner.min_gain;
  s.learner.bases_per_layer = o.learner.bases_per_layer;
  s.learner.codec_share = o.learner.codec_share;
  s.learner.omega_windows = o.learner.omega_windows;
  s.learner.tenant_bytes = o.learner.tenant_bytes;
  s.reuse_half_life_s = o.policy.reuse_half_life_s;
  s.policy.history.max_step = o.policy.history_step;
  s.young_share = o.policy.young_share;
  s.young_weight = o.policy.young_weight;
  s.young_for = std::chrono::milliseconds(o.policy.young_ms);
  s.budget_bytes = o.budget.bytes;
  s.token_budget = o.budget.tokens;
  s.headroom = o.budget.headroom;
  s.floor_share = o.budget.floor_share;
  s.lease_ttl = std::chrono::milliseconds(o.leases.ttl_ms);
  s.max_lease_ttl = std::chrono::milliseconds(o.leases.max_ttl_ms);
  s.open_put_timeout = std::chrono::milliseconds(o.limits.open_put_ms);
  s.open_puts = o.limits.open_puts;
  s.leased_blocks = o.limits.leased_blocks;
  s.open_put_bytes = o.limits.open_put_bytes;
  s.contexts = o.limits.contexts;
  return s;
}

NetLimits NetLimitsOf(const config::Options& o) {
  NetLimits n;
  n.clients = o.limits.clients;
  n.requests = o.limits.requests;
  n.request_bytes = o.limits.request_bytes;
  n.regions = o.limits.regions;
  n.region_bytes = o.limits.region_bytes;
  n.report_bytes_per_s = o.limits.report_bytes_per_s;
  return n;
}

UcxOptions UcxOptionsOf(const config::Options& o) {
  UcxOptions u;
  u.tls = o.ucx.tls;
  u.net_devices = o.ucx.net_devices;
  u.busy_poll = std::chrono::microseconds(o.ucx.busy_poll_us);
  u.max_workers = o.ucx.clients;
  u.close_timeout = std::chrono::milliseconds(o.ucx.close_ms);
  return u;
}

TenantId TenantOfName(const std::string& name) { return NameOf("tenant:" + name); }

TenantId TenantOfUid(const config::Options& o, uid_t uid) {
  for (const config::TenantOptions& t : o.tenants)
    if (std::find(t.uids.begin(), t.uids.end(), uid) != t.uids.end()) return TenantOfName(t.name);
  return NameOf("uid:" + std::to_string(uid));
}

}  // namespace dyna
