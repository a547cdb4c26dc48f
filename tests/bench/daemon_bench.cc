// The whole way through a real daemon, from a client process: put and get through regions, small
// calls, lookups; each beside its reference, measured in the same run.
//
//   daemon_bench [--benchmark_filter=...]      starts bin/dynacompressd in a folder of its own
#include <benchmark/benchmark.h>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <thread>

#include "client/client.h"
#include "kernels/codec_math.h"

namespace dyna {
namespace {

using Clock = std::chrono::steady_clock;
double Since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}
double Median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<long>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

// One daemon for the process, in a folder that goes with it.
class Daemon {
 public:
  static Daemon& Get() {
    static Daemon daemon;
    return daemon;
  }
  std::string socket() const { return folder_ + "/d.sock"; }
  ~Daemon() {
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
    std::filesystem::remove_all(folder_);
  }

 private:
  Daemon() {
    char name[] = "/tmp/dyna-bench-XXXXXX";
    folder_ = mkdtemp(name);
    const std::string self = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    const std::string program = self + "/dynacompressd", state = folder_ + "/state",
                      where = socket();
    pid_ = fork();
    if (pid_ == 0) {
      execl(program.c_str(), program.c_str(), "--socket", where.c_str(), "--state-dir",
            state.c_str(), "--arena", "4GiB", "--admin-port", "0", "--log-level", "warn", nullptr);
      std::perror(program.c_str());
      _exit(127);
    }
    for (int i = 0; i < 200 && !std::filesystem::exists(where); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    std::this_thread::sleep_for(std::chrono::seconds(3));  // it touches its arena meanwhile
  }
  std::string folder_;
  pid_t pid_ = 0;
};

// A context of one shape: `layers` x `heads` x head_dim in f16.
struct World {
  World(int layers, int heads, int head_dim, uint32_t blocks, Bulk bulk = Bulk::kAuto)
      : layers_(layers), heads_(heads), d_(head_dim), blocks_(blocks) {
    ClientOptions options;
    options.endpoint = Daemon::Get().socket();
    options.bulk = bulk;
    auto connected = Client::Connect(options);
    client = std::move(connected.value());
    ContextSpec spec;
    spec.model = "bench-" + std::to_string(layers) + "x" + std::to_string(heads) + "x" +
                 std::to_string(head_dim);
    spec.dtype = DType::kF16;
    Rope rope;
    rope.kind = RopeKind::kHalf;
    rope.rotary_dim = static_cast<uint16_t>(head_dim);
    for (int i = 0; i < head_dim / 2; ++i)
      rope.inv_freq.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / head_dim)));
    spec.ropes = {rope};
    LayerShape shape;
    shape.kv_heads = static_cast<uint16_t>(heads);
    shape.head_dim = static_cast<uint16_t>(head_dim);
    shape.max_position = 1u << 20;
    spec.layers.assign(static_cast<size_t>(layers), shape);
    context = *client->OpenContext(spec);
    bytes = uint64_t{blocks} * static_cast<uint64_t>(layers) *
            DenseSegmentBytes(static_cast<uint16_t>(heads), static_cast<uint16_t>(head_dim),
                              DType::kF16);
    region = *client->AllocateRegion(bytes);
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::vector<uint16_t> page(1u << 16);
    for (uint16_t& x : page) x = codec::F32ToF16(normal(random));
    for (uint64_t at = 0; at < bytes; at += page.size() * 2)
      std::memcpy(region->bytes().data() + at, page.data(),
                  std::min<uint64_t>(page.size() * 2, bytes - at));
  }
  KvMemory Memory() const {
    return KvMemory::Dense(region->bytes().data(), DType::kF16, blocks_,
                           static_cast<uint32_t>(layers_), static_cast<uint16_t>(heads_),
                           static_cast<uint16_t>(d_));
  }
  // Fresh names: nothing is held already.
  std::vector<BlockHash> Names(uint64_t round) const {
    std::vector<BlockHash> names(blocks_);
    for (uint32_t i = 0; i < blocks_; ++i) {
      const uint64_t word[2] = {round + 1, i + 1};
      std::memcpy(names[i].bytes.data(), word, sizeof word);
    }
    return names;
  }
  PutResult Put(const std::vector<BlockHash>& names, QualityClass quality) {
    PutRequest request;
    request.hashes = names;
    request.source = Memory();
    request.quality = quality;
    return context->Put(request);
  }

  int layers_, heads_, d_;
  uint32_t blocks_;
  uint64_t bytes = 0;
  std::unique_ptr<Client> client;
  std::shared_ptr<Context> context;
  std::shared_ptr<Region> region;
};

