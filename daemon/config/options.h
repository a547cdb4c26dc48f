// What an operator can set: one struct a part, defaults in place. A knob is a field here and a row
// in keys.cc, or it does not exist. Plain values; copy them freely between threads.
//
// 0 or "" where the comment says so means "fits the machine"; Resolve() (machine.h) fills those in.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dyna::config {

struct ServerOptions {
  // path of the AF_UNIX socket; "": in /run/dynacompress as root, else in XDG_RUNTIME_DIR
  std::string socket;
  // uids that may connect; empty: root and the daemon's own uid
  std::vector<uint32_t> uids;
  // path of the state folder; "": /var/lib/dynacompress as root, else in XDG_STATE_HOME
  std::string state_dir;
  // threads that encode and decode; 0: one a core
  uint32_t codec_threads = 0;
  // auto (a GPU where there is one), cpu, cuda: where K and V are encoded and decoded
  std::string backend = "auto";
  // auto, scalar, avx2, avx512: the codec's instruction set
  std::string isa = "auto";
  // ms between slices of demotion and spill; idle costs nothing
  uint32_t tick_ms = 20;
  // ms a clean stop may take to finish work and spill
  uint32_t drain_ms = 25'000;
};

struct AdminOptions {
  // serve metrics, probes and the status page over HTTP
  bool enabled = true;
  // numeric IP address; anything but loopback shows metrics to the network
  std::string address = "127.0.0.1";
  // TCP port; 0: any free one, logged
  uint16_t port = 9464;
  // connections open at once; each costs about 20 KiB
  uint32_t connections = 32;
};

struct ArenaOptions {
  // bytes of memory for encoded blocks, taken at start; 0: 25 % of memory
  uint64_t bytes = 0;
  // touch it all at start: slower start, no page faults later
  bool prefault = true;
  // with a GPU: pin it, so that the GPU moves segments by itself; takes all of it at start
  bool pinned = true;
};

struct SpillOptions {
  // keep blocks on disk that no longer fit the arena; off: they are evicted
  bool enabled = true;
  // path of a disposable folder; "": spill in the state folder
  std::string dir;
  // bytes of disk; 0: 20 GB or 10 % of the free space, the smaller
  uint64_t bytes = 0;
  // threads that call RocksDB
  uint32_t threads = 2;
};

struct BankOptions {
  // off: `durability = persistent` is refused
  bool enabled = true;
  // path of a durable folder; "": bank in the state folder
  std::string dir;
  // bytes of disk, then puts answer QUOTA; 0: as for spill
  uint64_t bytes = 0;
};

struct PolicyOptions {
  // how bits are given out: dynacompress, full, uniform; the others drop tokens (daemon/policy)
  std::string name = "dynacompress";
  // 0..1: share of importance that attention history decides; 1 starves old facts
  double hedge = 0.5;
  // 0..2: exponent g of relative attention
  double gamma = 0.5;
  // tokens of reports until unseen attention counts half
  uint32_t half_life_tokens = 4096;
  // auto, keys_only, query_window, column_mass: statistics that are folded in
  std::string score_source = "auto";
  // group (a byte per 8 tokens), token (a byte per token: 8 x the history)
  std::string history = "group";
  // s until a hit counts half
  double reuse_half_life_s = 600;
  // octaves that one report may move a token's history by; a new token has only that one
  double history_step = 6;
  // 0..0.5 of the arena, beside the budget: what was put and no report has covered yet
  double young_share = 0.0625;
  // 1..256: how many times its weight such a tile has
  double young_weight = 8;
  // ms that it stays there without a report; 0: there is no such share
  uint32_t young_ms = 10'000;
  // head, layer (a layer's heads alike), off: what of a profile's sensitivities counts
  std::string omega = "head";
  // 0..8, of policy uniform: target of K's level; without a basis 4 or 8
  double uniform_k_bits = 2;
  // 0, 1, 2, 4, 8, of policy uniform: width of V
  uint32_t uniform_v_bits = 2;
  // 0..1 of a chain's tokens, of policies that drop tokens
  double keep = 0.25;
  // ms after a chain's last block or report until its tokens are dropped
  uint32_t drop_after_ms = 1000;
  // last tokens kept, of policies that drop tokens; 0: as in the paper
  uint32_t window = 0;
  // odd tokens of the pooling kernel (snapkv, fastkv, dynamickv); 0: as in the paper
  uint32_t pool = 0;
  // least bits, of policies printed and printed_corrected
  double printed_b_min = 2;
  // most bits, of policies printed and printed_corrected
  double printed_b_max = 8;
  // how far attention (printed) or its rank (corrected) moves the bits
  double printed_gamma = 1;
  // steepness of pruning, of both
  double printed_lambda = 4;
  // where half is pruned: share of attention (printed), log2 of relative (corrected)
  double printed_tau = 0.5;
};

