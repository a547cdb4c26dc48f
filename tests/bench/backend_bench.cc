// One context through a whole daemon, on each backend in turn: put, fetch, demote to six times
// smaller, fetch again. What comes back is held against what was put, and what the daemon decoded
// against what the client's library decodes of the same segments on the CPU.
//
//   backend_bench [--tokens N] [--threads N] [BACKEND...]
// Default: 102400 tokens, the daemon's own number of codec threads, cpu and cuda.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "client/client.h"
#include "kernels/codec_math.h"
#include "kernels/test_data.h"
#include "tests/bench/model_kv.h"
#include "tests/support/daemon_process.h"

namespace dyna {
namespace {

using namespace bench;  // NOLINT: model_kv.h

constexpr uint32_t kChunk = 128;    // blocks of one call
constexpr double kSmaller = 6.0;    // what demotion is asked for
constexpr uint32_t kCompared = 16;  // blocks whose two decodings are compared

// The largest difference of two decodings, over the root mean square of its row.
double RowDifference(const float* a, const float* b, size_t rows) {
  double worst = 0;
  for (size_t r = 0; r < rows; ++r, a += kDim, b += kDim) {
    double square = 0, most = 0;
    for (size_t i = 0; i < kDim; ++i) {
      square += double{a[i]} * a[i];
      most = std::max(most, std::abs(double{a[i]} - b[i]));
    }
    if (square > 0) worst = std::max(worst, most / std::sqrt(square / kDim));
  }
  return worst;
}

class Run {
 public:
  Run(const std::string& backend, int threads, const Source& source, uint32_t blocks)
      : blocks_(blocks),
        bytes_(blocks * kBlockBytes),
        daemon_(backend, threads, bytes_ * 62 / 100 / kArenaUnit * kArenaUnit) {
    ClientOptions options;
    options.endpoint = daemon_.socket();
    options.deadline = std::chrono::milliseconds(120'000);
    client_ = Must(Client::Connect(options), "connect");
    context_ = Must(client_->OpenContext(SpecOf(source, "bench")), "context");
    from_ = Must(client_->AllocateRegion(bytes_), "region");
    to_ = Must(client_->AllocateRegion(bytes_), "region");
    source.Fill(from_->bytes(), blocks);
    for (uint32_t i = 0; i < blocks; ++i) {
      BlockHash name{};
      const uint32_t word = i + 1;
      std::memcpy(name.bytes.data(), &word, sizeof word);
      names_.push_back(name);
    }
  }

  ~Run() {
    client_.reset();
    daemon_.Stop();
    std::istringstream log(daemon_.log());
    for (std::string line; std::getline(log, line);)
      if (line.find("basis") == line.npos) std::printf("    | %s\n", line.c_str());
  }

  void All() {
    Put();  // touches the arena and teaches the bases
    for (int i = 0; i < 100 && Count(Status(), "\"source\":") < kLayers; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    std::printf("  bases learned: %zu of %d layers\n", Count(Status(), "\"source\":"), kLayers);
    Must(context_->Delete(names_), "delete");
    Line("put", Put(), 0);
    Line("held", 0, Number(Status(), "fidelity", "ratio"));
    Line("fetch", Fetch(), 0);
    PrintErrors("as put");
    Must(client_->SetBudget(static_cast<uint64_t>(static_cast<double>(bytes_) / (kSmaller + .1))),
         "budget");
    const auto begin = Clock::now();
    double ratio = 0;
    while (ratio < kSmaller && Since(begin) < 60) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      ratio = Number(Status(), "fidelity", "ratio");
    }
    Line("demote", Since(begin), ratio);
    if (ratio < kSmaller) std::printf("%s\n", Status().c_str());
    Line("fetch demoted", Fetch(), 0);
    PrintErrors("demoted");
    TwoDecodings();
    const std::string status = Status();
    std::printf("  device failures %.0f, segments redone on the CPU %.0f, demoted %.0f\n",
                Number(status, "backend", "failures"), Number(status, "backend", "redone_jobs"),
                Number(status, "pressure", "demoted_segments"));
  }

 private:
  std::string Status() { return Must(client_->Query(wire::QueryKind::kStats), "status"); }
  KvMemory Memory(const std::shared_ptr<Region>& region, uint32_t first, uint32_t count) const {
    return KvMemory::Dense(region->bytes().data() + first * kBlockBytes, DType::kBf16, count,
                           kLayers, kHeads, kDim);
  }
  std::vector<BlockHash> Names(uint32_t first, uint32_t count) const {
    return {names_.begin() + first, names_.begin() + first + count};
  }
  double Put() {
    const auto begin = Clock::now();
    for (uint32_t b = 0; b < blocks_; b += kChunk) {
      const uint32_t n = std::min(kChunk, blocks_ - b);
      PutRequest put;
      put.hashes = Names(b, n);
      put.first_index = b;
      if (b > 0) put.parent = names_[b - 1];
      put.source = Memory(from_, b, n);
      Must(context_->Put(put).status, "put");
    }
    return Since(begin);
  }
  double Fetch() {
    std::memset(to_->bytes().data(), 0, bytes_);
    const auto begin = Clock::now();
    const uint32_t chunk = std::clamp(blocks_ / 4, 1u, kChunk);  // leases hold half at most
    for (uint32_t b = 0; b < blocks_; b += chunk) {
      const uint32_t n = std::min(chunk, blocks_ - b);
      Lease lease = Held(b, n);
      FetchRequest fetch;
      fetch.target = Memory(to_, b, n);
      Must(context_->Fetch(lease, fetch).status, "fetch");
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
  void PrintErrors(const char* when) {
    const auto e = Compare(from_->bytes(), to_->bytes(), blocks_);
    std::printf("  error %-12s K %.3e  V %.3e (squared, of the energy)\n", when, e.k, e.v);
  }
  void TwoDecodings() {
    const uint32_t n = std::min(kCompared, blocks_);
    const size_t floats = n * kBlockBytes / 2;
    std::vector<float> daemon(floats), library(floats);
    Lease lease = Held(0, n);
    FetchRequest fetch;
    fetch.target = KvMemory::Dense(daemon.data(), DType::kF32, n, kLayers, kHeads, kDim);
    Must(context_->Fetch(lease, fetch).status, "fetch");
    fetch.target = KvMemory::Dense(library.data(), DType::kF32, n, kLayers, kHeads, kDim);
    fetch.form = wire::Form::kAsStored;
    Must(context_->Fetch(lease, fetch).status, "fetch as stored");
    std::printf(
        "  decoded by the daemon and by the library: differ by %.2e of a row's rms (bound "
        "%.2e)\n",
        RowDifference(daemon.data(), library.data(), floats / kDim), 1.0 / 1024);
  }
  void Line(const char* what, double seconds, double ratio) const {
    std::printf("  %-14s", what);
    if (seconds > 0)
      std::printf(" %7.3f s %7.2f GB/s of bf16", seconds,
                  static_cast<double>(bytes_) / seconds / 1e9);
    if (ratio > 0) std::printf("  %.2f x smaller", ratio);
    std::printf("\n");
    std::fflush(stdout);
  }

  const uint32_t blocks_;
  const uint64_t bytes_;
  testing::DaemonProcess daemon_;
  std::unique_ptr<Client> client_;
  std::shared_ptr<Context> context_;
  std::shared_ptr<Region> from_, to_;
  std::vector<BlockHash> names_;
};

int Main(int argc, char** argv) {
  uint32_t tokens = 102'400;
  int threads = 0;
  std::vector<std::string> backends;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--tokens") == 0 && i + 1 < argc)
      tokens = static_cast<uint32_t>(std::atoi(argv[++i]));
    else if (std::strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
      threads = std::atoi(argv[++i]);
    else
      backends.push_back(argv[i]);
  }
  if (backends.empty()) backends = {"cpu", "cuda"};
  const uint32_t blocks = std::max(1u, tokens / kBlockTokens);
  const Source source;
  std::printf("%u tokens, %d layers x %d kv heads x d %d, bf16: %.2f GB; %u cores\n",
              blocks * kBlockTokens, kLayers, kHeads, kDim,
              static_cast<double>(blocks * kBlockBytes) / 1e9, std::thread::hardware_concurrency());
  for (const std::string& backend : backends) {
    std::printf("backend %s\n", backend.c_str());
    std::fflush(stdout);
    Run(backend, threads, source, blocks).All();
  }
  return 0;
}

}  // namespace
}  // namespace dyna

int main(int argc, char** argv) { return dyna::Main(argc, argv); }
