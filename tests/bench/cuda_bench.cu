// The codec on a CUDA device, over distinct data larger than its caches: traffic (bytes read and
// written) per second, as a share of a device-to-device copy's in the same run. Batches are planned
// and uploaded once; what is timed is the kernels. Medians of several launches.
//
//   cuda_bench [--gib 4] [--only NAME[,NAME...]]
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_batch.h"
#include "kernels/cuda/device_moments.h"
#include "kernels/cuda/score_kernels.h"
#include "kernels/test_data.h"

namespace dyna::cuda {
namespace {

void Must(const Status& s) {
  if (s.ok()) return;
  std::printf("%s\n", s.ToString().c_str());
  std::exit(1);
}

// About normal: the sum of 8 uniform bytes of a hash. Distinct everywhere.
__global__ void Fill(__nv_bfloat16* out, size_t count, uint64_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    int sum = 0;
    for (int k = 0; k < 8; ++k) sum += static_cast<int>(z >> (8 * k) & 255);
    out[i] = __float2bfloat16((static_cast<float>(sum) - 1020.0f) / 209.0f);
  }
}

// Median milliseconds of `work`.
template <typename F>
double Time(const F& work, int runs = 7) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> ms(static_cast<size_t>(runs));
  work();
  for (float& m : ms) {
    cudaEventRecord(begin);
    work();
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    cudaEventElapsedTime(&m, begin, end);
  }
  Must(LastError("timed work"));
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(ms.begin(), ms.end());
  return ms[ms.size() / 2];
}

struct Shape {
  const char* name;
  int d;
  Frame frame;
  double k_target;  // -1: plain8
  int v_bits;
  bool mixed;
  bool measure;
  // False: that side is kind none, of which an encode reads and writes nothing. Encode only: a
  // decode would write its zeros.
  bool k = true, v = true;
};

constexpr int kHeads = 8;
double copy_rate = 0;  // bytes per second

void Report(const char* name, const char* what, double bytes, double ms, double raw) {
  const double rate = bytes / (ms * 1e-3);
  std::printf("%-26s %-10s %8.3f ms %8.1f GB/s of traffic  %.3f x copy  %8.1f GB/s of bf16\n", name,
              what, ms, rate * 1e-9, rate / copy_rate, raw / (ms * 1e-3) * 1e-9);
  std::fflush(stdout);
}

class Bench {
 public:
  Bench(const Shape& shape, size_t bytes) : shape_(shape), random_(1), batch_(&plain_) {
    Must(plain_.Open());
    const size_t block = size_t{2} * kHeads * RawTileBytes(shape.d, DType::kBf16);
    const int layers = 256 / kHeads;  // 256 bases, one for each layer and head
    blocks_ = static_cast<int>(bytes / block / static_cast<size_t>(layers));
    raw_ = block * static_cast<size_t>(layers) * static_cast<size_t>(blocks_);
    Must(source_.Reserve(raw_));
    Fill<<<4096, 256>>>(reinterpret_cast<__nv_bfloat16*>(source_.data()), raw_ / 2, 99);
    rope_table_ = std::make_shared<const RopeTable>(testing::MakeRope(shape.d));
    auto rope = DeviceRope::Create(rope_table_);
    Must(rope.status());
    rope_ = *rope;
    testing::Model model;
    model.d = shape.d;
    model.kv_heads = kHeads;
    model.frame = shape.frame;
    model.decay = shape.d == 64 ? .93 : .965;
    for (int layer = 0; layer < layers && shape.k_target >= 0; ++layer) {
      auto basis = DeviceBasis::Create(model.MakeBasis(random_, static_cast<uint16_t>(layer)));
      Must(basis.status());
      bases_.push_back(*basis);
    }
    MakeEncode(layers, block);
  }

