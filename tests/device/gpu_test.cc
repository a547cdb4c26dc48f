// Memory of a real GPU that two processes share: this one's, and a daemon of the same build.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "client/client.h"
#include "client/device_api.h"
#include "tests/support/daemon_process.h"

namespace dyna {
namespace {

constexpr uint32_t kBlocks = 8;
constexpr uint16_t kLayers = 4, kHeads = 2, kDim = 128;
constexpr size_t kRow = kDim * 2;
constexpr size_t kKv = kBlocks * kLayers * DenseSegmentBytes(kHeads, kDim, DType::kBf16);
constexpr size_t kBytes = 8u << 20;
static_assert(kKv + 65536 < kBytes);

// The driver, with what it says of memory falsified.
class Liar final : public DeviceApi {
 public:
  void (*lie)(wire::RegisterRegion&) = nullptr;
  Result<wire::RegisterRegion> Export(const std::byte* memory, uint64_t bytes) override {
    auto m = CudaDriver().Export(memory, bytes);
    if (m.ok() && lie != nullptr) lie(*m);
    return m;
  }
  Status Wait(const std::byte* memory, void* stream) override {
    return CudaDriver().Wait(memory, stream);
  }
  Status ToHost(const std::byte* from, int64_t stride, size_t row, size_t rows,
                std::byte* to) override {
    return CudaDriver().ToHost(from, stride, row, rows, to);
  }
  Status ToDevice(const std::byte* from, size_t row, size_t rows, std::byte* to,
                  int64_t stride) override {
    return CudaDriver().ToDevice(from, row, rows, to, stride);
  }
};

std::unique_ptr<Client> Connected(const std::string& socket, DeviceApi* api = nullptr) {
  ClientOptions options;
  options.endpoint = socket;
  options.device_api = api;
  auto client = Client::Connect(options);
  EXPECT_TRUE(client.ok()) << client.status().ToString();
  return client.ok() ? std::move(*client) : nullptr;
}
std::shared_ptr<Context> Opened(Client& client) {
  ContextSpec spec;
  spec.model = "test";
  spec.dtype = DType::kBf16;
  spec.ropes.push_back({});
  spec.layers.assign(kLayers, {LayerKind::kFull, kHeads, 4, kDim, 0, 0, 8192});
  auto context = client.OpenContext(spec);
  EXPECT_TRUE(context.ok()) << context.status().ToString();
  return context.ok() ? *context : nullptr;
}
std::vector<BlockHash> Hashes(uint8_t first) {
  std::vector<BlockHash> hashes(kBlocks);
  for (uint32_t i = 0; i < kBlocks; ++i) hashes[i].bytes = {first, static_cast<uint8_t>(i + 1)};
  return hashes;
}
PutRequest PutOf(uint8_t first, KvMemory source) {
  PutRequest put;
  put.hashes = Hashes(first);
  put.source = std::move(source);
  put.quality = QualityClass::kExact;
  return put;
}
// Token-major, `gap` bytes between tokens.
KvMemory At(std::byte* base, int64_t gap = 0) {
  const int64_t token = 2 * kHeads * kRow + gap, layer = kBlockTokens * token;
  KvMemory kv = KvMemory::Strided(base, base + kHeads * kRow, DType::kBf16, kBlocks, kLayers,
                                  {kLayers * layer, layer, token, kRow});
  kv.on_device = true;
  return kv;
}
std::vector<std::byte> Download(const std::byte* from) {
  std::vector<std::byte> bytes(kBytes);
  EXPECT_EQ(cudaMemcpy(bytes.data(), from, kBytes, cudaMemcpyDeviceToHost), cudaSuccess);
  return bytes;
}

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no GPU";
    daemon_ = std::make_unique<testing::DaemonProcess>("cuda", 4, 256u << 20);
    ASSERT_TRUE(daemon_->running()) << daemon_->log();
    ASSERT_EQ(cudaMalloc(&source_, kBytes), cudaSuccess);
    ASSERT_EQ(cudaMalloc(&target_, kBytes), cudaSuccess);
    std::vector<uint16_t> values(kBytes / 2);
    uint32_t x = 7;
    for (uint16_t& v : values) {  // bf16 in +-2
      x = x * 1664525u + 1013904223u;
      v = static_cast<uint16_t>(((x >> 16) & 0x807f) | 0x3f80);
    }
    ASSERT_EQ(cudaMemcpy(source_, values.data(), kBytes, cudaMemcpyHostToDevice), cudaSuccess);
    client_ = Connected(daemon_->socket(), &liar_);
    ASSERT_NE(client_, nullptr);
    context_ = Opened(*client_);
  }
  void TearDown() override {
    if (!daemon_) return;
    EXPECT_TRUE(daemon_->running()) << daemon_->log();
    context_.reset();
    client_.reset();
    EXPECT_EQ(daemon_->Stop(), 0) << daemon_->log();
    cudaFree(source_);
    cudaFree(target_);
  }
  std::byte* source() const { return static_cast<std::byte*>(source_); }
  std::byte* target() const { return static_cast<std::byte*>(target_); }
  // What was put comes back, and nothing else is written.
  void ExpectRoundTrip(uint8_t first, size_t begin, int64_t gap) {
    const PutResult put = context_->Put(PutOf(first, At(source() + begin, gap)));
    ASSERT_TRUE(put.status.ok()) << put.status.ToString();
    ASSERT_EQ(cudaMemset(target_, 0xEE, kBytes), cudaSuccess);
    LookupRequest lookup;
    lookup.hashes = Hashes(first);
    auto lease = context_->Lookup(std::move(lookup));
    ASSERT_TRUE(lease.ok() && lease->run() == kBlocks);
    FetchRequest fetch;
    fetch.target = At(target() + begin, gap);
    const FetchResult got = context_->Fetch(*lease, std::move(fetch));
    ASSERT_TRUE(got.status.ok()) << got.status.ToString();
    const auto want = Download(source()), have = Download(target());
    std::vector<std::byte> expected(kBytes, std::byte{0xEE});
    const size_t token = 2 * kHeads * kRow;
    for (size_t t = 0; t < size_t{kBlocks} * kLayers * kBlockTokens; ++t) {
      const size_t at = begin + t * (token + static_cast<size_t>(gap));
      std::memcpy(&expected[at], &want[at], token);
    }
    EXPECT_TRUE(have == expected);
  }

