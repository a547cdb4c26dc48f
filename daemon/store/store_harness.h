// A store that a test drives by hand: fake clock, manual executor, codec jobs that run when told,
// disks in memory that survive a restart.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "client/base/clock.h"
#include "client/base/executor.h"
#include "daemon/store/store.h"
#include "daemon/tier/memory_spill.h"
#include "kernels/backend.h"

namespace dyna::testing {

class ManualCodec final : public CodecRunner {
 public:
  explicit ManualCodec(Executor& loop) : loop_(loop) {}
  void Run(size_t, std::function<void()> work, std::function<void()> done) override {
    jobs_.push_back({std::move(work), std::move(done)});
  }
  bool RunOne() {
    if (jobs_.empty()) return false;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    job.work();
    job.work = nullptr;
    loop_.Post(std::move(job.done));
    return true;
  }
  size_t waiting() const { return jobs_.size(); }
  void DropAll() { jobs_.clear(); }

 private:
  struct Job {
    std::function<void()> work, done;
  };
  Executor& loop_;
  std::deque<Job> jobs_;
};

// Defaults without a nursery: what is put is under the budget at once, as most tests want it.
inline StoreOptions NoNursery() {
  StoreOptions options;
  options.young_for = std::chrono::milliseconds(0);
  return options;
}

struct StoreHarness {
  static constexpr int kLayers = 2, kHeads = 2, kDim = 32;
  static constexpr size_t kTile = size_t{kBlockTokens} * kDim;    // elements of K or V of a head
  static constexpr size_t kBlock = 2 * kTile * kHeads * kLayers;  // floats of a block

  explicit StoreHarness(uint64_t arena_bytes = 4u << 20, StoreOptions opts = NoNursery())
      : options(std::move(opts)), arena_size(arena_bytes) {
    spec.model = "test";
    spec.dtype = DType::kF32;
    spec.ropes = {Rope{}};
    LayerShape shape;
    shape.kv_heads = kHeads;
    shape.q_heads = 2 * kHeads;
    shape.head_dim = kDim;
    shape.max_position = 8192;
    spec.layers.assign(kLayers, shape);
    Start();
    context = store->OpenContext(caller, spec, {})->context;
  }
  ~StoreHarness() { Stop(); }

  void Start() {
    if (!backend) backend = std::move(MakeCpuBackend("scalar").value());
    spill = std::make_unique<MemorySpill>(loop, spill_disk);
    bank = std::make_unique<MemorySpill>(loop, bank_disk);
    spill->SetBudget(64u << 20);
    bank->SetBudget(64u << 20);
    arena = std::move(Arena::Create({arena_size, 0, false}).value());
    store = std::make_unique<Store>(Store::Parts{clock, loop, codec, *backend, *arena,
                                                 with_spill ? spill.get() : nullptr, bank.get()},
                                    options);
    bool recovered = false;
    store->Recover([&](Status status) { recovered = status.ok(); });
    Settle();
    if (!recovered) std::abort();
  }
  // As after SIGKILL: what is in memory is gone.
  void Stop() {
    Settle();
    store.reset();
    Settle();
    arena.reset();
    spill.reset();
    bank.reset();
  }
  // SIGKILL in the middle of it: also what was on its way is gone.
  void Crash() {
    codec.DropAll();
    loop.DropAll();
    spill.reset();
    bank.reset();
    store.reset();
    arena.reset();
    Start();
  }
  void Restart() {
    Stop();
    Start();
  }
  // Until nothing is left to do.
  void Settle() {
    for (int i = 0; i < 10000; ++i) {
      const bool more = store && store->Tick();
      const bool ran = codec.RunOne() | (loop.RunAll() > 0);
      if (!ran && codec.waiting() == 0 && (!more || i > 400)) return;
    }
  }

