// The rows; see keys.h. In the order in which deploy/dynacompressd.toml prints them.
#include "daemon/config/keys.h"

namespace dyna::config {
namespace {

constexpr double kTiB = 1024.0 * 1024 * 1024 * 1024;
constexpr Rule kSwitch{};
constexpr Rule kText{};
constexpr Rule Range(double min, double max) { return {min, max, "", Unit::kPlain}; }
constexpr Rule OneOf(std::string_view choices) { return {0, 0, choices, Unit::kPlain}; }
constexpr Rule Bytes(double min, double max) { return {min, max, "", Unit::kBytes}; }

// The name of a key is the path of its field.
#define KEY(path) #path, [](auto& owner) -> Field { return &owner.path; }

constexpr Key<Options> kKeys[] = {
    {KEY(server.socket), kText, When::kRestart,
     "path of the AF_UNIX socket; \"\": in /run/dynacompress as root, else in XDG_RUNTIME_DIR"},
    {KEY(server.uids), Range(0, 4294967294.), When::kReload,
     "uids that may connect; empty: root and the daemon's own uid"},
    {KEY(server.state_dir), kText, When::kRestart,
     "path of the state folder; \"\": /var/lib/dynacompress as root, else in XDG_STATE_HOME"},
    {KEY(server.codec_threads), Range(0, 256), When::kRestart,
     "threads that encode and decode; 0: one a core"},
    {KEY(server.isa), OneOf("auto|scalar|avx2|avx512"), When::kRestart,
     "auto, scalar, avx2, avx512: the codec's instruction set"},
    {KEY(server.tick_ms), Range(1, 1000), When::kReload,
     "ms between slices of demotion and spill; idle costs nothing"},
    {KEY(server.drain_ms), Range(0, 600e3), When::kReload,
     "ms a clean stop may take to finish work and spill"},
    {KEY(admin.enabled), kSwitch, When::kRestart,
     "serve metrics, probes and the status page over HTTP"},
    {KEY(admin.address), kText, When::kRestart,
     "numeric IP address; anything but loopback shows metrics to the network"},
    {KEY(admin.port), Range(0, 65535), When::kRestart, "TCP port; 0: any free one, logged"},
    {KEY(admin.connections), Range(1, 1024), When::kRestart,
     "connections open at once; each costs about 20 KiB"},
    {KEY(arena.bytes), Bytes(0, kTiB * 64), When::kRestart,
     "bytes of memory for encoded blocks, taken at start; 0: 25 % of memory"},
    {KEY(arena.prefault), kSwitch, When::kRestart,
     "touch it all at start: slower start, no page faults later"},
    {KEY(spill.enabled), kSwitch, When::kRestart,
     "keep blocks on disk that no longer fit the arena; off: they are evicted"},
    {KEY(spill.dir), kText, When::kRestart,
     "path of a disposable folder; \"\": spill in the state folder"},
    {KEY(spill.bytes), Bytes(0, kTiB * 1024), When::kReload,
     "bytes of disk; 0: 20 GB or 10 % of the free space, the smaller"},
    {KEY(spill.threads), Range(1, 64), When::kRestart, "threads that call RocksDB"},
    {KEY(bank.enabled), kSwitch, When::kRestart, "off: `durability = persistent` is refused"},
    {KEY(bank.dir), kText, When::kRestart,
     "path of a durable folder; \"\": bank in the state folder"},
    {KEY(bank.bytes), Bytes(0, kTiB * 1024), When::kReload,
     "bytes of disk, then puts answer QUOTA; 0: as for spill"},
    {KEY(policy.name), kText, When::kRestart,
     "how bits are given out: dynacompress, full, uniform"},
    {KEY(policy.hedge), Range(0, 1), When::kRestart,
     "0..1: share of importance that attention history decides; 1 starves old facts"},
    {KEY(policy.gamma), Range(0, 2), When::kRestart, "0..2: exponent g of relative attention"},
    {KEY(policy.half_life_tokens), Range(64, 1 << 24), When::kRestart,
     "tokens of reports until unseen attention counts half"},
    {KEY(policy.score_source), OneOf("auto|keys_only|query_window|column_mass"), When::kRestart,
     "auto, keys_only, query_window, column_mass: statistics that are folded in"},
    {KEY(policy.history), OneOf("group|token"), When::kRestart,
     "group (a byte per 8 tokens), token (a byte per token: 8 x the history)"},
    {KEY(policy.reuse_half_life_s), Range(1, 86400 * 7), When::kRestart,
     "s until a hit counts half"},
    {KEY(learner.enabled), kSwitch, When::kRestart,
     "off: K is coded plain unless a profile is given"},
    {KEY(learner.min_tokens), Range(256, 1 << 20), When::kRestart,
     "unpinned tokens before a layer's first basis"},
    {KEY(learner.queries_per_dim), Range(1, 64), When::kRestart,
     "query vectors a kv head must have seen, times head_dim"},
    {KEY(learner.sample_every), Range(1, 1 << 20), When::kRestart,
     "blocks: after the first basis one in this many feeds the next"},
    {KEY(learner.codec_share), Range(0, 0.5), When::kRestart,
     "0..0.5 of codec time spent on learning after the first basis"},
    {KEY(learner.min_gain), Range(0, 1), When::kRestart,
     "0..1: a new basis must promise this much less error"},
    {KEY(learner.bases_per_layer), Range(1, 16), When::kRestart,
     "of one context; each costs a matrix per kv head in memory"},
    {KEY(learner.tenant_bytes), Bytes(0, kTiB), When::kRestart,
     "bytes of accumulators a tenant may hold (17 MB: Llama-3.1-8B)"},
    {KEY(budget.bytes), Bytes(0, kTiB * 64), When::kReload,
     "bytes that blocks may hold in the arena; 0: all of it"},
    {KEY(budget.headroom), Range(0.01, 0.5), When::kReload,
     "0.01..0.5 of the arena kept free for what is in flight"},
    {KEY(budget.floor_share), Range(0, 0.9), When::kReload,
     "0..0.9 of the budget for leased, exact and pinned bytes"},
    {KEY(budget.tokens), Range(0, 1e15), When::kReload,
     "tokens kept above their mean, summed over layers; 0: no limit"},
    {KEY(leases.ttl_ms), Range(100, 3600e3), When::kReload,
     "ms that a lookup's lease lives unless the client says"},
    {KEY(leases.max_ttl_ms), Range(100, 86400e3), When::kReload,
     "ms, the longest a client may ask for"},
    {KEY(limits.clients), Range(1, 65536), When::kReload,
     "connections; each may hold what follows"},
    {KEY(limits.requests), Range(1, 65536), When::kReload, "requests in flight, of one client"},
    {KEY(limits.request_bytes), Bytes(1 << 20, kTiB), When::kReload,
     "payload bytes in flight, of one client (staging memory)"},
    {KEY(limits.regions), Range(0, 65536), When::kReload, "registered regions, of one client"},
    {KEY(limits.region_bytes), Bytes(0, kTiB * 64), When::kReload,
     "bytes of regions, of one client (its own memory)"},
    {KEY(limits.open_puts), Range(1, 1 << 20), When::kReload,
     "blocks being written, of one client"},
    {KEY(limits.open_put_bytes), Bytes(1 << 20, kTiB * 64), When::kReload,
     "arena bytes reserved by them"},
    {KEY(limits.open_put_ms), Range(100, 3600e3), When::kReload,
     "ms until an unfinished put is given up"},
    {KEY(limits.contexts), Range(1, 65536), When::kReload, "models, of all clients"},
    {KEY(limits.report_bytes_per_s), Bytes(0, kTiB), When::kReload,
     "bytes of statistics a second, of one client; more is dropped and counted"},
    {KEY(ucx.enabled), kSwitch, When::kRestart,
     "loads the UCX library when a client first asks for it"},
    {KEY(ucx.tls), kText, When::kRestart, "UCX transports; self,posix opens no port"},
    {KEY(ucx.net_devices), kText, When::kRestart, "UCX devices for tcp and RDMA"},
    {KEY(ucx.remote), kSwitch, When::kRestart,
     "take UCX clients from other hosts: 77 bytes from a stranger abort UCX"},
    {KEY(ucx.busy_poll_us), Range(0, 1e6), When::kRestart,
     "us of spinning before sleep: latency for one busy core"},
    {KEY(log.level), OneOf("debug|info|warn|error|off"), When::kReload,
     "debug, info, warn, error, off: the least severe line that is written"},
    {KEY(log.file), kText, When::kRestart, "path that lines are appended to; \"\": stderr"},
};

namespace tenant {
constexpr Key<TenantOptions> kKeys[] = {
    {KEY(name), kText, When::kReload, "1..64 of a-z A-Z 0-9 _ -; a metrics label"},
    {KEY(uids), Range(0, 4294967294.), When::kReload, "who it is; a uid belongs to one tenant"},
    {KEY(quota_bytes), Bytes(0, kTiB * 1024), When::kReload,
     "bytes in arena and on disk; 0: no limit"},
};
}  // namespace tenant

#undef KEY

}  // namespace

std::span<const Key<Options>> Keys() { return kKeys; }
std::span<const Key<TenantOptions>> TenantKeys() { return tenant::kKeys; }

}  // namespace dyna::config