  std::unique_ptr<testing::DaemonProcess> daemon_;
  Liar liar_;
  std::unique_ptr<Client> client_;
  std::shared_ptr<Context> context_;
  void *source_ = nullptr, *target_ = nullptr;
};

TEST_F(GpuTest, InPlaceAtAnyStride) {
  auto from = client_->RegisterGpu(source_, kBytes), to = client_->RegisterGpu(target_, kBytes);
  ASSERT_TRUE(from.ok()) << from.status().ToString();
  ASSERT_TRUE(to.ok()) << to.status().ToString();
  ExpectRoundTrip(1, 0, 0);
  ExpectRoundTrip(2, 256, 48);
  ExpectRoundTrip(3, 2, 6);
  EXPECT_EQ(client_->stats().bytes_staged, 0u);
  EXPECT_TRUE(client_->ReleaseGpu(*from).ok());
  ExpectRoundTrip(4, 64, 16);  // from the host's staging, to the device
  EXPECT_EQ(client_->stats().bytes_staged, kKv);
}

TEST_F(GpuTest, TwoRegionsOfOneAllocation) {
  auto whole = client_->RegisterGpu(source_, kBytes), to = client_->RegisterGpu(target_, kBytes);
  auto part = client_->RegisterGpu(source() + 4096, kBytes - 4096);
  ASSERT_TRUE(whole.ok() && part.ok() && to.ok()) << part.status().ToString();
  EXPECT_TRUE(client_->ReleaseGpu(*whole).ok());
  ExpectRoundTrip(1, 4096, 0);
  EXPECT_EQ(client_->stats().bytes_staged, 0u);
}

TEST_F(GpuTest, AStreamIsWaitedFor) {
  auto from = client_->RegisterGpu(source_, kBytes), to = client_->RegisterGpu(target_, kBytes);
  ASSERT_TRUE(from.ok() && to.ok());
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  void* large = nullptr;  // keeps the stream busy for some ms
  constexpr size_t kLarge = 2ull << 30;
  ASSERT_EQ(cudaMalloc(&large, kLarge), cudaSuccess);
  const auto values = Download(source());
  void* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(&pinned, kBytes), cudaSuccess);
  std::memcpy(pinned, values.data(), kBytes);
  ASSERT_EQ(cudaMemset(source_, 0, kBytes), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (int i = 0; i < 20; ++i) cudaMemsetAsync(large, i, kLarge, stream);
  cudaMemcpyAsync(source_, pinned, kBytes, cudaMemcpyHostToDevice, stream);
  KvMemory kv = At(source());
  kv.stream = stream;
  ASSERT_TRUE(context_->Put(PutOf(1, kv)).status.ok());
  LookupRequest lookup;
  lookup.hashes = Hashes(1);
  auto lease = context_->Lookup(std::move(lookup));
  ASSERT_TRUE(lease.ok());
  FetchRequest fetch;
  fetch.target = At(target());
  ASSERT_TRUE(context_->Fetch(*lease, std::move(fetch)).status.ok());
  const auto got = Download(target());
  EXPECT_EQ(std::memcmp(got.data(), values.data(), kKv), 0);
  cudaFree(large);
  cudaFreeHost(pinned);
  cudaStreamDestroy(stream);
}