  void Run() {
    const double plan_ms = Plan();
    Must(batch_.Upload(nullptr));
    const double ms = Time([&] { Must(batch_.Launch(nullptr)); });
    Must(batch_.Collect(nullptr));
    size_t segments = 0;
    for (const DeviceEncode& job : encodes_) {
      Must(job.status);
      segments += job.place.bytes;
    }
    const double moved = static_cast<double>(raw_) / (shape_.k && shape_.v ? 1 : 2);
    const double traffic = moved + static_cast<double>(segments);
    Report(shape_.name, "encode", traffic, ms, moved);
    std::printf("%-26s %zu segments, %.2f x smaller, planned in %.1f ms, nmse %.5f\n", "",
                encodes_.size(), static_cast<double>(raw_) / static_cast<double>(segments), plan_ms,
                encodes_[0].place.nmse);
    if (!shape_.k || !shape_.v) return;
    Transcode(segments);
    Moments(ms);
    std::vector<DeviceDecode> decodes;
    for (const DeviceEncode& job : encodes_) {
      DeviceDecode d;
      d.place = &job.place;
      d.segment = job.out;
      d.basis = job.basis;
      d.rope = job.rope;
      d.head_end = kHeads;
      d.target = job.source;  // over the source: as large, and written only
      decodes.push_back(d);
    }
    batch_.PlanDecode(decodes);
    for (const DeviceDecode& d : decodes) Must(d.status);
    Must(batch_.Upload(nullptr));
    const double decode_ms = Time([&] { Must(batch_.Launch(nullptr)); });
    Report(shape_.name, "decode", traffic, decode_ms, moved);
  }

 private:
  void MakeEncode(int layers, size_t block) {
    const int64_t row = 2 * shape_.d;
    for (int b = 0; b < blocks_; ++b)
      for (int layer = 0; layer < layers; ++layer) {
        DeviceEncode job;
        const size_t index = static_cast<size_t>(b * layers + layer);
        job.id.head_dim = static_cast<uint16_t>(shape_.d);
        job.id.kv_heads = kHeads;
        job.id.block_index = static_cast<uint32_t>(b + 1);
        job.id.fingerprint = 7;
        job.id.layer = static_cast<uint16_t>(layer);
        job.measure_x = shape_.measure;
        const DeviceBasis* basis =
            bases_.empty() ? nullptr : bases_[static_cast<size_t>(layer)].get();
        job.basis = basis;
        job.id.basis = basis == nullptr ? 0 : basis->basis().name();
        job.rope = shape_.frame == Frame::kPre ? rope_.get() : nullptr;
        // NHD: [token][head][d] of K, then of V.
        job.source.k = {source_.data() + index * block, kHeads * row, row};
        job.source.v = {source_.data() + index * block + block / 2, kHeads * row, row};
        encodes_.push_back(job);
        std::vector<TilePlan> plan(kHeads);
        for (int h = 0; h < kHeads; ++h) plan[static_cast<size_t>(h)] = PlanOf(basis, h);
        plans_.push_back(plan);
      }
    size_t at = 0;
    std::vector<size_t> offsets;
    for (size_t i = 0; i < encodes_.size(); ++i) {
      const Basis* basis = encodes_[i].basis == nullptr ? nullptr : &encodes_[i].basis->basis();
      offsets.push_back(at);
      encodes_[i].capacity = EncodedBytes(encodes_[i].id, plans_[i], 0, basis);
      at += encodes_[i].capacity;
    }
    Must(out_.Reserve(at));
    for (size_t i = 0; i < encodes_.size(); ++i) {
      encodes_[i].out = out_.data() + offsets[i];
      encodes_[i].plan = plans_[i];
    }
  }

  TilePlan PlanOf(const DeviceBasis* basis, int head) const {
    TilePlan p;
    p.v_kind = shape_.v ? kind::VBits(shape_.v_bits) : kind::kNone;
    if (!shape_.k) p.k_kind = kind::kNone;
    if (basis == nullptr || !shape_.k) return p;
    p.k_kind = kind::Level(basis->basis().LevelOf(shape_.k_target));
    if (shape_.mixed) {
      constexpr double kTargets[] = {.75, 1, 1.5, 2, 2.5, 3, 4, 5};
      constexpr int kBits[] = {1, 2, 2, 4, 2, 4, 8, 4};
      p.k_kind = kind::Level(basis->basis().LevelOf(kTargets[head]));
      p.v_kind = kind::VBits(kBits[head]);
    }
    return p;
  }

