// The daemon put together, in this process: which backend it takes, and how it ends when it loses
// its device.
#include "daemon/server/server.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "daemon/config/machine.h"
#include "kernels/testing_device.h"

namespace dyna {
namespace {

// The folder of the test, for the process of a death test: it cannot remove its own.
constexpr char kFolder[] = "DYNA_SERVER_TEST_FOLDER";

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() {
    char name[] = "/tmp/dyna-server-XXXXXX";
    const char* parents = std::getenv(kFolder);
    folder_ = parents != nullptr ? parents : mkdtemp(name);
    config::Options o;
    o.server.socket = folder_ + "/d.sock";
    o.server.state_dir = folder_ + "/state";
    o.server.codec_threads = 2;
    o.admin.port = 0;
    o.arena.bytes = 64u << 20;
    o.arena.prefault = false;
    o.spill.bytes = o.bank.bytes = 256u << 20;
    options_ = config::Resolve(o, config::ThisMachine());
  }
  ~ServerTest() override { std::filesystem::remove_all(folder_); }

  std::string folder_;
  config::Options options_;
};

TEST_F(ServerTest, TakesTheCpuWhereItIsAskedFor) {
  options_.server.backend = "cpu";
  const auto choice = ChooseBackend(options_);
  ASSERT_TRUE(choice.ok()) << choice.status().ToString();
  EXPECT_EQ(choice.value().backend->name(), "cpu");
  EXPECT_EQ(choice.value().device, nullptr);
  EXPECT_EQ(choice.value().why_cpu, "");
}

TEST_F(ServerTest, WithoutADeviceAutoSaysWhyAndCudaSaysWhatToDo) {
  const auto automatic = ChooseBackend(options_);
  ASSERT_TRUE(automatic.ok()) << automatic.status().ToString();
  if (automatic.value().device != nullptr) GTEST_SKIP() << automatic.value().gpu;
  EXPECT_EQ(automatic.value().backend->name(), "cpu");
  EXPECT_NE(automatic.value().why_cpu, "");
  options_.server.backend = "cuda";
  const auto cuda = ChooseBackend(options_);
  ASSERT_FALSE(cuda.ok());
  EXPECT_EQ(cuda.status().code(), StatusCode::kUnsupported);
  EXPECT_NE(cuda.status().message().find("set server.backend to auto or cpu"), std::string::npos)
      << cuda.status().ToString();
}

// A server with a device that is lost as soon as the socket is there.
class LosingServer {
 public:
  explicit LosingServer(const config::Options& options) {
    auto owned = std::make_unique<testing::FaultyDevice>(std::move(*MakeCpuBackend("scalar")));
    testing::FaultyDevice* device = owned.get();
    BackendChoice choice = WithFallback(std::move(owned), std::move(*MakeCpuBackend("scalar")));
    Backend* backend = choice.backend.get();
    auto built = Server::Build(options, std::move(choice), nullptr);
    if (!built.ok()) std::abort();
    server = std::move(*built);
    codec_ = std::thread([this, device, backend, socket = options.server.socket] {
      for (int i = 0; i < 500 && !std::filesystem::exists(socket); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      device->losing = true;
      lost = std::chrono::steady_clock::now();
      const std::vector<uint16_t> z(64 * 64, 0x3c00);
      std::vector<std::byte> packed(*VTileBytes(kind::VBits(4), 64, DType::kF16));
      int8_t exponent = 0;
      EXPECT_TRUE(backend->QuantiseV(z, 64, 4, ~uint64_t{0}, 0, packed, &exponent).ok());
    });
  }
  int Run() {
    const int code = server->Run();
    codec_.join();
    return code;
  }
  std::unique_ptr<Server> server;
  std::chrono::steady_clock::time_point lost;

 private:
  std::thread codec_;
};

TEST_F(ServerTest, ALostDeviceEndsItWithin5SecondsAndCode75) {
  LosingServer losing(options_);
  EXPECT_EQ(losing.Run(), 75);
  losing.server.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - losing.lost, std::chrono::seconds(5));
}

TEST_F(ServerTest, ALostDeviceEndsItAlsoWhereClosingHangs) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto begin = std::chrono::steady_clock::now();
  ::setenv(kFolder, folder_.c_str(), 1);
  EXPECT_EXIT(
      {
        LosingServer losing(options_);
        losing.Run();
        std::this_thread::sleep_for(std::chrono::seconds(60));  // as in a driver that is stuck
      },
      ::testing::ExitedWithCode(75), "the GPU is lost");
  ::unsetenv(kFolder);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

}  // namespace
}  // namespace dyna
