// A client's memory on the GPU, from its call to the codec and back, in one process and without a
// GPU: the device's addresses fault on the CPU (kernels/testing_device.h), so whoever follows one
// where it must not ends the test.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>

#include "client/client.h"
#include "client/testing_driver.h"
#include "daemon/config/machine.h"
#include "daemon/server/server.h"
#include "kernels/host_copy_backend.h"

namespace dyna {
namespace {

using testing::FakeDriver;
using testing::FakeMemory;
using testing::FaultyDevice;

constexpr uint32_t kBlocks = 4;
constexpr uint16_t kLayers = 3, kHeads = 2, kDim = 64;
constexpr size_t kSegment = DenseSegmentBytes(kHeads, kDim, DType::kF16);
constexpr size_t kKv = kBlocks * kLayers * kSegment, kBytes = 2 * kKv + 4096;
constexpr size_t kSource = 4096, kTarget = kSource + kKv;  // in the device's memory

class DeviceTest : public ::testing::Test {
 protected:
  DeviceTest() {
    char name[] = "/tmp/dyna-device-XXXXXX";
    folder_ = mkdtemp(name);
    auto memory = std::make_unique<FakeMemory>(kBytes);
    memory_ = memory.get();
    driver_ = std::make_unique<FakeDriver>(memory_);
    uint32_t x = 1;
    for (size_t i = 0; i + 1 < kBytes; i += 2) {  // f16 in +-2
      x = x * 1664525u + 1013904223u;
      const auto v = static_cast<uint16_t>(((x >> 16) & 0x83ff) | 0x3c00);
      std::memcpy(&memory_->bytes()[i], &v, 2);
    }
    auto device = std::make_unique<FaultyDevice>(
        std::make_unique<HostCopyBackend>(std::move(*MakeCpuBackend()), memory_));
    device_ = device.get();
    choice_ = WithFallback(std::move(device), std::move(*MakeCpuBackend()), std::move(memory));
    config::Options o;
    o.server.socket = folder_ + "/d.sock";
    o.server.state_dir = folder_ + "/state";
    o.server.codec_threads = 2;
    o.admin.port = 0;
    o.arena.bytes = 64u << 20;
    o.arena.prefault = false;
    o.spill.enabled = o.bank.enabled = false;
    o.limits.regions = 3;
    options_ = config::Resolve(o, config::ThisMachine());
  }
  void SetUp() override {
    auto built = Server::Build(options_, std::move(choice_), nullptr);
    ASSERT_TRUE(built.ok()) << built.status().ToString();
    server_ = std::move(*built);
    thread_ = std::thread([this] { code_ = server_->Run(); });
    Connect();
  }
  void Connect() {
    ClientOptions options;
    options.endpoint = options_.server.socket;
    options.device_api = driver_.get();
    Result<std::unique_ptr<Client>> client = Internal("");
    for (int i = 0; i < 500 && !client.ok(); ++i) {
      client = Client::Connect(options);
      if (!client.ok()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ASSERT_TRUE(client.ok()) << client.status().ToString();
    client_ = std::move(*client);
    ContextSpec spec;
    spec.model = "test";
    spec.dtype = DType::kF16;
    spec.ropes.push_back({});
    spec.layers.assign(kLayers, {LayerKind::kFull, kHeads, 4, kDim, 0, 0, 8192});
    auto context = client_->OpenContext(spec);
    ASSERT_TRUE(context.ok()) << context.status().ToString();
    context_ = *context;
  }
  void StopServer() {
    client_.reset();
    if (!thread_.joinable()) return;
    ::kill(::getpid(), SIGTERM);
    thread_.join();
  }
  ~DeviceTest() override {
    context_.reset();
    StopServer();
    server_.reset();
    std::filesystem::remove_all(folder_);
  }

  std::vector<BlockHash> Hashes(uint8_t first) const {
    std::vector<BlockHash> hashes(kBlocks);
    for (uint32_t i = 0; i < kBlocks; ++i) hashes[i].bytes = {first, static_cast<uint8_t>(i + 1)};
    return hashes;
  }
  KvMemory At(size_t offset) const {
    KvMemory kv =
        KvMemory::Dense(memory_->device() + offset, DType::kF16, kBlocks, kLayers, kHeads, kDim);
    kv.on_device = true;
    return kv;
  }
  PutResult Put(uint8_t first, QualityClass quality = QualityClass::kExact) {
    PutRequest put;
    put.hashes = Hashes(first);
    put.source = At(kSource);
    put.quality = quality;
    return context_->Put(std::move(put));
  }
  FetchResult Fetch(uint8_t first) {
    LookupRequest lookup;
    lookup.hashes = Hashes(first);
    auto lease = context_->Lookup(std::move(lookup));
    EXPECT_TRUE(lease.ok() && lease->run() == kBlocks);
    std::memset(memory_->bytes().data() + kTarget, 0, kKv);
    FetchRequest fetch;
    fetch.target = At(kTarget);
    return context_->Fetch(*lease, std::move(fetch));
  }
  bool TargetIsSource() const {
    return std::memcmp(memory_->bytes().data() + kSource, memory_->bytes().data() + kTarget, kKv) ==
           0;
  }
  // What is not instantaneous: letting go of memory is done off the loop.
  void ExpectOpen(int n) {
    for (int i = 0; i < 500 && memory_->open != n; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_EQ(memory_->open, n);
  }

  std::string folder_;
  config::Options options_;
  FakeMemory* memory_ = nullptr;  // the server's
  std::unique_ptr<FakeDriver> driver_;
  FaultyDevice* device_ = nullptr;
  BackendChoice choice_;
  std::unique_ptr<Server> server_;
  std::thread thread_;
  int code_ = -1;
  std::unique_ptr<Client> client_;
  std::shared_ptr<Context> context_;
};

TEST_F(DeviceTest, PutsAndFetchesWithoutTheHost) {
  auto region = client_->RegisterGpu(memory_->device() + 1024, kBytes - 1024);
  ASSERT_TRUE(region.ok()) << region.status().ToString();
  const PutResult put = Put(1);
  ASSERT_TRUE(put.status.ok()) << put.status.ToString();
  const FetchResult got = Fetch(1);
  ASSERT_TRUE(got.status.ok()) << got.status.ToString();
  EXPECT_TRUE(TargetIsSource());
  const ClientStats stats = client_->stats();
  EXPECT_EQ(stats.bytes_in_place, 2 * kKv);
  EXPECT_EQ(stats.bytes_staged, 0u);
  EXPECT_EQ(driver_->waits, 2);
}

TEST_F(DeviceTest, EncodesAndLearnsFromIt) {
  auto region = client_->RegisterGpu(memory_->device(), kBytes);
  ASSERT_TRUE(region.ok()) << region.status().ToString();
  const PutResult put = Put(1, QualityClass::kBalanced);
  ASSERT_TRUE(put.status.ok()) << put.status.ToString();
  EXPECT_GT(put.segments[0].nmse, 0);
  const FetchResult got = Fetch(1);
  ASSERT_TRUE(got.status.ok()) << got.status.ToString();
  EXPECT_FALSE(TargetIsSource());
}

TEST_F(DeviceTest, AFailedBatchIsDoneAgainAndALostDeviceIsATypedError) {
  auto region = client_->RegisterGpu(memory_->device(), kBytes);
  ASSERT_TRUE(region.ok()) << region.status().ToString();
  device_->failing = 1;
  ASSERT_TRUE(Put(1).status.ok());
  EXPECT_EQ(device_->failing, 0);
  ASSERT_TRUE(Fetch(1).status.ok());
  EXPECT_TRUE(TargetIsSource());
  device_->failing = 1;
  memory_->failing = true;
  const PutResult lost = Put(2);
  EXPECT_EQ(lost.status.code(), StatusCode::kInternal);
  EXPECT_EQ(lost.status.message().substr(0, 17), "source on the GPU");
}

TEST_F(DeviceTest, IsLetGoOfBeforeItsOwnerHearsSo) {
  auto a = client_->RegisterGpu(memory_->device(), kBytes);
  auto b = client_->RegisterGpu(memory_->device() + kTarget, kKv);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(memory_->open, 2);
  EXPECT_TRUE(client_->ReleaseGpu(*b).ok());
  EXPECT_EQ(memory_->open, 1);
  EXPECT_EQ(client_->ReleaseGpu(*b).code(), StatusCode::kInvalid);
  a->reset();  // at some time
  ExpectOpen(0);
  ASSERT_TRUE(Put(1).status.ok());  // not registered: through the host
  EXPECT_EQ(client_->stats().bytes_staged, kKv);
}

TEST_F(DeviceTest, IsLetGoOfWhenTheClientGoes) {
  auto region = client_->RegisterGpu(memory_->device(), kBytes);
  ASSERT_TRUE(region.ok());
  EXPECT_EQ(memory_->open, 1);
  client_.reset();
  ExpectOpen(0);
}

TEST_F(DeviceTest, TheServerStopsWithMemoryStillRegistered) {
  auto region = client_->RegisterGpu(memory_->device(), kBytes);
  ASSERT_TRUE(region.ok());
  ::kill(::getpid(), SIGTERM);
  thread_.join();
  EXPECT_EQ(code_, 0);
  region->reset();
}

TEST_F(DeviceTest, TheArenaIsPinnedWhileItIsThere) {
  const auto pinned = memory_->pinned;
  for (int i = 0; i < 500 && *pinned != options_.arena.bytes; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(*pinned, options_.arena.bytes);
  const auto json = client_->Query(wire::QueryKind::kStats);
  ASSERT_TRUE(json.ok());
  EXPECT_NE(json->find("\"pinned_bytes\":" + std::to_string(*pinned)), std::string::npos) << *json;
  StopServer();
  server_.reset();
  EXPECT_EQ(*pinned, 0u);
}

TEST_F(DeviceTest, RefusesWhatIsNotItsOwnAndStaysWithinItsBounds) {
  driver_->other_gpu = true;
  const auto other = client_->RegisterGpu(memory_->device(), kBytes);
  EXPECT_EQ(other.status().code(), StatusCode::kUnsupported);
  EXPECT_EQ(other.status().message(), "memory of another GPU than this daemon's");
  driver_->other_gpu = false;
  const auto beyond = client_->RegisterGpu(memory_->device() + 1, kBytes);
  EXPECT_EQ(beyond.status().code(), StatusCode::kInvalid);
  std::vector<std::shared_ptr<GpuRegion>> regions;
  for (int i = 0; i < 3; ++i) {
    auto region = client_->RegisterGpu(memory_->device() + 256 * i, 4096);
    ASSERT_TRUE(region.ok()) << region.status().ToString();
    regions.push_back(*region);
  }
  EXPECT_EQ(client_->RegisterGpu(memory_->device() + 8192, 1).status().code(),
            StatusCode::kTooLarge);
}

}  // namespace
}  // namespace dyna