// memcpy of as many bytes with as many threads as the daemon has codec threads.
double MemcpyRate(uint64_t bytes) {
  const unsigned threads = std::max(1u, std::thread::hardware_concurrency());
  static std::vector<std::byte> from, to;
  from.resize(bytes, std::byte{1});
  to.resize(bytes, std::byte{2});
  std::vector<double> rates;
  for (int i = 0; i < 5; ++i) {
    const auto begin = Clock::now();
    std::vector<std::thread> pool;
    for (unsigned t = 0; t < threads; ++t)
      pool.emplace_back([&, t] {
        const uint64_t a = bytes * t / threads, b = bytes * (t + 1) / threads;
        std::memcpy(to.data() + a, from.data() + a, b - a);
      });
    for (auto& t : pool) t.join();
    rates.push_back(static_cast<double>(bytes) / Since(begin));
  }
  return Median(rates);
}

// Two threads that wake each other through an eventfd, with a copy of `bytes` at each bell: the
// least that a call to another process can cost.
double DoorbellSeconds(size_t bytes) {
  int ab[2], ba[2];
  if (pipe(ab) != 0 || pipe(ba) != 0) std::abort();
  std::vector<std::byte> from(bytes, std::byte{1}), to(bytes);
  constexpr int kRounds = 2000;
  std::thread other([&] {
    char c = 0;
    for (int i = 0; i < kRounds; ++i) {
      if (read(ab[0], &c, 1) != 1) std::abort();
      std::memcpy(to.data(), from.data(), bytes);
      if (write(ba[1], &c, 1) != 1) std::abort();
    }
  });
  std::vector<double> times;
  char c = 0;
  for (int i = 0; i < kRounds; ++i) {
    const auto begin = Clock::now();
    if (write(ab[1], &c, 1) != 1 || read(ba[0], &c, 1) != 1) std::abort();
    times.push_back(Since(begin));
  }
  other.join();
  for (int fd : {ab[0], ab[1], ba[0], ba[1]}) close(fd);
  return Median(times);
}

void Rates(benchmark::State& state, double bytes_per_second, double reference) {
  state.counters["GB/s"] = bytes_per_second / 1e9;
  state.counters["memcpy GB/s"] = reference / 1e9;
  state.counters["ratio"] = bytes_per_second / reference;
}

std::atomic<uint64_t> g_round{1};

void PutGet(benchmark::State& state, QualityClass quality, bool get, Bulk bulk) {
  World world(4, 8, 128, static_cast<uint32_t>(state.range(0)), bulk);
  std::vector<double> seconds;
  for (auto _ : state) {
    const auto names = world.Names(g_round++);
    auto begin = Clock::now();
    const PutResult put = world.Put(names, quality);
    double took = Since(begin);
    if (!put.status.ok()) {
      state.SkipWithError(put.status.ToString().c_str());
      break;
    }
    if (get) {
      LookupRequest look;
      look.hashes = names;
      auto held = world.context->Lookup(look);
      Lease lease = std::move(held.value());
      FetchRequest fetch;
      fetch.target = world.Memory();
      begin = Clock::now();
      const FetchResult got = world.context->Fetch(lease, fetch);
      took = Since(begin);
      if (!got.status.ok()) {
        state.SkipWithError(got.status.ToString().c_str());
        break;
      }
    }
    state.SetIterationTime(took);
    seconds.push_back(took);
    (void)world.context->Delete(names);
  }
  if (!seconds.empty())
    Rates(state, static_cast<double>(world.bytes) / Median(seconds), MemcpyRate(world.bytes));
}