  double Plan() {
    const auto begin = std::chrono::steady_clock::now();
    batch_.PlanEncode(encodes_);
    const auto end = std::chrono::steady_clock::now();
    return std::chrono::duration<double, std::milli>(end - begin).count();
  }

  // From what was encoded to half of it.
  void Transcode(size_t segments) {
    if (shape_.v_bits < 4 || shape_.mixed) return;
    std::vector<DeviceTranscode> jobs;
    std::vector<std::vector<TilePlan>> plans;
    DeviceMemory to;
    Must(to.Reserve(segments));
    for (const DeviceEncode& job : encodes_) {
      plans.emplace_back(kHeads);
      for (TilePlan& p : plans.back()) {
        p.v_kind = kind::VBits(shape_.v_bits / 2);
        p.k_kind = job.basis == nullptr
                       ? kind::kPlain4
                       : kind::Level(job.basis->basis().LevelOf(shape_.k_target / 2));
      }
    }
    size_t at = 0;
    for (size_t i = 0; i < encodes_.size(); ++i) {
      const DeviceEncode& job = encodes_[i];
      DeviceTranscode t;
      t.from = &job.place;
      t.segment = job.out;
      t.basis = job.basis;
      t.rope = job.rope;
      t.plan = plans[i];
      t.out = to.data() + at;
      t.capacity = job.place.bytes;
      at += job.place.bytes;
      jobs.push_back(t);
    }
    DeviceBatch batch(&plain_);
    batch.PlanTranscode(jobs);
    Must(batch.Upload(nullptr));
    const double ms = Time([&] { Must(batch.Launch(nullptr)); });
    Must(batch.Collect(nullptr));
    size_t written = 0;
    for (const DeviceTranscode& t : jobs) {
      Must(t.status);
      written += t.place.bytes;
    }
    Report(shape_.name, "demote", static_cast<double>(segments + written), ms,
           static_cast<double>(raw_));
  }

  // What teaches a basis, of the K that an encode took `encode_ms` for: of one block in 64 (a
  // context that has its bases) and of all, each added to its layer's sums or with sums of its own.
  void Moments(double encode_ms) {
    if (bases_.empty() || shape_.mixed || shape_.measure) return;
    struct Case {
      const char* name;
      size_t every;
      bool by_layer;
    };
    for (const Case& c :
         {Case{"1 in 64", 64, false}, Case{"all by layer", 1, true}, Case{"all", 1, false}}) {
      const size_t layers = 256 / kHeads;
      std::vector<DeviceMoments> jobs;
      for (size_t i = 0; i < encodes_.size(); ++i) {
        if (i / layers % c.every != 0) continue;
        DeviceMoments job;
        job.rows = encodes_[i].source.k;
        job.rope = encodes_[i].rope;
        job.first_position = uint64_t{encodes_[i].id.block_index} * kBlockTokens;
        job.heads = kHeads;
        if (c.by_layer) job.sum_of = bases_[i % layers].get();
        jobs.push_back(job);
      }
      DeviceMomentsBatch batch;
      batch.Plan(jobs, shape_.d, true);
      Must(batch.Upload(nullptr));
      const double ms = Time([&] { Must(batch.Launch(nullptr)); });
      std::printf("%-26s moments of %-12s %8.3f ms, %.4f x encode, %zu tiles in %zu sums\n",
                  shape_.name, c.name, ms, ms / encode_ms, batch.tiles(), batch.sums());
    }
  }

