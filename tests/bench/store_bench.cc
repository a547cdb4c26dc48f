// What the store costs the loop, apart from sockets and codec threads (issue: <= 5 us an
// operation): calls are timed, the codec's jobs run between them. Times are of this thread's CPU.
#include <benchmark/benchmark.h>

#include <time.h>

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "client/base/log.h"
#include "daemon/store/block_table.h"
#include "daemon/store/store_harness.h"

namespace dyna {
namespace {

double CpuUs() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) * 1e-3;
}
double Median(std::vector<double>& v) {
  if (v.empty()) return 0;
  std::nth_element(v.begin(), v.begin() + static_cast<long>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

// A context of `layers` x 8 heads x 64 in f32; every tile has the same values.
struct World : testing::StoreHarness {
  static constexpr uint16_t kWide = 8, kDepth = 64;

  explicit World(uint16_t layers, uint64_t arena_bytes = 1u << 30) : StoreHarness(arena_bytes) {
    Stop();
    backend = std::move(MakeCpuBackend().value());
    Start();
    spec.model = "bench";
    LayerShape shape = spec.layers[0];
    shape.kv_heads = kWide;
    shape.q_heads = 2 * kWide;
    shape.head_dim = kDepth;
    spec.layers.assign(layers, shape);
    context = store->OpenContext(caller, spec, {})->context;
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    values.resize(size_t{kBlockTokens} * kDepth * kWide);
    for (float& x : values) x = normal(random);
  }
  wire::Put PutOf(uint64_t n, uint16_t layer, uint16_t count) const {
    wire::Put put = Request(n, 0);
    put.parent = {};
    put.shard = {0, static_cast<uint16_t>(spec.layers.size()), 0, kWide};
    put.layer_begin = layer;
    put.layer_count = count;
    return put;
  }
  std::vector<KvView> Sources(uint16_t count) {
    auto* at = reinterpret_cast<std::byte*>(values.data());
    const int64_t row = kDepth * sizeof(float), head = row * kBlockTokens;
    return std::vector<KvView>(count, {at, at, row, head, row, head, DType::kF32});
  }
  void Drive() {
    while (codec.RunOne() | (loop.RunAll() > 0)) {
    }
  }
  bool PutBlocks(uint64_t first, uint64_t count) {
    bool ok = true;
    const auto layers = static_cast<uint16_t>(spec.layers.size());
    for (uint64_t n = first; n < first + count; ++n) {
      store->Put(caller, PutOf(n, 0, layers), Sources(layers), {},
                 [&](const wire::PutReply& r) { ok &= r.status.ok(); });
      Drive();
    }
    return ok;
  }
  std::vector<float> values;
};

// 512 blocks of `layers` layers: the whole call, and the release of its lease. Beside it as many
// finds in a table of their keys: the least that it can cost.
void Lookup512(benchmark::State& state) {
  World world(static_cast<uint16_t>(state.range(0)), 4ull << 30);
  constexpr uint64_t kBlocks = 512;
  if (!world.PutBlocks(1, kBlocks)) return state.SkipWithError("put failed");
  wire::Lookup look;
  look.context = world.context;
  look.shard = {0, static_cast<uint16_t>(world.spec.layers.size()), 0, World::kWide};
  std::unordered_map<record::BlockKey, int, BlockKeyHasher> table;
  for (uint64_t n = 1; n <= kBlocks; ++n) {
    look.hashes.push_back(World::Name(n));
    table[{world.caller.tenant, world.context, World::Name(n)}] = 1;
  }
  std::vector<double> calls, releases, finds;
  for (auto _ : state) {
    const double a = CpuUs();
    const wire::LookupReply reply = world.store->Lookup(world.caller, look);
    const double b = CpuUs();
    world.store->ReleaseLease(world.caller, reply.lease);
    const double c = CpuUs();
    int found = 0;
    for (const BlockHash& hash : look.hashes)
      found += table.find({world.caller.tenant, world.context, hash})->second;
    finds.push_back(CpuUs() - c);
    if (reply.run != kBlocks || found != kBlocks) return state.SkipWithError("lookup failed");
    calls.push_back(b - a);
    releases.push_back(c - b);
    world.store->Tick();
  }
  state.counters["call_us"] = Median(calls);
  state.counters["release_us"] = Median(releases);
  state.counters["finds_us"] = Median(finds);
}
BENCHMARK(Lookup512)->Arg(1)->Arg(32)->Iterations(300)->Unit(benchmark::kMicrosecond);

// One layer of a block more, of 32, while so many blocks are begun and room is short: what a put
// costs the loop before its codec job.
void PutLayer(benchmark::State& state) {
  World world(32);
  const auto open = static_cast<uint64_t>(state.range(0));
  constexpr uint64_t kHeld = 40;
  if (!world.PutBlocks(100'000, kHeld)) return state.SkipWithError("put failed");
  Status status;
  const auto put = [&](uint64_t n, uint16_t layer) {
    const wire::Put message = world.PutOf(n, layer, 1);
    std::vector<KvView> sources = world.Sources(1);
    const double start = CpuUs();
    world.store->Put(world.caller, message, std::move(sources), {}, [&](const wire::PutReply& r) {
      if (!r.status.ok()) status = r.status;
    });
    const double took = CpuUs() - start;
    world.Drive();
    return took;
  };
  world.store->SetBudget(world.store->stats().charged_bytes + (8u << 20) + open * (1u << 19));
  std::vector<double> first, next;
  for (uint64_t n = 1; n <= open; ++n) first.push_back(put(n, 0));
  uint64_t at = 0;
  for (auto _ : state) {
    next.push_back(put(1 + at % open, static_cast<uint16_t>(1 + at / open % 30)));
    ++at;
  }
  if (!status.ok()) state.SkipWithError(status.ToString().c_str());
  state.counters["first_layer_us"] = Median(first);
  state.counters["next_layer_us"] = Median(next);
}
BENCHMARK(PutLayer)->Arg(1)->Arg(32)->Arg(1000)->Iterations(25)->Unit(benchmark::kMicrosecond);

// A fetch of 32 layers of one block: what it costs the loop before its codec jobs.
void Fetch32(benchmark::State& state) {
  World world(32);
  if (!world.PutBlocks(1, 1)) return state.SkipWithError("put failed");
  wire::Lookup look;
  look.context = world.context;
  look.shard = {0, 32, 0, World::kWide};
  look.hashes = {World::Name(1)};
  const auto held = world.store->Lookup(world.caller, look);
  wire::Fetch fetch = world.FetchOf(held.lease);
  fetch.head_end = World::kWide;
  fetch.layer_count = 32;
  std::vector<float> out(world.values.size());
  auto* at = reinterpret_cast<std::byte*>(out.data());
  const int64_t row = World::kDepth * sizeof(float), head = row * kBlockTokens;
  std::vector<double> calls;
  for (auto _ : state) {
    std::vector<MutableKvView> targets(32, {at, at, row, head, row, head, DType::kF32});
    bool ok = false;
    const double start = CpuUs();
    world.store->Fetch(world.caller, fetch, std::move(targets), {},
                       [&](const Store::Fetched& f) { ok = f.reply.status.ok(); });
    calls.push_back(CpuUs() - start);
    world.Drive();
    if (!ok) return state.SkipWithError("fetch failed");
  }
  state.counters["segment_us"] = Median(calls) / 32;
}
BENCHMARK(Fetch32)->Iterations(100)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace dyna

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  dyna::SetLogLevel(dyna::LogLevel::kError);
  benchmark::RunSpecifiedBenchmarks();
}
