// One context through a whole daemon, on each backend in turn: put, fetch, demote to six times
// smaller, fetch again. What comes back is held against what was put, and what the daemon decoded
// against what the client's library decodes of the same segments on the CPU.
//
//   backend_bench [--tokens N] [--threads N] [BACKEND...]
// Default: 102400 tokens, the daemon's own number of codec threads, cpu and cuda.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "client/client.h"
#include "kernels/codec_math.h"
#include "kernels/test_data.h"

namespace dyna {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kLayers = 32, kHeads = 8, kDim = 128;
constexpr uint32_t kChunk = 128;    // blocks of one call
constexpr double kSmaller = 6.0;    // what demotion is asked for
constexpr uint32_t kCompared = 16;  // blocks whose two decodings are compared
constexpr size_t kPoolRows = 1024;  // of K and of V, a head; the same row comes back turned
constexpr uint64_t kBlockBytes = uint64_t{2} * kLayers * kHeads * kBlockTokens * kDim * 2;

double Since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}
template <typename T>
T Must(Result<T> r, const char* what) {
  if (r.ok()) return std::move(r.value());
  std::fprintf(stderr, "%s: %s\n", what, r.status().ToString().c_str());
  std::exit(1);
}
void Must(const Status& s, const char* what) {
  if (s.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, s.ToString().c_str());
  std::exit(1);
}
template <typename Work>  // Work(begin, end) of 0..n
void InThreads(uint32_t n, const Work& work) {
  const uint32_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> pool;
  for (uint32_t t = 0; t < threads; ++t)
    pool.emplace_back([&, t] { work(n * t / threads, n * (t + 1) / threads); });
  for (std::thread& t : pool) t.join();
}

// A daemon with a backend, in a folder that goes with it.
class Daemon {
 public:
  Daemon(const std::string& backend, int threads, uint64_t arena) {
    char name[] = "/tmp/dyna-bench-XXXXXX";
    folder_ = mkdtemp(name);
    std::ofstream(folder_ + "/d.toml")
        << "[server]\nsocket = \"" << socket() << "\"\nstate_dir = \"" << folder_
        << "/state\"\nbackend = \"" << backend << "\"\ncodec_threads = " << threads
        << "\n[arena]\nbytes = " << arena
        << "\nprefault = false\n[admin]\nenabled = false\n[spill]\nenabled = false\n"
        << "[bank]\nenabled = false\n";
    const std::string self = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    const std::string program = self + "/dynacompressd", config = folder_ + "/d.toml";
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int log = open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT, 0600);
      dup2(log, 2);
      execl(program.c_str(), program.c_str(), "--config", config.c_str(), nullptr);
      _exit(127);
    }
    for (int i = 0; i < 400 && !std::filesystem::exists(socket()); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  ~Daemon() {
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
    std::ifstream log(folder_ + "/log");
    for (std::string line; std::getline(log, line);)
      if (line.find("basis") == line.npos) std::printf("    | %s\n", line.c_str());
    std::filesystem::remove_all(folder_);
  }
  std::string socket() const { return folder_ + "/d.sock"; }

 private:
  std::string folder_;
  pid_t pid_ = 0;
};

// The number behind `key` in the object `section` of the daemon's status.
double Number(const std::string& json, const std::string& section, const std::string& key) {
  size_t at = json.find("\"" + section + "\":");
  if (at != json.npos) at = json.find("\"" + key + "\":", at);
  return at == json.npos ? -1 : std::atof(json.c_str() + at + key.size() + 3);
}
size_t Count(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(what, at)) != text.npos; at += what.size()) ++n;
  return n;
}

// K of a spectrum that falls off, turned by RoPE; V normal. [block][layer][head][K, V][token][d].
class Source {
 public:
  Source() : rope_(testing::MakeRope(kDim)) {
    std::mt19937 random(11);
    testing::Model model;
    model.d = kDim;
    model.kv_heads = kHeads;
    (void)model.MakeBasis(random);
    std::normal_distribution<float> normal;
    for (int h = 0; h < kHeads; ++h) {
      for (size_t r = 0; r < kPoolRows; r += kBlockTokens)
        for (const double x : model.SampleX(h, random)) k_.push_back(static_cast<float>(x));
      for (size_t i = 0; i < kPoolRows * kDim; ++i) v_.push_back(codec::F32ToBf16(normal(random)));
    }
  }
  const Rope& rope() const { return rope_; }

  void Fill(std::span<std::byte> to, uint32_t blocks) const {
    InThreads(blocks, [&](uint32_t begin, uint32_t end) {
      for (uint32_t b = begin; b < end; ++b)
        for (uint32_t t = 0; t < kBlockTokens; ++t) FillToken(to, b, t);
    });
  }

 private:
  void FillToken(std::span<std::byte> to, uint32_t block, uint32_t t) const {
    float cosine[kDim / 2], sine[kDim / 2];
    const uint32_t position = block * kBlockTokens + t;
    for (size_t p = 0; p < kDim / 2; ++p) {
      const double angle = position * static_cast<double>(rope_.inv_freq[p]);
      cosine[p] = static_cast<float>(std::cos(angle));
      sine[p] = static_cast<float>(std::sin(angle));
    }
    uint16_t row[kDim];
    for (size_t l = 0; l < kLayers; ++l)
      for (size_t h = 0; h < kHeads; ++h) {
        const size_t r = h * kPoolRows + (position * 7919u + l * 104729u) % kPoolRows;
        const float* x = &k_[r * kDim];
        for (size_t p = 0; p < kDim / 2; ++p) {
          const float u = x[p], v = x[p + kDim / 2];
          row[p] = codec::F32ToBf16(u * cosine[p] - v * sine[p]);
          row[p + kDim / 2] = codec::F32ToBf16(v * cosine[p] + u * sine[p]);
        }
        const size_t tile = ((block * kLayers + l) * kHeads + h) * 2;
        std::byte* at = to.data() + (tile * kBlockTokens + t) * sizeof row;
        std::memcpy(at, row, sizeof row);
        std::memcpy(at + kBlockTokens * sizeof row, &v_[r * kDim], sizeof row);
      }
  }
  Rope rope_;
  std::vector<float> k_;
  std::vector<uint16_t> v_;
};

struct Errors {
  double k = 0, v = 0;  // squared error over energy
};
Errors Compare(std::span<const std::byte> want, std::span<const std::byte> got, uint32_t blocks) {
  double sums[4] = {};
  const auto* a = reinterpret_cast<const uint16_t*>(want.data());
  const auto* b = reinterpret_cast<const uint16_t*>(got.data());
  const size_t stride = std::max<uint32_t>(1, blocks / 32);
  for (size_t block = 0; block < blocks; block += stride)
    for (size_t i = 0; i < kBlockBytes / 2; ++i) {
      const size_t at = block * (kBlockBytes / 2) + i;
      const double x = codec::Bf16ToF32(a[at]), e = x - codec::Bf16ToF32(b[at]);
      const size_t v = i / (kBlockTokens * kDim) % 2;
      sums[v] += e * e;
      sums[2 + v] += x * x;
    }
  return {sums[0] / sums[2], sums[1] / sums[3]};
}

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
    ContextSpec spec;
    spec.model = "bench";
    spec.dtype = DType::kBf16;
    spec.ropes = {source.rope()};
    LayerShape shape;
    shape.kv_heads = kHeads;
    shape.head_dim = kDim;
    shape.max_position = 1u << 20;
    spec.layers.assign(kLayers, shape);
    context_ = Must(client_->OpenContext(spec), "context");
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
  Daemon daemon_;
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