struct LearnerOptions {
  // off: K is coded plain unless a profile is given
  bool enabled = true;
  // unpinned tokens before a layer's first basis
  uint32_t min_tokens = 2048;
  // query vectors a kv head must have seen, times head_dim
  uint32_t queries_per_dim = 4;
  // blocks: after the first basis one in this many feeds the next
  uint32_t sample_every = 64;
  // 0..0.5 of codec time spent on learning after the first basis
  double codec_share = 0.02;
  // 0..1: a new basis must promise this much less error
  double min_gain = 0.10;
  // 0..256: query windows that sensitivities are measured on where no profile has them; 0: none
  uint32_t omega_windows = 16;
  // of one context; each costs a matrix per kv head in memory
  uint32_t bases_per_layer = 4;
  // bytes of accumulators a tenant may hold (17 MB: Llama-3.1-8B)
  uint64_t tenant_bytes = 256ull << 20;
};

struct BudgetOptions {
  // bytes that blocks may hold in the arena; 0: all of it
  uint64_t bytes = 0;
  // 0.01..0.5 of the arena kept free for what is in flight
  double headroom = 0.05;
  // 0..0.9 of the budget for leased, exact and pinned bytes
  double floor_share = 0.5;
  // tokens of one chain kept by themselves, summed over layers; 0: no limit
  uint64_t tokens = 0;
};

struct LeaseOptions {
  // ms that a lookup's lease lives unless the client says
  uint32_t ttl_ms = 30'000;
  // ms, the longest a client may ask for
  uint32_t max_ttl_ms = 600'000;
};

struct LimitOptions {
  // connections; each may hold what follows
  uint32_t clients = 256;
  // requests in flight, of one client
  uint32_t requests = 256;
  // payload bytes in flight, of one client (staging memory)
  uint64_t request_bytes = 256ull << 20;
  // registered regions, of one client; those on the GPU too
  uint32_t regions = 64;
  // bytes of regions, of one client (its own memory)
  uint64_t region_bytes = 64ull << 30;
  // blocks under leases, of one client, each counted in each lease
  uint32_t leased_blocks = 1 << 20;
  // blocks being written, of one client
  uint32_t open_puts = 1024;
  // arena bytes reserved by them
  uint64_t open_put_bytes = 1ull << 30;
  // ms that an unfinished put waits for its client until it is given up
  uint32_t open_put_ms = 30'000;
  // models, of all clients
  uint32_t contexts = 64;
  // bytes of statistics a second, of one client; more is dropped and counted
  uint64_t report_bytes_per_s = 64ull << 20;
};

// One [[tenants]] table. A uid named nowhere is a tenant of its own without a quota.
struct TenantOptions {
  // 1..64 of a-z A-Z 0-9 _ -; a metrics label
  std::string name;
  // who it is; a uid belongs to one tenant
  std::vector<uint32_t> uids;
  // bytes in arena and on disk; 0: no limit
  uint64_t quota_bytes = 0;
  bool operator==(const TenantOptions&) const = default;
};

struct UcxOptions {
  // loads the UCX library when a client first asks for it
  bool enabled = true;
  // UCX transports; self,posix opens no port
  std::string tls = "self,posix";
  // UCX devices for tcp and RDMA
  std::string net_devices = "lo";
  // us of spinning before sleep: latency for one busy core
  uint32_t busy_poll_us = 0;
  // clients over UCX, 2 MiB of shared memory and 5 descriptors each; more are refused it
  uint32_t clients = 256;
  // ms that memory of a client's requests waits for UCX to let go after the client went or died
  uint32_t close_ms = 1000;
};

struct LogOptions {
  // debug, info, warn, error, off: the least severe line that is written
  std::string level = "info";
  // path that lines are appended to; "": stderr
  std::string file;
  // text, json: how a line is written; json: an object with time, level and message
  std::string format = "text";
};

struct Options {
  ServerOptions server;
  AdminOptions admin;
  ArenaOptions arena;
  SpillOptions spill;
  BankOptions bank;
  PolicyOptions policy;
  LearnerOptions learner;
  BudgetOptions budget;
  LeaseOptions leases;
  LimitOptions limits;
  UcxOptions ucx;
  LogOptions log;
  std::vector<TenantOptions> tenants;  // at most 100
};

}  // namespace dyna::config
