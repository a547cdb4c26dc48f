// The table of metrics; see metrics.h. Base units, low-cardinality labels, every label set present
// from the start so that a zero is visible.
#include "daemon/admin/metrics.h"

#include <fmt/format.h>

#include "kernels/ladder.h"
#include "schemas/status.h"

namespace dyna::admin {
namespace {

constexpr Type kCounter = Type::kCounter, kGauge = Type::kGauge, kHistogram = Type::kHistogram;
// Levels are added by number: a ladder leaves out targets that change nothing, so a level has no
// fixed aim in bits.
constexpr uint8_t kKeyKinds[] = {kind::kRaw, kind::kFp8, kind::kPlain8, kind::kPlain4, kind::kNone};
constexpr uint8_t kValueKinds[] = {kind::kRaw,     kind::kFp8,     kind::VBits(8), kind::VBits(4),
                                   kind::VBits(2), kind::VBits(1), kind::VBits(0), kind::kNone};

Descriptor Family(Type type, std::string_view name, std::string_view help,
                  std::vector<std::string_view> labels, void (*emit)(const Snapshot&, Samples&)) {
  return {name, type, help, std::move(labels), emit};
}
Descriptor Gauge(std::string_view name, std::string_view help,
                 void (*emit)(const Snapshot&, Samples&)) {
  return Family(kGauge, name, help, {}, emit);
}
Descriptor Counter(std::string_view name, std::string_view help,
                   void (*emit)(const Snapshot&, Samples&)) {
  return Family(kCounter, name, help, {}, emit);
}

double Number(uint64_t value) { return static_cast<double>(value); }

#define VALUE(expression) [](const Snapshot& s, Samples& out) { out.Add(Number(s.expression)); }
#define REAL(expression) [](const Snapshot& s, Samples& out) { out.Add(s.expression); }

void AddDisks(const Snapshot& s, Samples& out, uint64_t SpillStats::*field) {
  out.Add({"spill"}, Number(s.spill.*field));
  out.Add({"bank"}, Number(s.bank.*field));
}
#define DISKS(field) [](const Snapshot& s, Samples& out) { AddDisks(s, out, &SpillStats::field); }

const std::vector<Descriptor>& Table() {
  static const auto& table = *new std::vector<Descriptor>{
      Family(kGauge, "build_info", "Always 1; the build and its configuration as labels",
             {"version", "isa", "policy"},
             [](const Snapshot& s, Samples& out) {
               out.Add({s.version, s.isa, s.policy}, 1);
             }),
      Gauge("uptime_seconds", "Since the daemon started", REAL(uptime_seconds)),
      Gauge("ready", "1 when /readyz answers 200",
            [](const Snapshot& s, Samples& out) { out.Add(s.not_ready.empty() ? 1 : 0); }),

      // ---- what is held
      Family(kGauge, "tier_blocks", "Blocks with a copy in the tier", {"tier"},
             [](const Snapshot& s, Samples& out) {
               out.Add({"host"}, Number(s.store.host.blocks));
               out.Add({"spill"}, Number(s.store.spill.blocks));
               out.Add({"bank"}, Number(s.store.bank.blocks));
             }),
      Family(kGauge, "tier_used_bytes", "Encoded bytes in the tier, metadata included", {"tier"},
             [](const Snapshot& s, Samples& out) {
               out.Add({"host"}, Number(s.store.host.bytes));
               out.Add({"spill"}, Number(s.spill.live_bytes));
               out.Add({"bank"}, Number(s.bank.live_bytes));
             }),
      Family(kGauge, "tier_capacity_bytes", "What the tier may hold", {"tier"},
             [](const Snapshot& s, Samples& out) {
               out.Add({"host"}, Number(s.store.budget_bytes));
               out.Add({"spill"}, Number(s.spill.budget));
               out.Add({"bank"}, Number(s.bank.budget));
             }),
      Gauge("raw_bytes", "Bytes that the resident blocks would hold uncompressed",
            VALUE(store.raw_bytes)),
      Gauge("young_bytes", "Bytes of the nursery: just put, beside the budget until reported",
            VALUE(store.young_bytes)),
      Gauge("charged_bytes", "Bytes counted against the budget: live, reserved and retired",
            VALUE(store.charged_bytes)),
      Gauge("leased_bytes", "Bytes that leases keep from being demoted or dropped",
            VALUE(store.leased_bytes)),
      Gauge("basis_bytes", "Bytes of the bases in use", VALUE(store.basis_bytes)),
      Gauge("history_bytes", "Bytes of attention history", VALUE(store.history_bytes)),
      Gauge("writing_blocks", "Blocks whose put is not complete", VALUE(store.writing_blocks)),
      Gauge("contexts", "Models that are open", VALUE(store.contexts)),
      Gauge("leases", "Leases that live", VALUE(store.leases)),
      Gauge("price_log2", "Log2 of the price: importance an encoded bit must be worth",
            REAL(store.log2_price)),
      Family(kGauge, "tenant_bytes", "Bytes held for a configured tenant", {"tenant"},
             [](const Snapshot& s, Samples& out) {
               for (const TenantFact& t : s.tenants) out.Add({t.name}, Number(t.bytes));
             }),
      Family(kGauge, "tenant_quota_bytes", "What the tenant may hold; 0: no limit", {"tenant"},
             [](const Snapshot& s, Samples& out) {
               for (const TenantFact& t : s.tenants) out.Add({t.name}, Number(t.quota_bytes));
             }),

      // ---- fidelity
      Family(kGauge, "tiles", "Resident tiles by what they are coded as", {"part", "kind"},
             [](const Snapshot& s, Samples& out) {
               for (const uint8_t k : kKeyKinds)
                 out.Add({"k", KindLabel(true, k)}, Number(s.store.k_tiles[k]));
               for (size_t level = 0; level < kLevelTargets.size(); ++level) {
                 const uint8_t k = kind::Level(static_cast<int>(level));
                 out.Add({"k", KindLabel(true, k)}, Number(s.store.k_tiles[k]));
               }
               for (const uint8_t k : kValueKinds)
                 out.Add({"v", KindLabel(false, k)}, Number(s.store.v_tiles[k]));
             }),
      Gauge("bits_per_element", "Mean over the resident blocks, codes only", REAL(store.mean_bits)),
      Gauge("error_nmse", "Mean measured error of the resident blocks, normalised",
            REAL(store.mean_nmse)),
      Counter("put_error_nmse_sum_total",
              "Measured error of each put segment, summed; divide by put_segments_total",
              REAL(store.put_error_sum)),

      // ---- learning
      Gauge("bases", "Bases in use, of all contexts and layers", VALUE(store.bases)),
      Counter("bases_learned_total", "Bases made from traffic", VALUE(store.bases_learned)),
      Counter("learned_tokens_total", "Tokens that fed the learner", VALUE(store.learned_tokens)),
      Counter("learned_queries_total", "Query vectors that fed the learner",
              VALUE(store.learned_queries)),
      Counter("learn_seconds_total", "Codec time spent on learning", REAL(store.learn_seconds)),
      Counter("codec_seconds_total", "Codec time spent in all", REAL(store.codec_seconds)),
      Gauge("predicted_bits_saved", "Bits an element that the bases promise at equal error",
            REAL(store.predicted_bits_saved)),

      // ---- traffic
      // OK is there from the start, other results once they happened: thirteen kinds of request
      // times sixteen results would be a third of the whole text.
      Family(kCounter, "requests_total", "Requests answered", {"op", "result"},
             [](const Snapshot& s, Samples& out) {
               for (const RequestFact& r : s.requests)
                 for (size_t i = 0; i < r.results.size(); ++i)
                   if (i == 0 || r.results[i])
                     out.Add(
                         {std::string(r.op), std::string(StatusName(static_cast<StatusCode>(i)))},
                         Number(r.results[i]));
             }),
      Family(kHistogram, "request_duration_seconds", "From a request's arrival to its reply",
             {"op"},
             [](const Snapshot& s, Samples& out) {
               for (const RequestFact& r : s.requests) out.Add({std::string(r.op)}, r.seconds);
             }),
      Counter("lookups_total", "Blocks looked up", VALUE(store.lookups)),
      Family(kCounter, "hits_total", "Blocks found, by the fastest tier that had them", {"tier"},
             [](const Snapshot& s, Samples& out) {
               for (const Tier tier : {Tier::kHost, Tier::kSpill, Tier::kBank})
                 out.Add({std::string(TierName(tier))},
                         Number(s.store.hits[static_cast<size_t>(tier)]));
             }),
      Counter("misses_total", "Blocks looked up and not held at the quality asked",
              VALUE(store.misses)),
      Counter("pending_total", "Blocks looked up while being written", VALUE(store.pending)),
      Counter("put_segments_total", "Segments encoded", VALUE(store.put_segments)),
      Family(kCounter, "put_bytes_total", "Bytes put, as they came and as they were stored",
             {"form"},
             [](const Snapshot& s, Samples& out) {
               out.Add({"raw"}, Number(s.store.put_raw_bytes));
               out.Add({"encoded"}, Number(s.store.put_encoded_bytes));
             }),
      Counter("put_exists_total", "Puts of a block that was held already", VALUE(store.exists)),
      Counter("put_rejected_total", "Segments refused while encoding", VALUE(store.put_rejected)),
      Counter("put_aborted_total", "Puts given up: client gone, or too slow",
              VALUE(store.aborted_puts)),
      Counter("illegal_transitions_total", "Defects: blocks dropped for an impossible change",
              VALUE(store.illegal_transitions)),
      Counter("fetch_segments_total", "Segments served", VALUE(store.fetch_segments)),
      Family(kCounter, "fetch_bytes_total", "Bytes served, as stored and as the reader got them",
             {"form"},
             [](const Snapshot& s, Samples& out) {
               out.Add({"raw"}, Number(s.store.fetch_raw_bytes));
               out.Add({"encoded"}, Number(s.store.fetch_encoded_bytes));
             }),
      Family(kCounter, "reports_total", "Attention reports, by what became of them", {"result"},
             [](const Snapshot& s, Samples& out) {
               out.Add({"received"}, Number(s.store.reports));
               out.Add({"folded"}, Number(s.store.reports_folded));
               out.Add({"dropped"}, Number(s.store.reports_dropped));
             }),

      // ---- pressure
      Counter("demoted_segments_total", "Segments re-encoded at fewer bits",
              VALUE(store.demoted_segments)),
      Counter("demoted_bytes_total", "Bytes that demotion freed", VALUE(store.demoted_bytes)),
      Counter("dropped_tokens_total",
              "Tokens that a policy or the token budget dropped, counted in each layer and kv head",
              VALUE(store.dropped_tokens)),
      Gauge("token_budget_tokens",
            "Tokens of one chain that may be kept, summed over layers; 0: all",
            VALUE(store.token_budget)),
      Gauge("token_budget_kept_tokens", "What the last chain held against it keeps",
            VALUE(store.kept_tokens)),
      Counter("token_budget_chains_total", "Chains held against the token budget",
              VALUE(store.fitted_chains)),
      Counter("token_budget_overfull_total",
              "Of them, those that stay above it: more of them has to stay whole",
              VALUE(store.overfull_chains)),
      Counter("spilled_blocks_total", "Blocks moved to disk", VALUE(store.spilled_blocks)),
      Counter("loaded_blocks_total", "Blocks read back from disk", VALUE(store.loaded_blocks)),
      Counter("load_failures_total", "Blocks that could not be read back",
              VALUE(store.load_failures)),
      Counter("evicted_blocks_total", "Blocks dropped for good", VALUE(store.evicted_blocks)),
      Counter("expired_blocks_total", "Blocks dropped at the end of their time to live",
              VALUE(store.expired_blocks)),
      Counter("lost_leases_total", "Leases that ended before their holder let go",
              VALUE(store.lost_leases)),
      Family(kCounter, "refused_total", "Puts sent away for want of room", {"reason"},
             [](const Snapshot& s, Samples& out) {
               out.Add({"retry"}, Number(s.store.retries));
               out.Add({"quota"}, Number(s.store.quota_refusals));
             }),
      Counter("invalid_total", "Requests that contradict what is known", VALUE(store.invalid)),
      Counter("damaged_segments_total", "Segments that failed their checksum: misses",
              VALUE(store.damaged_segments)),

      // ---- arena
      Family(kGauge, "arena_bytes", "The arena by state", {"state"},
             [](const Snapshot& s, Samples& out) {
               out.Add({"live"}, Number(s.arena.live_bytes));
               out.Add({"retired"}, Number(s.arena.retired_bytes));
               out.Add({"free"}, Number(s.arena.storage.free_bytes));
             }),
      Gauge("arena_largest_free_bytes", "The largest extent that can be had",
            VALUE(arena.storage.largest_free_bytes)),
      Gauge("arena_fragmentation_ratio", "1 - largest free range / free bytes",
            REAL(arena.storage.fragmentation)),
      Counter("arena_failed_allocations_total", "Extents that could not be had",
              VALUE(arena.failed_allocations)),
      Counter("arena_compacted_bytes_total", "Bytes moved to join free ranges",
              VALUE(store.compacted_bytes)),

      // ---- disk
      Family(kGauge, "disk_available", "0 while the tier's circuit breaker is open", {"tier"},
             [](const Snapshot& s, Samples& out) {
               out.Add({"spill"}, s.spill_enabled && s.spill.available ? 1 : 0);
               out.Add({"bank"}, s.bank_enabled && s.bank.available ? 1 : 0);
             }),
      Family(kGauge, "disk_file_bytes", "Files on disk, garbage included", {"tier"},
             DISKS(disk_bytes)),
      Family(kGauge, "disk_queue_blocks", "Operations that wait for the disk", {"tier"},
             DISKS(queued)),
      Family(kCounter, "disk_written_bytes_total", "Bytes of blocks written", {"tier"},
             DISKS(written_bytes)),
      Family(kCounter, "disk_read_bytes_total", "Bytes of parts read", {"tier"}, DISKS(read_bytes)),
      Family(kCounter, "disk_commits_total", "Groups of writes committed", {"tier"},
             DISKS(commits)),
      Family(kCounter, "disk_errors_total", "Operations that failed because the disk did", {"tier"},
             DISKS(errors)),
      Family(kCounter, "disk_quarantined_total", "Damaged records set aside", {"tier"},
             DISKS(quarantined)),
      Family(kCounter, "disk_refused_total", "Writes refused: queue, breaker or budget", {"tier"},
             DISKS(refused)),

      // ---- clients
      Gauge("clients", "Connected clients", VALUE(clients)),
      Counter("clients_refused_total", "Connections refused at the limit", VALUE(clients_refused)),
      Counter("auth_failures_total", "Connections or tokens that were not allowed",
              VALUE(auth_failures)),
      Family(kCounter, "rejected_frames_total", "Frames that failed at the door", {"channel"},
             [](const Snapshot& s, Samples& out) {
               out.Add({"socket"}, Number(s.rejected_frames));
               out.Add({"ucx"}, Number(s.ucx.rejected_frames));
             }),
      Gauge("regions", "Registered regions of clients", VALUE(regions)),
      Gauge("region_bytes", "Bytes of them", VALUE(region_bytes)),
      Gauge("arena_pinned_bytes", "Of the arena: what the GPU reads and writes by itself",
            VALUE(pinned_bytes)),
      Gauge("device_regions", "Regions that are memory of the GPU", VALUE(device_regions)),
      Counter("poisoned_regions_total", "Regions whose client took pages away under us",
              VALUE(poisoned_regions)),
      Gauge("open_puts", "Puts in progress", VALUE(open_puts)),
      Gauge("inflight_requests", "Requests that are not answered yet", VALUE(inflight_requests)),
      Gauge("staging_bytes", "Bytes of buffers for payload, in use or kept for the next",
            VALUE(staging_bytes)),
      Gauge("staging_used_bytes", "Bytes of payload on their way", VALUE(staging_used_bytes)),
      Gauge("ucx_channels", "Clients that use UCX", VALUE(ucx.channels)),
      Gauge("ucx_closing", "Clients that went while UCX held memory of their requests",
            VALUE(ucx.closing)),
      Counter("ucx_abandoned_requests_total",
              "Requests that UCX did not end and that ended with their worker",
              VALUE(ucx.abandoned_requests)),
      Counter("ucx_endpoint_errors_total", "UCX endpoints that failed", VALUE(ucx.endpoint_errors)),
      Counter("ucx_rescued_wakeups_total", "Work that only the safety tick found",
              VALUE(ucx.rescued_wakeups)),

      // ---- the backend
      Counter("device_failures_total", "Batches that the GPU could not do all of",
              VALUE(backend.failures)),
      Counter("device_redone_jobs_total", "Segments that the CPU coded for that reason",
              VALUE(backend.redone_jobs)),
      Gauge("device_lost", "1 when the GPU failed for good: the daemon stops with code 75",
            [](const Snapshot& s, Samples& out) { out.Add(s.backend.lost ? 1 : 0); }),

      // ---- threads
      Gauge("codec_threads", "Threads that encode and decode", VALUE(codec_threads)),
      Gauge("codec_queue_jobs", "Jobs that wait for them", VALUE(codec_queue)),
      Family(kHistogram, "loop_delay_seconds", "From posting work to the loop until it ran", {},
             [](const Snapshot& s, Samples& out) { out.Add({}, s.loop_delay); }),
      Counter("ticks_total", "Slices of background work", VALUE(store.ticks)),
      Counter("tick_seconds_total", "Time of the loop that they took",
              [](const Snapshot& s, Samples& out) { out.Add(Number(s.store.tick_ns_sum) * 1e-9); }),
      Gauge("tick_seconds_max", "The longest of them",
            [](const Snapshot& s, Samples& out) { out.Add(Number(s.store.tick_ns_max) * 1e-9); }),
      Counter("log_dropped_lines_total", "Lines lost because the log was too slow",
              VALUE(log_dropped)),
      Family(kCounter, "config_reloads_total", "SIGHUPs, by result", {"result"},
             [](const Snapshot& s, Samples& out) {
               out.Add({"ok"}, Number(s.reloads));
               out.Add({"failed"}, Number(s.reload_failures));
             }),
  };
  return table;
}

#undef VALUE
#undef REAL
#undef DISKS

}  // namespace

std::span<const Descriptor> Descriptors() { return Table(); }

std::string KindLabel(bool is_key, uint8_t k) {
  switch (k) {
    case kind::kRaw:
      return "raw";
    case kind::kFp8:
      return "fp8";
    case kind::kPlain8:
      return "plain8";
    case kind::kPlain4:
      return "plain4";
    case kind::kNone:
      return "none";
    case kind::kLevel0:
      return "mean";  // of K: level 0; of V: 0 bits
    default:
      break;
  }
  if (!kind::IsLevel(k)) return "unknown";
  return is_key ? fmt::format("level{}", k - kind::kLevel0)
                : fmt::format("{}bit", k - kind::kLevel0);
}

}  // namespace dyna::admin