  const Shape shape_;
  std::mt19937 random_;
  PlainRuns plain_;
  DeviceMemory source_, out_;
  std::shared_ptr<const RopeTable> rope_table_;
  std::shared_ptr<const DeviceRope> rope_;
  std::vector<std::shared_ptr<const DeviceBasis>> bases_;
  std::vector<DeviceEncode> encodes_;
  std::vector<std::vector<TilePlan>> plans_;
  DeviceBatch batch_;
  int blocks_ = 0;
  size_t raw_ = 0;
};

__global__ void FillFloats(float* out, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x)
    out[i] = static_cast<float>((i * 0x9E3779B97F4A7C15ull >> 40) & 0xffff) / 32768.0f - 1;
}

// The best of some calls, in milliseconds of the caller.
template <typename F>
double Best(const F& call, int runs) {
  double best = 1e30;
  for (int run = 0; run < runs; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    best = std::min(best, took.count());
  }
  return best;
}

// A window of 64 queries over 102,400 tokens, 32 query heads and 8 kv heads: the kernels alone,
// over K that is decoded already, and the whole call for a chain in host memory, on either backend.
void MeasureScore() {
  constexpr int kD = 128, kGroup = 4, kQueries = 64, kBlocks = 1600, kRows = kQueries * kGroup;
  constexpr size_t kFloats = size_t{kBlocks} * kHeads * 64 * kD;
  DeviceMemory k, q, parts, rest, partial, relative;
  Must(k.Reserve(4 * kFloats));
  Must(q.Reserve(size_t{4} * kHeads * kRows * kD));
  Must(parts.Reserve(q.size()));
  Must(partial.Reserve(sizeof(Mass) * kBlocks * kHeads * kRows));
  Must(relative.Reserve(size_t{4} * kHeads * kBlocks * 64));
  FillFloats<<<4096, 256>>>(reinterpret_cast<float*>(k.data()), kFloats);
  FillFloats<<<64, 256>>>(reinterpret_cast<float*>(q.data()), size_t{kHeads} * kRows * kD);
  const std::vector<TokenRange> seen(kQueries, {4, kBlocks * 64});
  const std::vector<float> visible(kQueries, kBlocks * 64.0f);
  const std::vector<uint64_t> alive(size_t{kBlocks} * kHeads, ~uint64_t{0});
  const std::vector<Mass> none(size_t{kHeads} * kRows, {-1e30f, 0});
  std::byte* at = nullptr;
  const auto put = [&](const auto& v) {
    using T = typename std::decay_t<decltype(v)>::value_type;
    std::byte* to = at;
    cudaMemcpy(to, v.data(), sizeof(T) * v.size(), cudaMemcpyHostToDevice);
    at += (sizeof(T) * v.size() + 255) / 256 * 256;
    return reinterpret_cast<T*>(to);
  };
  Must(rest.Reserve(1 << 20));
  at = rest.data();
  auto* of_queries = reinterpret_cast<QueryPart*>(parts.data());
  ScoreRows rows{reinterpret_cast<const float*>(q.data()),
                 of_queries,
                 kRows,
                 kGroup,
                 kGroup,
                 kHeads,
                 kD,
                 put(seen)};
  const ScoreBlocks blocks{reinterpret_cast<const float*>(k.data()), put(alive), 0, kBlocks};
  Mass* mass = put(none);
  const float* of_query = put(visible);
  const double ms = Time([&] {
    LaunchSplitQueries(rows, of_queries, nullptr);
    LaunchScoreMass(rows, blocks, reinterpret_cast<Mass*>(partial.data()), mass, nullptr);
    LaunchScoreWeights(rows, blocks, mass, nullptr, of_query,
                       reinterpret_cast<float*>(relative.data()), kBlocks * 64, nullptr);
  });
  Must(LastError("score"));
  std::printf("score kernels, 64 queries over 102400 tokens, 32 / 8 heads: %.3f ms\n", ms);

  testing::Model model;
  model.d = kD;
  model.kv_heads = kHeads;
  std::mt19937 random(5);
  const auto basis = model.MakeBasis(random);
  const RopeTable table(testing::MakeRope(kD));
  testing::KvBuffer kv(kHeads, kD, DType::kBf16);
  testing::FillKv(model, testing::MakeRope(kD), 0, random, &kv);
  auto cpu = MakeCpuBackend();
  auto cuda = MakeCudaBackend();
  Must(cpu.status());
  Must(cuda.status());
  const std::vector<TilePlan> plan(kHeads,
                                   {kind::Level(basis->LevelOf(2)), kind::VBits(2), ~uint64_t{0}});
  std::vector<testing::AlignedBytes> segments;
  std::vector<ScoreJob::Block> chain;
  for (uint32_t i = 0; i < kBlocks; ++i) {
    EncodeJob job;
    job.id = testing::MakeId(kD, kHeads, DType::kBf16, basis.get(), i);
    testing::AlignedBytes out(EncodedBytes(job.id, plan, 0, basis.get()));
    job.source = kv.view();
    job.basis = basis.get();
    job.rope = &table;
    job.plan = plan;
    job.out = out.span();
    (*cpu)->Encode({&job, 1});
    Must(job.status);
    segments.push_back(std::move(out));
  }
  for (testing::AlignedBytes& s : segments) chain.push_back({s.span(), basis.get(), &table});
  std::vector<float> queries(size_t{kQueries} * kHeads * kGroup * kD),
      scores(size_t{kHeads} * kBlocks * 64);
  std::normal_distribution<float> normal;
  for (float& x : queries) x = normal(random);
  for (Backend* backend : {cuda->get(), cpu->get()}) {
    ScoreJob job;
    job.chain = chain;
    job.queries = queries;
    job.first_query_position = kBlocks * 64 - kQueries;
    job.q_heads = kHeads * kGroup;
    job.scale = .0884f;
    job.relative = scores;
    const double best = Best([&] { backend->Score({&job, 1}); }, backend == cuda->get() ? 7 : 1);
    Must(job.status);
    std::printf("the same by the backend, K at L2 in host memory, %s: %.1f ms\n",
                std::string(backend->description()).c_str(), best);
  }
}