  static BlockHash Name(uint64_t n) {
    BlockHash h;
    std::memcpy(h.bytes.data(), &n, sizeof n);
    return h;
  }
  // [layer][head][K, V][token][dim], the same for the same number.
  static std::vector<float> Data(uint64_t n) {
    std::mt19937_64 random(n);
    std::normal_distribution<float> normal;
    std::vector<float> out(kBlock);
    for (float& x : out) x = normal(random);
    return out;
  }
  static std::vector<MutableKvView> Views(std::vector<float>& data, int layer_begin, int layers,
                                          int head_begin) {
    std::vector<MutableKvView> out;
    const int64_t row = kDim * 4, tile = row * kBlockTokens;
    for (int l = layer_begin; l < layer_begin + layers; ++l) {
      auto* k = reinterpret_cast<std::byte*>(data.data()) + (l * kHeads + head_begin) * 2 * tile;
      out.push_back({k, k + tile, row, 2 * tile, row, 2 * tile, DType::kF32});
    }
    return out;
  }
  // The same to put from. Views what it is given.
  static std::vector<KvView> Sources(std::vector<float>& data, int layer_begin = 0,
                                     int layers = kLayers, int head_begin = 0) {
    std::vector<KvView> out;
    for (const auto& v : Views(data, layer_begin, layers, head_begin))
      out.push_back({v.k, v.v, v.k_token_stride, v.k_head_stride, v.v_token_stride, v.v_head_stride,
                     v.dtype});
    return out;
  }

  wire::Put Request(uint64_t n, uint32_t index,
                    QualityClass quality = QualityClass::kBalanced) const {
    wire::Put put;
    put.context = context;
    put.shard = {0, kLayers, 0, kHeads};
    put.layer_count = kLayers;
    put.first_index = index;
    put.parent = index == 0 ? BlockHash{} : Name(n - 1);
    put.hashes = {Name(n)};
    put.quality = quality;
    put.layout.dtype = DType::kF32;
    return put;
  }
  wire::PutReply Put(wire::Put put, std::vector<float> data, const Caller* who = nullptr) {
    const auto sources = Sources(data, put.layer_begin, put.layer_count, put.shard.head_begin);
    wire::PutReply reply;
    bool done = false;
    store->Put(who != nullptr ? *who : caller, put, sources, {}, [&](wire::PutReply r) {
      reply = std::move(r);
      done = true;
    });
    Settle();
    if (!done) reply.status = Internal("the put never ended");
    return reply;
  }
  Status PutBlock(uint64_t n, uint32_t index, QualityClass quality = QualityClass::kBalanced,
                  Durability durability = Durability::kVolatile) {
    wire::Put put = Request(n, index, quality);
    put.durability = durability;
    return Put(put, Data(n)).status;
  }
  // Durable and answered later, of a bank that is held: null until then.
  std::shared_ptr<std::optional<wire::PutReply>> PutUnanswered(uint64_t n) {
    wire::Put put = Request(n, 0);
    put.durability = Durability::kPersistent;
    auto data = std::make_shared<std::vector<float>>(Data(n));
    auto reply = std::make_shared<std::optional<wire::PutReply>>();
    store->Put(caller, put, Sources(*data), {data, {}},
               [reply](wire::PutReply r) { *reply = std::move(r); });
    Settle();
    return reply;
  }
  // Settled: INTERNAL where no answer came.
  wire::CountReply Pin(const wire::Pin& pin) {
    wire::CountReply reply{Internal("the pin never ended"), 0};
    store->Pin(caller, pin, [&](wire::CountReply r) { reply = std::move(r); });
    Settle();
    return reply;
  }
  wire::LookupReply Lookup(std::vector<uint64_t> numbers,
                           QualityClass floor = QualityClass::kSmall) {
    wire::Lookup look;
    look.context = context;
    look.shard = {0, kLayers, 0, kHeads};
    for (uint64_t n : numbers) look.hashes.push_back(Name(n));
    look.min_quality = floor;
    auto reply = store->Lookup(caller, look);
    return reply;
  }
  // The first blocks of a lease, whole.
  Store::Fetched Fetch(uint64_t lease, uint32_t at, std::vector<float>* out,
                       bool want_masks = false) {
    out->assign(kBlock, NAN);
    wire::Fetch fetch;
    fetch.context = context;
    fetch.lease = lease;
    fetch.head_end = kHeads;
    fetch.layer_count = kLayers;
    fetch.block_begin = at;
    fetch.block_count = 1;
    fetch.want_masks = want_masks;
    Store::Fetched result;
    result.reply.status = Internal("the fetch never ended");
    store->Fetch(caller, fetch, Views(*out, 0, kLayers, 0), {},
                 [&](Store::Fetched f) { result = std::move(f); });
    Settle();
    return result;
  }
  // Relative squared error of what is served for block n against what was put; 99: not served.
  double ErrorOf(uint64_t n) {
    std::vector<float> got;
    Status status = Internal("not asked");
    for (int i = 0; i < 20 && !status.ok(); ++i) {  // RETRY: room is being made
      const auto hit = Lookup({n});
      if (hit.run != 1) return 99;
      status = Fetch(hit.lease, 0, &got).reply.status;
      store->ReleaseLease(caller, hit.lease);
      Settle();
    }
    if (!status.ok()) {
      std::fprintf(stderr, "block %d: %s\n", static_cast<int>(n), status.ToString().c_str());
      return 99;
    }
    const auto want = Data(n);
    double error = 0, energy = 0;
    for (size_t i = 0; i < kBlock; ++i) {
      error += (got[i] - want[i]) * (got[i] - want[i]);
      energy += want[i] * want[i];
    }
    return error / energy;
  }

