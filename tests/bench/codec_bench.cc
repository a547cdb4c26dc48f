// The codec on one core, from DRAM: fp16 bytes of K and V per second, and as a share of memcpy of
// the same bytes measured in the same run, just before.
//
//   codec_bench --benchmark_filter='auto'        (or scalar, avx2, avx512)
#include <benchmark/benchmark.h>

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>

#include "kernels/backend.h"
#include "kernels/crc32c.h"
#include "kernels/test_data.h"

namespace dyna {
namespace {

using testing::AlignedBytes;
using testing::KvBuffer;
using testing::Model;

constexpr size_t kSourceBytes = size_t{256} << 20;  // beyond every cache
constexpr int kHeads = 8;

// Processor time, as the rates below are: other load on the machine then costs both the same.
double ThreadSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double MemcpyBytesPerSecond() {
  static std::vector<std::byte> from(kSourceBytes, std::byte{1}), to(kSourceBytes, std::byte{2});
  std::vector<double> rates;
  for (int i = 0; i < 5; ++i) {
    const double begin = ThreadSeconds();
    std::memcpy(to.data(), from.data(), kSourceBytes);
    benchmark::DoNotOptimize(to.data());
    rates.push_back(static_cast<double>(kSourceBytes) / (ThreadSeconds() - begin));
  }
  std::sort(rates.begin(), rates.end());
  return rates[2];
}

// Many segments of one shape, in fp16, larger than the caches together. Decode writes its rows
// back over them: lossy, equally large.
struct World {
  explicit World(int head_dim) : d(head_dim), rope(testing::MakeRope(head_dim)), table(rope) {
    std::mt19937 random(1);
    model.d = d;
    model.kv_heads = kHeads;
    model.decay = d == 64 ? .93 : .965;
    basis = model.MakeBasis(random);
    KvBuffer one(kHeads, d, DType::kF16);
    testing::FillKv(model, rope, 3, random, &one);
    raw_bytes = static_cast<size_t>(kHeads * 2 * kBlockTokens * d * 2);
    count = kSourceBytes / raw_bytes;
    source.resize(count * raw_bytes);
    for (size_t i = 0; i < count; ++i)
      std::memcpy(&source[i * raw_bytes], one.bytes.data(), raw_bytes);
    one_view = one.view();
    one_base = one.bytes.data();
  }
  KvView View(size_t i) {
    KvView view = one_view;
    view.k = &source[i * raw_bytes] + (one_view.k - one_base);
    view.v = &source[i * raw_bytes] + (one_view.v - one_base);
    return view;
  }
  MutableKvView Target(size_t i) {
    const KvView v = View(i);
    return {const_cast<std::byte*>(v.k),
            const_cast<std::byte*>(v.v),
            v.k_token_stride,
            v.k_head_stride,
            v.v_token_stride,
            v.v_head_stride,
            v.dtype};
  }
  int d;
  Rope rope;
  RopeTable table;
  Model model;
  std::shared_ptr<const Basis> basis;
  size_t raw_bytes = 0, count = 0;
  std::vector<std::byte> source;
  KvView one_view;
  const std::byte* one_base = nullptr;
};

World& WorldOf(int d) {
  static std::map<int, std::unique_ptr<World>> worlds;
  if (!worlds[d]) {
    worlds.clear();
    worlds[d] = std::make_unique<World>(d);
  }
  return *worlds[d];
}

struct Kinds {
  const char* name;
  double k_target;  // of the level; 0: plain8
  int v_bits;
  TilePlan Plan(const Basis& basis) const {
    return {k_target > 0 ? kind::Level(basis.LevelOf(k_target)) : kind::kPlain8,
            kind::VBits(v_bits)};
  }
};
constexpr Kinds kL2V2 = {"L2V2", 2, 2}, kPlain8V8 = {"plain8V8", 0, 8}, kL4V4 = {"L4V4", 4, 4};

void Report(benchmark::State& state, const World& world, double memcpy_rate) {
  const double bytes =
      static_cast<double>(state.iterations()) * static_cast<double>(world.raw_bytes);
  state.SetBytesProcessed(static_cast<int64_t>(bytes));
  state.counters["vs_memcpy"] =
      benchmark::Counter(bytes / memcpy_rate, benchmark::Counter::kIsRate);
  state.counters["memcpy_GBps"] = memcpy_rate * 1e-9;
}

EncodeJob JobOf(World& world, size_t i, std::span<const TilePlan> plan, std::span<std::byte> out) {
  EncodeJob job;
  job.id = testing::MakeId(world.d, kHeads, DType::kF16, world.basis.get(), 3);
  job.source = world.View(i);
  job.basis = world.basis.get();
  job.rope = &world.table;
  job.pins = 0;
  job.plan = plan;
  job.out = out;
  return job;
}

void Encode(benchmark::State& state, const char* isa, Kinds kinds, int d) {
  auto backend = MakeCpuBackend(isa);
  if (!backend.ok()) return state.SkipWithError("not on this machine");
  World& world = WorldOf(d);
  state.SetLabel(std::string((*backend)->description()));
  const std::vector<TilePlan> plan(kHeads, kinds.Plan(*world.basis));
  const SegmentId id = testing::MakeId(d, kHeads, DType::kF16, world.basis.get(), 3);
  AlignedBytes out(EncodedBytes(id, plan, 0, world.basis.get()) * 512);
  const size_t bytes = out.size / 512;
  const double memcpy_rate = MemcpyBytesPerSecond();
  size_t i = 0;
  for (auto _ : state) {
    EncodeJob job = JobOf(world, i % world.count, plan, out.span().subspan(i % 512 * bytes, bytes));
    (*backend)->Encode({&job, 1});
    if (!job.status.ok()) return state.SkipWithError(job.status.ToString().c_str());
    ++i;
  }
  Report(state, world, memcpy_rate);
}

void Decode(benchmark::State& state, const char* isa, Kinds kinds, int d) {
  auto backend = MakeCpuBackend(isa);
  if (!backend.ok()) return state.SkipWithError("not on this machine");
  World& world = WorldOf(d);
  state.SetLabel(std::string((*backend)->description()));
  const std::vector<TilePlan> plan(kHeads, kinds.Plan(*world.basis));
  const SegmentId id = testing::MakeId(d, kHeads, DType::kF16, world.basis.get(), 3);
  const size_t bytes = EncodedBytes(id, plan, 0, world.basis.get());
  AlignedBytes segments(bytes * world.count);
  EncodeJob encode = JobOf(world, 0, plan, segments.span().first(bytes));
  (*backend)->Encode({&encode, 1});
  for (size_t i = 1; i < world.count; ++i)
    std::memcpy(segments.span().data() + i * bytes, segments.span().data(), bytes);
  const double memcpy_rate = MemcpyBytesPerSecond();
  size_t i = 0;
  for (auto _ : state) {
    const size_t at = i++ % world.count;
    DecodeJob job;
    job.segment = segments.span().subspan(at * bytes, bytes);
    job.basis = world.basis.get();
    job.rope = &world.table;
    job.head_end = kHeads;
    job.target = world.Target(at);
    (*backend)->Decode({&job, 1});
    if (!job.status.ok()) return state.SkipWithError(job.status.ToString().c_str());
  }
  Report(state, world, memcpy_rate);
}

// L4 and V 4 bits -> L2 and V 2 bits, in the coded domain; counted in fp16 bytes it stands for.
void Demote(benchmark::State& state, const char* isa, Kinds from, Kinds to, int d) {
  auto backend = MakeCpuBackend(isa);
  if (!backend.ok()) return state.SkipWithError("not on this machine");
  World& world = WorldOf(d);
  state.SetLabel(std::string((*backend)->description()));
  const std::vector<TilePlan> high(kHeads, from.Plan(*world.basis)),
      low(kHeads, to.Plan(*world.basis));
  const SegmentId id = testing::MakeId(d, kHeads, DType::kF16, world.basis.get(), 3);
  const size_t bytes = EncodedBytes(id, high, 0, world.basis.get());
  AlignedBytes segments(bytes * world.count);
  EncodeJob encode = JobOf(world, 0, high, segments.span().first(bytes));
  (*backend)->Encode({&encode, 1});
  for (size_t i = 1; i < world.count; ++i)
    std::memcpy(segments.span().data() + i * bytes, segments.span().data(), bytes);
  AlignedBytes out(EncodedBytes(id, low, 0, world.basis.get()));
  const double memcpy_rate = MemcpyBytesPerSecond();
  size_t i = 0;
  for (auto _ : state) {
    TranscodeJob job;
    job.segment = segments.span().subspan(i++ % world.count * bytes, bytes);
    job.basis = world.basis.get();
    job.rope = &world.table;
    job.plan = low;
    job.out = out.span();
    (*backend)->Transcode({&job, 1});
    if (!job.status.ok()) return state.SkipWithError(job.status.ToString().c_str());
  }
  Report(state, world, memcpy_rate);
}

void Checksum(benchmark::State& state, bool copy) {
  static std::vector<std::byte> from(kSourceBytes, std::byte{1}), to(kSourceBytes, std::byte{2});
  const double memcpy_rate = MemcpyBytesPerSecond();
  constexpr size_t kChunk = 512 << 10;
  size_t i = 0;
  for (auto _ : state) {
    const size_t at = i++ % (kSourceBytes / kChunk) * kChunk;
    const std::span<const std::byte> chunk(&from[at], kChunk);
    benchmark::DoNotOptimize(copy ? CopyCrc32c(&to[at], chunk) : Crc32c(chunk));
  }
  const double bytes = static_cast<double>(state.iterations()) * kChunk;
  state.SetBytesProcessed(static_cast<int64_t>(bytes));
  state.counters["vs_memcpy"] =
      benchmark::Counter(bytes / memcpy_rate, benchmark::Counter::kIsRate);
}

void Register() {
  using benchmark::RegisterBenchmark;
  for (const int d : {64, 128}) {
    const std::string dim = "/d" + std::to_string(d) + "/";
    for (const char* isa : {"auto", "scalar", "avx2", "avx512"}) {
      for (const Kinds& kinds : {kL2V2, kPlain8V8}) {
        RegisterBenchmark(("encode/" + std::string(kinds.name) + dim + isa).c_str(), Encode, isa,
                          kinds, d);
        RegisterBenchmark(("decode/" + std::string(kinds.name) + dim + isa).c_str(), Decode, isa,
                          kinds, d);
      }
      RegisterBenchmark(("demote/L4V4-L2V2" + dim + isa).c_str(), Demote, isa, kL4V4, kL2V2, d);
      RegisterBenchmark(("demote/plain8V8-L2V2" + dim + isa).c_str(), Demote, isa, kPlain8V8, kL2V2,
                        d);
    }
  }
  RegisterBenchmark("crc32c/read", Checksum, false);
  RegisterBenchmark("crc32c/copy", Checksum, true);
}

}  // namespace
}  // namespace dyna

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  dyna::Register();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
