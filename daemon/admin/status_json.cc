#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "daemon/admin/status_json.h"
#include "daemon/admin/status_view.h"

namespace dyna::admin {
namespace {

using nlohmann::json;

double Ratio(double raw, double encoded) { return encoded > 0 ? raw / encoded : 0; }

std::string_view SourceName(BasisSource source) {
  switch (source) {
    case BasisSource::kProfile:
      return "profile";
    case BasisSource::kLearned:
      return "learned";
    case BasisSource::kKeys:
      return "keys";
  }
  return "unknown";
}

json ToJson(const BasisFact& b) {
  return {{"layer", b.layer},
          {"name", fmt::format("{:016x}", b.name)},
          {"source", SourceName(b.source)},
          {"tokens", b.tokens},
          {"queries", b.queries},
          {"segments", b.segments},
          {"bytes", b.bytes},
          {"l2_error", b.l2_error}};
}

json ToJson(const ContextFact& c) {
  json bases = json::array();
  for (const BasisFact& b : c.bases) bases.push_back(ToJson(b));
  return {{"context", fmt::format("{:016x}", c.context)},
          {"model", c.model},
          {"revision", c.revision},
          {"blocks", c.blocks},
          {"raw_bytes", c.raw_bytes},
          {"encoded_bytes", c.encoded_bytes},
          {"basis_bytes", c.basis_bytes},
          {"ratio", Ratio(static_cast<double>(c.raw_bytes), static_cast<double>(c.encoded_bytes))},
          {"profile", c.profile},
          {"omega_learned", c.omega_learned},
          {"learned_tokens", c.learned_tokens},
          {"learned_queries", c.learned_queries},
          {"learn_seconds", c.learn_seconds},
          {"predicted_bits_saved", c.predicted_bits_saved},
          {"bases", std::move(bases)}};
}

json DiskJson(bool enabled, const SpillStats& disk, const TierCount& count) {
  return {{"enabled", enabled},
          {"available", enabled && disk.available},
          {"state", disk.state},
          {"blocks", count.blocks},
          {"bytes", disk.live_bytes},
          {"budget_bytes", disk.budget},
          {"file_bytes", disk.disk_bytes},
          {"queued", disk.queued},
          {"errors", disk.errors},
          {"quarantined", disk.quarantined}};
}

json TilesJson(const std::array<uint64_t, 256>& tiles, bool is_key) {
  json out = json::object();
  for (size_t k = 0; k < tiles.size(); ++k)
    if (tiles[k]) out[KindLabel(is_key, static_cast<uint8_t>(k))] = tiles[k];
  return out;
}

json RequestsJson(const Snapshot& s) {
  json out = json::object();
  for (const RequestFact& r : s.requests) {
    json results = json::object();
    for (size_t i = 0; i < r.results.size(); ++i)
      if (r.results[i]) results[std::string(StatusName(static_cast<StatusCode>(i)))] = r.results[i];
    out[std::string(r.op)] = std::move(results);
  }
  return out;
}

}  // namespace

json ContextToJson(const ContextFact& context) { return ToJson(context); }

std::string StatusJson(const Snapshot& s) {
  const StoreStats& t = s.store;
  json out = {
      {"version", s.version},
      {"instance_id", fmt::format("{:016x}", s.instance_id)},
      {"isa", s.isa},
      {"backend",
       {{"name", s.backend.name},
        {"gpu", s.backend.gpu},
        {"driver", s.backend.driver},
        {"why_cpu", s.backend.why_cpu},
        {"failures", s.backend.failures},
        {"redone_jobs", s.backend.redone_jobs},
        {"last_error", s.backend.last_error},
        {"lost", s.backend.lost}}},
      {"policy", s.policy},
      {"uptime_seconds", s.uptime_seconds},
      {"ready", s.not_ready.empty()},
      {"not_ready", s.not_ready},
      {"draining", s.draining},
      {"budget",
       {{"bytes", t.budget_bytes},
        {"charged_bytes", t.charged_bytes},
        {"leased_bytes", t.leased_bytes},
        {"price_log2", t.log2_price}}},
      {"tokens",
       {{"budget", t.token_budget},
        {"kept", t.kept_tokens},
        {"chains", t.fitted_chains},
        {"overfull_chains", t.overfull_chains},
        {"dropped", t.dropped_tokens}}},
      {"tiers",
       {{"host", {{"blocks", t.host.blocks}, {"bytes", t.host.bytes}}},
        {"spill", DiskJson(s.spill_enabled, s.spill, t.spill)},
        {"bank", DiskJson(s.bank_enabled, s.bank, t.bank)}}},
      {"arena",
       {{"bytes", s.arena.capacity},
        {"live_bytes", s.arena.live_bytes},
        {"retired_bytes", s.arena.retired_bytes},
        {"free_bytes", s.arena.storage.free_bytes},
        {"largest_free_bytes", s.arena.storage.largest_free_bytes},
        {"fragmentation", s.arena.storage.fragmentation},
        {"pinned_bytes", s.pinned_bytes}}},
      {"fidelity",
       {{"raw_bytes", t.raw_bytes},
        {"encoded_bytes", t.host.bytes},
        {"ratio", Ratio(static_cast<double>(t.raw_bytes), static_cast<double>(t.host.bytes))},
        {"bits_per_element", t.mean_bits},
        {"nmse", t.mean_nmse},
        {"k_tiles", TilesJson(t.k_tiles, true)},
        {"v_tiles", TilesJson(t.v_tiles, false)}}},
      {"lookups",
       {{"blocks", t.lookups},
        {"hits_host", t.hits[static_cast<size_t>(Tier::kHost)]},
        {"hits_spill", t.hits[static_cast<size_t>(Tier::kSpill)]},
        {"hits_bank", t.hits[static_cast<size_t>(Tier::kBank)]},
        {"misses", t.misses},
        {"pending", t.pending}}},
      {"traffic",
       {{"put_segments", t.put_segments},
        {"put_raw_bytes", t.put_raw_bytes},
        {"put_encoded_bytes", t.put_encoded_bytes},
        {"fetch_segments", t.fetch_segments},
        {"fetch_raw_bytes", t.fetch_raw_bytes},
        {"fetch_encoded_bytes", t.fetch_encoded_bytes},
        {"reports", t.reports},
        {"reports_dropped", t.reports_dropped}}},
      {"pressure",
       {{"demoted_segments", t.demoted_segments},
        {"demoted_bytes", t.demoted_bytes},
        {"spilled_blocks", t.spilled_blocks},
        {"loaded_blocks", t.loaded_blocks},
        {"evicted_blocks", t.evicted_blocks},
        {"retries", t.retries},
        {"quota_refusals", t.quota_refusals},
        {"damaged_segments", t.damaged_segments}}},
      {"clients",
       {{"connected", s.clients},
        {"ucx", s.ucx.channels},
        {"ucx_closing", s.ucx.closing},
        {"leases", t.leases},
        {"regions", s.regions},
        {"region_bytes", s.region_bytes},
        {"device_regions", s.device_regions},
        {"open_puts", s.open_puts},
        {"inflight_requests", s.inflight_requests}}},
      {"requests", RequestsJson(s)},
  };
  out["contexts"] = json::array();
  for (const ContextFact& c : s.contexts) out["contexts"].push_back(ToJson(c));
  // A model's name is a client's text: bytes that are no UTF-8 must not break the answer.
  return out.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace dyna::admin
