// K and V in memory of the GPU, through a whole daemon on the same GPU: first messages of 8 MiB
// (one block) under fixed kinds, then a long context that is put, fetched, demoted and fetched
// again. Nothing of it touches the host but the encoded segments. Rates are of the bf16 bytes,
// beside a device-to-device copy and copies between the device and pinned memory in the same run.
//
//   device_bench [--tokens N] [--threads N] [--staged] [--unpinned] [--short]
// --staged: the same without registering the memory, so that the library copies through the host.
// --unpinned: an arena that the GPU does not reach by itself. --short: only the messages.
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <functional>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "client/client.h"
#include "tests/bench/model_kv.h"
#include "tests/support/daemon_process.h"

namespace dyna {
namespace {

using namespace bench;  // NOLINT: model_kv.h

constexpr uint32_t kChunk = 128;    // blocks of one call
constexpr uint32_t kMessages = 64;  // calls of one block each: 8 MiB
constexpr uint32_t kInFlight = 8;
constexpr double kSmaller = 6.0;
constexpr uint32_t kCompared = 32;  // blocks

void Cuda(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(e));
  std::exit(1);
}

// GB/s of bytes copied, the best of five.
double CopyRate(void* to, const void* from, size_t bytes) {
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    Cuda(cudaDeviceSynchronize(), "synchronize");
    const auto begin = Clock::now();
    Cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, nullptr), "copy");
    Cuda(cudaDeviceSynchronize(), "synchronize");
    best = std::max(best, static_cast<double>(bytes) / Since(begin) / 1e9);
  }
  return best;
}

// So many calls in flight at once.
class InFlight {
 public:
  explicit InFlight(uint32_t most) : left_(most), most_(most) {}
  void Take() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return left_ > 0; });
    --left_;
  }
  void Give() {
    const std::lock_guard lock(mutex_);
    ++left_;
    changed_.notify_all();
  }
  void Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return left_ == most_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint32_t left_;
  const uint32_t most_;
};

class Run {
 public:
  Run(int threads, uint32_t blocks, bool staged, uint64_t arena, const std::string& tables)
      : blocks_(blocks),
        bytes_(blocks * kBlockBytes),
        daemon_("cuda", threads, arena / kArenaUnit * kArenaUnit, tables) {
    Cuda(cudaMalloc(&from_, bytes_), "source");
    Cuda(cudaMalloc(&to_, bytes_), "target");
    Fill();
    ClientOptions options;
    options.endpoint = daemon_.socket();
    options.deadline = std::chrono::milliseconds(120'000);
    client_ = Must(Client::Connect(options), "connect");
    context_ = Must(client_->OpenContext(SpecOf(source_, "bench")), "context");
    WaitForPins();
    for (uint32_t i = 0; i < blocks; ++i) {
      BlockHash name{};
      const uint32_t word = i + 1;
      std::memcpy(name.bytes.data(), &word, sizeof word);
      names_.push_back(name);
    }
    if (staged) return;
    const auto begin = Clock::now();
    regions_.push_back(Must(client_->RegisterGpu(from_, bytes_), "register"));
    regions_.push_back(Must(client_->RegisterGpu(to_, bytes_), "register"));
    std::printf("  registered 2 x %.2f GB in %.1f ms\n", static_cast<double>(bytes_) / 1e9,
                1e3 * Since(begin));
  }
  ~Run() {
    for (auto& region : regions_) Must(client_->ReleaseGpu(std::move(region)), "release");
    client_.reset();
    daemon_.Stop();
    std::istringstream log(daemon_.log());
    for (std::string line; std::getline(log, line);)
      if (line.find("basis") == line.npos) std::printf("    | %s\n", line.c_str());
  }

  // The daemon's own policy, under pressure.
  void LongContext() {
    References();
    Learn();
    Line("put all", Put(), bytes_);
    std::printf("  held: %.2f x smaller\n", Number(Status(), "fidelity", "ratio"));
    Line("fetch, first", Fetch(), bytes_);  // with what lanes take when they are first used
    Line("fetch all", Fetch(), bytes_);
    PrintErrors("as put");
    Must(client_->SetBudget(static_cast<uint64_t>(static_cast<double>(bytes_) / (kSmaller + .1))),
         "budget");
    const auto begin = Clock::now();
    double ratio = 0;
    while (ratio < kSmaller && Since(begin) < 60) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      ratio = Number(Status(), "fidelity", "ratio");
    }
    Line("demote all", Since(begin), bytes_);
    std::printf("  demoted: %.2f x smaller\n", ratio);
    Line("fetch, first", Fetch(), bytes_);
    Line("fetch demoted", Fetch(), bytes_);
    PrintErrors("demoted");
    PrintCounts();
  }
  // Kinds that do not change; exact, and what the policy makes of `balanced`.
  void ShortCalls(const char* what) {
    References();
    Learn();  // first: until there are bases every put feeds them, on the CPU
    Messages("exact (raw)", QualityClass::kExact, 1);
    Messages("exact (raw)", QualityClass::kExact, kInFlight);
    Messages(what, QualityClass::kBalanced, 1);
    Messages(what, QualityClass::kBalanced, kInFlight);
    Put();
    Fetch();
    Must(context_->Delete(names_), "delete");
    Line("put all", Put(), bytes_);
    Line("fetch all", Fetch(), bytes_);
    PrintErrors(what);
    PrintCounts();
  }