TEST_F(GpuTest, MemoryWithoutAHandleIsStaged) {
  void* pooled = nullptr;
  ASSERT_EQ(cudaMallocAsync(&pooled, kBytes, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const auto region = client_->RegisterGpu(pooled, kBytes);
  EXPECT_EQ(region.status().code(), StatusCode::kUnsupported) << region.status().ToString();
  EXPECT_NE(region.status().message().find("cudaMallocAsync"), std::string::npos)
      << region.status().ToString();
  ASSERT_EQ(cudaMemcpy(pooled, source_, kBytes, cudaMemcpyDeviceToDevice), cudaSuccess);
  std::swap(pooled, source_);
  ExpectRoundTrip(1, 0, 16);
  std::swap(pooled, source_);
  cudaFreeAsync(pooled, nullptr);
  int on_host = 0;
  EXPECT_EQ(client_->RegisterGpu(&on_host, 4).status().code(), StatusCode::kInvalid);
  EXPECT_EQ(client_->RegisterGpu(source_, kBytes * 1000).status().code(), StatusCode::kInvalid);
}

TEST_F(GpuTest, ALieIsRefusedAndTheDaemonStays) {
  liar_.lie = [](wire::RegisterRegion& m) { m.size += 1u << 30; };
  EXPECT_EQ(client_->RegisterGpu(source_, kBytes).status().code(), StatusCode::kInvalid);
  liar_.lie = [](wire::RegisterRegion& m) { m.offset += 1u << 30; };
  EXPECT_EQ(client_->RegisterGpu(source_, kBytes).status().code(), StatusCode::kInvalid);
  liar_.lie = [](wire::RegisterRegion& m) { m.device[3] ^= 1; };
  EXPECT_EQ(client_->RegisterGpu(source_, kBytes).status().code(), StatusCode::kUnsupported);
  liar_.lie = [](wire::RegisterRegion& m) { std::fill(m.handle.begin(), m.handle.end(), 0x5a); };
  const auto nonsense = client_->RegisterGpu(source_, kBytes);
  EXPECT_EQ(nonsense.status().code(), StatusCode::kInvalid) << nonsense.status().ToString();
  liar_.lie = nullptr;
  auto from = client_->RegisterGpu(source_, kBytes), to = client_->RegisterGpu(target_, kBytes);
  ASSERT_TRUE(from.ok() && to.ok()) << from.status().ToString();
  ExpectRoundTrip(1, 0, 0);
}

// A client that is killed while the daemon works in its memory. (In a process of its own: CUDA does
// not survive a fork, so it is this program once more.)
constexpr char kChild[] = "DYNA_GPU_TEST_CHILD";

int PutForEver(const std::string& socket) {
  void* memory = nullptr;
  if (cudaMalloc(&memory, kBytes) != cudaSuccess) return 1;
  cudaMemset(memory, 0x3f, kBytes);
  auto client = Connected(socket);
  auto context = client ? Opened(*client) : nullptr;
  auto region = client ? client->RegisterGpu(memory, kBytes) : Internal("no client");
  if (!context || !region.ok()) return 1;
  for (uint8_t i = 0;; ++i) {
    if (!context->Put(PutOf(i, At(static_cast<std::byte*>(memory)))).status.ok()) return 1;
    if (!context->Delete(Hashes(i)).ok()) return 1;
    if (i == 3) (void)!write(STDOUT_FILENO, "x", 1);
  }
}

TEST_F(GpuTest, AClientKilledInTheMiddleLeavesNothingBehind) {
  size_t before = 0, total = 0;
  for (int round = 0; round < 4; ++round) {
    int out[2];
    ASSERT_EQ(pipe(out), 0);
    const pid_t child = fork();
    if (child == 0) {
      dup2(out[1], STDOUT_FILENO);
      setenv(kChild, daemon_->socket().c_str(), 1);
      execl("/proc/self/exe", "gpu_test", nullptr);
      _exit(127);
    }
    close(out[1]);
    char x = 0;
    EXPECT_EQ(read(out[0], &x, 1), 1);
    usleep(static_cast<useconds_t>(1000 * round));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    close(out[0]);
    size_t free = 0;
    for (int i = 0; i < 200; ++i) {
      ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
      if (round > 0 && free >= before) break;
      usleep(10'000);
    }
    if (round > 0) {
      EXPECT_GE(free, before);  // its memory is the GPU's again
    }
    before = free;
    ASSERT_TRUE(daemon_->running()) << daemon_->log();
  }
  auto from = client_->RegisterGpu(source_, kBytes), to = client_->RegisterGpu(target_, kBytes);
  ASSERT_TRUE(from.ok() && to.ok()) << from.status().ToString();
  ExpectRoundTrip(200, 0, 0);
}

}  // namespace
}  // namespace dyna

int main(int argc, char** argv) {
  if (const char* socket = std::getenv(dyna::kChild)) return dyna::PutForEver(socket);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