  // `mass` of tokens [from, to) in every layer and head, a little of the others.
  void Report(uint64_t leaf, size_t from, size_t to, float mass = .01f) {
    const size_t tokens = leaf * kBlockTokens;
    wire::Report r;
    r.context = context;
    r.kind = wire::ReportKind::kColumnMass;
    r.leaf = Name(leaf);
    r.layer_count = kLayers;
    r.head_end = kHeads;
    r.queries = 1;
    r.advance = 512;
    std::vector<float> x(tokens * kHeads * kLayers, 1e-4f);
    for (size_t i = 0; i < x.size(); ++i)
      if (i % tokens >= from && i % tokens < to) x[i] = mass;
    std::vector<std::byte> bytes(x.size() * sizeof(float));
    std::memcpy(bytes.data(), x.data(), bytes.size());
    Status status = Internal("not answered");
    store->Report(caller, r, bytes, [&](Status s) { status = s; });
    Settle();
    ASSERT_TRUE(status.ok()) << status.ToString();
  }
  // Everything that may leave memory leaves it; then there is room again.
  void Squeeze() {
    store->SetBudget(1024);
    for (int i = 0; i < 5; ++i) Settle();
    store->SetBudget(0);
  }
  // As before a clean stop.
  void Drain() {
    bool drained = false;
    store->Drain(clock.Now() + std::chrono::hours(1), [&] { drained = true; });
    Settle();
    ASSERT_TRUE(drained);
  }
  // The first blocks of a lease, whole.
  wire::Fetch FetchOf(uint64_t lease, uint32_t blocks = 1) const {
    wire::Fetch fetch;
    fetch.context = context;
    fetch.lease = lease;
    fetch.head_end = kHeads;
    fetch.layer_count = kLayers;
    fetch.block_count = blocks;
    return fetch;
  }
  void Wait(int ms = 1500) {
    clock.Advance(std::chrono::milliseconds(ms));
    Settle();
  }

  FakeClock clock;
  ManualExecutor loop{clock};
  ManualCodec codec{loop};
  StoreOptions options;
  uint64_t arena_size;
  bool with_spill = true;  // from the next Start on
  std::shared_ptr<MemoryDisk> spill_disk = std::make_shared<MemoryDisk>();
  std::shared_ptr<MemoryDisk> bank_disk = std::make_shared<MemoryDisk>();
  std::unique_ptr<Backend> backend;
  std::unique_ptr<MemorySpill> spill, bank;
  std::unique_ptr<Arena> arena;
  std::unique_ptr<Store> store;
  ContextSpec spec;
  Fingerprint context = 0;
  Caller caller{1, 42};
};

}  // namespace dyna::testing