 private:
  // A put of all of it touches the arena and teaches the bases.
  void Learn() {
    Put();
    for (int i = 0; i < 100 && Count(Status(), "\"source\":") < kLayers; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    std::printf("  bases learned: %zu of %d layers\n", Count(Status(), "\"source\":"), kLayers);
    Must(context_->Delete(names_), "delete");
  }
  void PrintCounts() {
    const std::string status = Status();
    std::printf("  device failures %.0f, segments redone on the CPU %.0f; staged %.2f GB\n",
                Number(status, "backend", "failures"), Number(status, "backend", "redone_jobs"),
                static_cast<double>(client_->stats().bytes_staged) / 1e9);
  }
  std::string Status() { return Must(client_->Query(wire::QueryKind::kStats), "status"); }
  void Fill() {
    constexpr uint32_t kPart = 64;
    void* part = nullptr;
    Cuda(cudaMallocHost(&part, kPart * kBlockBytes), "pinned memory");
    for (uint32_t b = 0; b < blocks_; b += kPart) {
      const uint32_t n = std::min(kPart, blocks_ - b);
      source_.Fill({static_cast<std::byte*>(part), n * kBlockBytes}, n, b);
      Cuda(cudaMemcpy(from_ + b * kBlockBytes, part, n * kBlockBytes, cudaMemcpyHostToDevice),
           "upload");
    }
    Cuda(cudaFreeHost(part), "free");
  }
  // The daemon pins its arena beside the service.
  void WaitForPins() {
    double pinned = -1, before = 0;
    for (int i = 0; i < 100 && pinned != before; ++i) {
      before = pinned;
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
      pinned = Number(Status(), "arena", "pinned_bytes");
    }
    std::printf("  arena: %.2f GB pinned\n", pinned / 1e9);
  }
  void References() {
    const size_t some = std::min<size_t>(bytes_, 4ull << 30), few = std::min(some, 1ul << 30);
    void* pinned = nullptr;
    Cuda(cudaMallocHost(&pinned, few), "pinned memory");
    device_copy_ = CopyRate(to_, from_, some);
    to_host_ = CopyRate(pinned, from_, few);
    to_device_ = CopyRate(to_, pinned, few);
    Cuda(cudaFreeHost(pinned), "free");
    std::printf("  copies: device to device %.0f GB/s, to pinned memory %.1f, from it %.1f\n",
                device_copy_, to_host_, to_device_);
  }
  KvMemory Memory(std::byte* base, uint32_t first, uint32_t count) const {
    KvMemory kv =
        KvMemory::Dense(base + first * kBlockBytes, DType::kBf16, count, kLayers, kHeads, kDim);
    kv.on_device = true;
    return kv;
  }
  std::vector<BlockHash> Names(uint32_t first, uint32_t count) const {
    return {names_.begin() + first, names_.begin() + first + count};
  }
  PutRequest PutOf(uint32_t first, uint32_t count,
                   QualityClass quality = QualityClass::kBalanced) const {
    PutRequest put;
    put.hashes = Names(first, count);
    put.first_index = first;
    if (first > 0) put.parent = names_[first - 1];
    put.source = Memory(from_, first, count);
    put.quality = quality;
    return put;
  }
  FetchRequest FetchOf(uint32_t first, uint32_t count, uint32_t in_lease) const {
    FetchRequest fetch;
    fetch.block_begin = in_lease;
    fetch.block_count = count;
    fetch.target = Memory(to_, first, count);
    return fetch;
  }
  double Put() {
    const auto begin = Clock::now();
    for (uint32_t b = 0; b < blocks_; b += kChunk)
      Must(context_->Put(PutOf(b, std::min(kChunk, blocks_ - b))).status, "put");
    return Since(begin);
  }
  double Fetch() {
    Cuda(cudaMemset(to_, 0, bytes_), "clear");
    const auto begin = Clock::now();
    const uint32_t chunk = std::clamp(blocks_ / 4, 1u, kChunk);  // leases hold half at most
    for (uint32_t b = 0; b < blocks_; b += chunk) {
      const uint32_t n = std::min(chunk, blocks_ - b);
      Lease lease = Held(b, n);
      Must(context_->Fetch(lease, FetchOf(b, n, 0)).status, "fetch");
    }
    return Since(begin);
  }
  Lease Held(uint32_t first, uint32_t count) {
    LookupRequest look;
    look.hashes = Names(first, count);
    Lease lease = Must(context_->Lookup(look), "lookup");
    if (lease.run() == count) return lease;
    std::fprintf(stderr, "only %u of %u blocks from %u are held\n", lease.run(), count, first);
    std::exit(1);
  }

  // Calls of one block each, `flying` at once; of three rounds the best.
  void Messages(const char* what, QualityClass quality, uint32_t flying) {
    const uint32_t n = std::min(kMessages, blocks_);
    const uint64_t bytes = n * kBlockBytes;
    double best_put = 1e9, best_get = 1e9, smaller = 0;
    for (int round = 0; round < 3; ++round) {
      std::atomic<uint64_t> encoded{0};
      InFlight calls(flying);
      auto begin = Clock::now();
      for (uint32_t b = 0; b < n; ++b) {
        calls.Take();
        context_->PutAsync(PutOf(b, 1, quality), [&](PutResult put) {
          Must(put.status, "put");
          for (const auto& s : put.segments) encoded += s.bytes;
          calls.Give();
        });
      }
      calls.Wait();
      best_put = std::min(best_put, Since(begin));
      smaller = static_cast<double>(bytes) / static_cast<double>(encoded.load());
      {
        Cuda(cudaMemset(to_, 0, bytes), "clear");
        Lease lease = Held(0, n);
        begin = Clock::now();
        for (uint32_t b = 0; b < n; ++b) {
          calls.Take();
          context_->FetchAsync(lease, FetchOf(b, 1, b), [&](FetchResult got) {
            Must(got.status, "fetch");
            calls.Give();
          });
        }
        calls.Wait();
        best_get = std::min(best_get, Since(begin));
      }
      Must(context_->Delete(Names(0, n)), "delete");
    }
    std::printf("  %s, 8 MiB a call, %u in flight, %.2f x smaller:\n", what, flying, smaller);
    Line("  put", best_put, bytes);
    Line("  get", best_get, bytes);
  }

  void PrintErrors(const char* when) {
    std::vector<std::byte> want(kBlockBytes), got(kBlockBytes);
    Errors e;
    const uint32_t n = std::min(kCompared, blocks_);
    for (uint32_t i = 0; i < n; ++i) {
      const size_t at = size_t{i} * (blocks_ / n) * kBlockBytes;
      Cuda(cudaMemcpy(want.data(), from_ + at, kBlockBytes, cudaMemcpyDeviceToHost), "download");
      Cuda(cudaMemcpy(got.data(), to_ + at, kBlockBytes, cudaMemcpyDeviceToHost), "download");
      const Errors one = Compare(want, got, 1);
      e.k += one.k / n;
      e.v += one.v / n;
    }
    std::printf("  error %-12s K %.3e  V %.3e (squared, of the energy)\n", when, e.k, e.v);
  }
  void Line(const char* what, double seconds, uint64_t bytes) const {
    const double rate = static_cast<double>(bytes) / seconds / 1e9;
    std::printf("  %-14s %8.3f s %7.1f GB/s of bf16, %.3f of the device copy, %.2f of a pinned\n",
                what, seconds, rate, rate / device_copy_, rate / std::min(to_host_, to_device_));
    std::fflush(stdout);
  }

  const uint32_t blocks_;
  const uint64_t bytes_;
  testing::DaemonProcess daemon_;
  const Source source_;
  std::byte *from_ = nullptr, *to_ = nullptr;
  std::unique_ptr<Client> client_;
  std::shared_ptr<Context> context_;
  std::vector<std::shared_ptr<GpuRegion>> regions_;
  std::vector<BlockHash> names_;
  double device_copy_ = 1, to_host_ = 1, to_device_ = 1;
};

int Main(int argc, char** argv) {
  uint32_t tokens = 102'400;
  int threads = 0;
  bool staged = false, pin = true, all = true;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--tokens") == 0 && i + 1 < argc)
      tokens = static_cast<uint32_t>(std::atoi(argv[++i]));
    else if (std::strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
      threads = std::atoi(argv[++i]);
    else if (std::strcmp(argv[i], "--staged") == 0)
      staged = true;
    else if (std::strcmp(argv[i], "--unpinned") == 0)
      pin = false;
    else if (std::strcmp(argv[i], "--short") == 0)
      all = false;
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU: nothing to measure\n");
    return 0;
  }
  cudaDeviceProp prop{};
  Cuda(cudaGetDeviceProperties(&prop, 0), "device");
  const uint32_t blocks = std::max(1u, tokens / kBlockTokens);
  std::printf("%s, %u tokens, %d layers x %d kv heads x d %d, bf16: %.2f GB; %u cores%s\n",
              prop.name, blocks * kBlockTokens, kLayers, kHeads, kDim,
              static_cast<double>(blocks * kBlockBytes) / 1e9, std::thread::hardware_concurrency(),
              staged ? "; staged through the host" : "");
  std::fflush(stdout);
  const uint64_t bytes = blocks * kBlockBytes;
  const uint32_t few = std::min(2 * kMessages, blocks);
  std::printf("%u blocks, fixed kinds\n", few);
  const std::string arena = pin ? "" : "pinned = false\n";
  Run(threads, few, staged, 4 * few * kBlockBytes,
      arena + "[policy]\nname = \"uniform\"\nuniform_k_bits = 2\nuniform_v_bits = 2\n")
      .ShortCalls("K in a basis at 2 bits, V at 2 bits");
  if (!all) return 0;
  std::printf("%u blocks, the default policy\n", blocks);
  Run(threads, blocks, staged, std::max<uint64_t>(bytes * 62 / 100, 1ull << 30), arena)
      .LongContext();
  return 0;
}

}  // namespace
}  // namespace dyna

int main(int argc, char** argv) { return dyna::Main(argc, argv); }