// Whole calls over host memory: 8 blocks of 32 layers, 8 kv heads, d 128, bf16.
void MeasureCalls() {
  constexpr int kD = 128, kLayers = 32, kJobs = 8 * kLayers;
  testing::Model model;
  model.d = kD;
  model.kv_heads = kHeads;
  std::mt19937 random(5);
  const auto basis = model.MakeBasis(random);
  const RopeTable table(testing::MakeRope(kD));
  auto cpu = MakeCpuBackend();
  auto cuda = MakeCudaBackend();
  Must(cpu.status());
  Must(cuda.status());
  const std::vector<TilePlan> plan(kHeads,
                                   {kind::Level(basis->LevelOf(2)), kind::VBits(2), ~uint64_t{0}});
  testing::KvBuffer kv(kHeads, kD, DType::kBf16);
  testing::FillKv(model, testing::MakeRope(kD), 0, random, &kv);
  std::vector<testing::KvBuffer> sources(kJobs, kv);  // not in a cache
  std::vector<testing::AlignedBytes> segments;
  std::vector<EncodeJob> encodes(kJobs);
  std::vector<MomentsJob> own(kJobs), by_layer;
  const size_t triangle = UpperTriangle(kD);
  std::vector<std::vector<float>> scatter(kJobs, std::vector<float>(kHeads * triangle));
  std::vector<float> sum(size_t{kHeads} * kD);
  std::vector<uint32_t> count(kHeads);
  segments.reserve(kJobs);
  for (size_t i = 0; i < kJobs; ++i) {
    EncodeJob& job = encodes[i];
    job.id = testing::MakeId(kD, kHeads, DType::kBf16, basis.get(), 0);
    job.source = sources[i].view();
    job.basis = basis.get();
    job.rope = &table;
    job.plan = plan;
    segments.emplace_back(EncodedBytes(job.id, plan, 0, basis.get()));
    job.out = segments.back().span();
    MomentsJob& m = own[i];
    m.source = job.source;
    m.rope = &table;
    m.kv_heads = kHeads;
    m.head_dim = kD;
    m.count = count;
    m.sum = sum;
    m.scatter = scatter[i];
    by_layer.push_back(m);
    by_layer.back().scatter = scatter[i % kLayers];
  }
  for (Backend* backend : {cuda->get(), cpu->get()}) {
    const int runs = backend == cuda->get() ? 9 : 2;
    const double encode = Best([&] { backend->Encode(encodes); }, runs);
    const double each = Best([&] { backend->Moments(own); }, runs);
    const double layer = Best([&] { backend->Moments(by_layer); }, runs);
    Must(encodes[0].status);
    Must(own[0].status);
    std::printf(
        "call of %d segments, host memory, %s: encode %.2f ms, moments %.2f, by layer %.2f "
        "(of 1 in 64: %.4f x encode)\n",
        kJobs, std::string(backend->description()).c_str(), encode, each, layer,
        each / encode / 64);
  }
}