// One 64 KiB segment, one call outstanding.
void SmallCall(benchmark::State& state, bool get) {
  World world(1, 4, 64, 1);
  const auto names = world.Names(g_round++);
  std::vector<double> seconds;
  if (!world.Put(names, QualityClass::kExact).status.ok()) state.SkipWithError("put failed");
  LookupRequest look;
  look.hashes = names;
  auto held = world.context->Lookup(look);
  Lease lease = std::move(held.value());
  for (auto _ : state) {
    std::vector<BlockHash> fresh = get ? names : world.Names(g_round++);
    FetchRequest fetch;
    fetch.target = world.Memory();
    const auto begin = Clock::now();
    const Status status = get ? world.context->Fetch(lease, fetch).status
                              : world.Put(fresh, QualityClass::kExact).status;
    const double took = Since(begin);
    if (!status.ok()) {
      state.SkipWithError(status.ToString().c_str());
      break;
    }
    state.SetIterationTime(took);
    seconds.push_back(took);
    if (!get) (void)world.context->Delete(fresh);
  }
  const double bell = DoorbellSeconds(world.bytes);
  if (seconds.empty()) return;
  state.counters["p50 us"] = Median(seconds) * 1e6;
  state.counters["doorbell us"] = bell * 1e6;
  state.counters["ratio"] = Median(seconds) / bell;
}

void Lookup512(benchmark::State& state) {
  World world(1, 1, 64, 512);
  const auto names = world.Names(g_round++);
  if (!world.Put(names, QualityClass::kBalanced).status.ok()) state.SkipWithError("put failed");
  std::vector<double> seconds;
  for (auto _ : state) {
    LookupRequest look;
    look.hashes = names;
    const auto begin = Clock::now();
    auto lease = world.context->Lookup(look);
    const double took = Since(begin);
    if (!lease.ok() || lease->run() != 512) {
      state.SkipWithError("lookup failed");
      break;
    }
    state.SetIterationTime(took);
    seconds.push_back(took);
  }
  const double bell = DoorbellSeconds(0);
  if (seconds.empty()) return;
  state.counters["p50 us"] = Median(seconds) * 1e6;
  state.counters["doorbell us"] = bell * 1e6;
  state.counters["ratio"] = Median(seconds) / bell;
}

#define DYNA_PUTGET(name, ...)                 \
  BENCHMARK_CAPTURE(PutGet, name, __VA_ARGS__) \
      ->Arg(1)                                 \
      ->Arg(32)                                \
      ->UseManualTime()                        \
      ->Iterations(40)                         \
      ->Unit(benchmark::kMillisecond)
DYNA_PUTGET(put_exact_region, QualityClass::kExact, false, Bulk::kRegion);
DYNA_PUTGET(get_exact_region, QualityClass::kExact, true, Bulk::kRegion);
DYNA_PUTGET(put_coded_region, QualityClass::kBalanced, false, Bulk::kRegion);
DYNA_PUTGET(get_coded_region, QualityClass::kBalanced, true, Bulk::kRegion);
DYNA_PUTGET(put_exact_ucx, QualityClass::kExact, false, Bulk::kUcx);
DYNA_PUTGET(get_exact_ucx, QualityClass::kExact, true, Bulk::kUcx);
DYNA_PUTGET(put_exact_socket, QualityClass::kExact, false, Bulk::kSocket);
DYNA_PUTGET(get_exact_socket, QualityClass::kExact, true, Bulk::kSocket);
BENCHMARK_CAPTURE(SmallCall, put_64KiB, false)
    ->UseManualTime()
    ->Iterations(2000)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(SmallCall, get_64KiB, true)
    ->UseManualTime()
    ->Iterations(2000)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(Lookup512)->UseManualTime()->Iterations(2000)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace dyna

BENCHMARK_MAIN();