void MeasureCopy(size_t bytes) {
  DeviceMemory from, to;
  Must(from.Reserve(bytes));
  Must(to.Reserve(bytes));
  Fill<<<4096, 256>>>(reinterpret_cast<__nv_bfloat16*>(from.data()), bytes / 2, 7);
  const double ms = Time(
      [&] { cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, nullptr); });
  copy_rate = 2 * static_cast<double>(bytes) / (ms * 1e-3);
  std::printf("device copy of %.1f GiB: %.3f ms, %.1f GB/s of traffic\n",
              static_cast<double>(bytes) / (1 << 30), ms, copy_rate * 1e-9);
}

// Is a part of the list `only` a part of the name?
bool Chosen(const std::string& only, const std::string& name) {
  for (size_t at = 0; at <= only.size();) {
    const size_t end = std::min(only.find(',', at), only.size());
    if (name.find(only.substr(at, end - at)) != std::string::npos) return true;
    at = end + 1;
  }
  return false;
}

}  // namespace
}  // namespace dyna::cuda

int main(int argc, char** argv) {
  using namespace dyna::cuda;
  size_t gib = 4;
  std::string only;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--gib") == 0) gib = std::stoul(argv[i + 1]);
    if (std::strcmp(argv[i], "--only") == 0) only = argv[i + 1];
  }
  if (DeviceCount() == 0) {
    std::printf("no CUDA device\n");
    return 1;
  }
  std::printf("%s\n", DeviceName().c_str());
  MeasureCopy(gib << 30);
  using dyna::Frame;
  constexpr Shape kShapes[] = {
      {"d128 L2 V2 pre", 128, Frame::kPre, 2, 2, false, false},
      {"d128 L2 V2 pre measured", 128, Frame::kPre, 2, 2, false, true},
      {"d128 L2 V2 post", 128, Frame::kPost, 2, 2, false, false},
      {"d128 L4 V4 pre", 128, Frame::kPre, 4, 4, false, false},
      {"d128 plain8 V8", 128, Frame::kPost, -1, 8, false, false},
      {"d128 mixed pre", 128, Frame::kPre, 2, 2, true, false},
      {"d128 L2 alone pre", 128, Frame::kPre, 2, 2, false, false, true, false},
      {"d128 V2 alone", 128, Frame::kPost, -1, 2, false, false, false, true},
      {"d128 plain8 alone", 128, Frame::kPost, -1, 8, false, false, true, false},
      {"d128 V8 alone", 128, Frame::kPost, -1, 8, false, false, false, true},
      {"d64 L2 V2 pre", 64, Frame::kPre, 2, 2, false, false},
      {"d64 plain8 V8", 64, Frame::kPost, -1, 8, false, false},
      {"d256 L2 V2 pre", 256, Frame::kPre, 2, 2, false, false},
  };
  for (const Shape& shape : kShapes)
    if (Chosen(only, shape.name)) Bench(shape, gib << 30).Run();
  if (Chosen(only, "score")) MeasureScore();
  if (Chosen(only, "calls")) MeasureCalls();
  return 0;
}
