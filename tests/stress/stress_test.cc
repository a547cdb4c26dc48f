// Four clients against a daemon in the same process, so that ThreadSanitizer sees both sides: puts,
// lookups, fetches, reports, deletes and pins over regions and over the socket, while a small
// budget keeps demotion and the (fake) spill tier busy.
//
// DYNA_STRESS_SECONDS says how long (default 10); DYNA_TEST_SEED repeats a run.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <future>
#include <random>
#include <thread>

#include "client/base/asio_executor.h"
#include "client/client.h"
#include "client/transport/sigbus_guard.h"
#include "daemon/net/listener.h"
#include "daemon/server/codec_pool.h"
#include "daemon/store/store.h"
#include "daemon/tier/memory_spill.h"
#include "tests/support/seed.h"

namespace dyna {
namespace {

constexpr uint16_t kLayers = 2, kHeads = 2, kDim = 64;
constexpr uint32_t kBlocks = 4;
constexpr size_t kBytes = size_t{kBlocks} * kLayers * 2 * kHeads * kBlockTokens * kDim * 2;
constexpr int kClients = 4;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* given = std::getenv(name);
  return given != nullptr ? std::strtoull(given, nullptr, 0) : otherwise;
}

ContextSpec Spec() {
  ContextSpec spec;
  spec.model = "stress";
  spec.dtype = DType::kF16;
  Rope rope{RopeKind::kHalf, kDim, {}};
  for (int i = 0; i < kDim / 2; ++i)
    rope.inv_freq.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / kDim)));
  spec.ropes = {rope};
  spec.layers.assign(kLayers, {LayerKind::kFull, kHeads, kHeads, kDim, 0, 0, 8192});
  return spec;
}

// What daemon/server builds, without disks, admin page and signals; its loop is a thread here.
class InProcessDaemon {
 public:
  explicit InProcessDaemon(std::string socket) : socket_(std::move(socket)) {
    backend_ = std::move(MakeCpuBackend("auto").value());
    codec_ = std::make_unique<CodecPool>(executor_, 2, size_t{8} << 10);
    spill_ = std::make_unique<MemorySpill>(executor_);
    arena_ = std::move(Arena::Create({uint64_t{8} << 20, 0, false}).value());
    StoreOptions options;
    options.budget_bytes = 2 << 20;
    store_ = std::make_unique<Store>(
        Store::Parts{clock_, executor_, *codec_, *backend_, *arena_, spill_.get(), nullptr},
        options);
    store_->OnBusy([this] { ArmTick(); });
    host_.reset(new SessionHost{loop_,
                                executor_,
                                clock_,
                                *store_,
                                *codec_,
                                NetLimits{},
                                77,
                                "test",
                                StagingPool::Create(uint64_t{256} << 20, 16 << 20),
                                {},
                                false,
                                {},
                                {},
                                {},
                                {}});
    host_->tenant_of = [](uid_t) { return TenantId{1}; };
    host_->is_operator = [](uid_t) { return true; };
    host_->ucx = []() -> Result<UcxTransport*> { return Unsupported("no UCX in this test"); };
    host_->query = [this](const Caller&, const wire::Query&) -> Result<std::string> {
      return std::to_string(store_->stats().host.blocks);
    };
    std::promise<Status> listening;
    executor_.Post([&] {
      store_->Recover([&](Status recovered) {
        auto listener = Listener::Open(*host_, socket_, [](uid_t) { return true; });
        if (listener.ok()) listener_ = std::move(*listener);
        listening.set_value(recovered.ok() ? listener.status() : recovered);
      });
    });
    thread_ = std::thread([this] { loop_.run(); });
    const Status opened = listening.get_future().get();
    EXPECT_TRUE(opened.ok()) << opened.ToString();
  }

  ~InProcessDaemon() {
    executor_.Post([this] {
      stopping_ = true;
      host_->draining = true;
      listener_->StopAccepting();
      store_->Drain(clock_.Now() + std::chrono::seconds(2), [this] {
        listener_->GoawayAll("the end");
        executor_.Post([this] { loop_.stop(); });
      });
    });
    thread_.join();
    listener_.reset();
    codec_.reset();
    loop_.restart();
    loop_.poll();
    store_.reset();
    unlink(socket_.c_str());
  }

 private:
  void ArmTick() {
    if (armed_ || stopping_) return;
    armed_ = true;
    executor_.PostAt(clock_.Now() + std::chrono::milliseconds(1), [this] {
      armed_ = false;
      if (store_->Tick() || store_->NeedsClock()) ArmTick();
    });
  }

  std::string socket_;
  SystemClock clock_;
  asio::io_context loop_;
  asio::executor_work_guard<asio::io_context::executor_type> work_{loop_.get_executor()};
  AsioExecutor executor_{loop_};
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<CodecPool> codec_;
  std::unique_ptr<MemorySpill> spill_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<SessionHost> host_;
  std::unique_ptr<Listener> listener_;
  bool armed_ = false, stopping_ = false;
  std::thread thread_;
};

// Chains that the clients share: of number n, the blocks and what was put into them.
std::vector<BlockHash> Chain(uint32_t number) {
  std::vector<BlockHash> names(kBlocks);
  for (uint32_t i = 0; i < kBlocks; ++i) {
    const uint32_t word[3] = {i + 1, number + 1, 9};
    std::memcpy(names[i].bytes.data(), word, sizeof word);
  }
  return names;
}

// f16 values of +-1..2: the sign bits and mantissas are the chain's.
void Fill(std::span<std::byte> bytes, uint32_t number) {
  uint32_t x = number * 2654435761u + 1;
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    x = x * 1664525u + 1013904223u;
    const auto value = static_cast<uint16_t>(((x >> 16) & 0x83ff) | 0x3c00);
    std::memcpy(&bytes[i], &value, 2);
  }
}

// What may happen to a call when others delete, and the budget is small; nothing else may.
bool Expected(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
    case StatusCode::kExists:
    case StatusCode::kMiss:
    case StatusCode::kPending:
    case StatusCode::kRetry:
    case StatusCode::kLeaseLost:
    case StatusCode::kCancelled:  // deleted while it was being put
      return true;
    default:
      return false;
  }
}

struct Tally {
  std::atomic<uint64_t> puts{0}, fetches{0}, reports{0}, deletes{0};
};

void Work(const std::string& socket, Bulk bulk, uint64_t seed, const std::atomic<bool>& stop,
          Tally& tally) {
  ClientOptions options;
  options.endpoint = socket;
  options.bulk = bulk;
  auto client = Client::Connect(options);
  ASSERT_TRUE(client.ok()) << client.status().ToString();
  auto context = (*client)->OpenContext(Spec());
  ASSERT_TRUE(context.ok()) << context.status().ToString();
  std::shared_ptr<Region> region;
  std::vector<std::byte> plain;
  std::byte* base;
  if (bulk == Bulk::kSocket) {
    plain.resize(2 * kBytes);
    base = plain.data();
  } else {
    auto allocated = (*client)->AllocateRegion(2 * kBytes);
    ASSERT_TRUE(allocated.ok()) << allocated.status().ToString();
    region = *allocated;
    base = region->bytes().data();
  }
  const auto memory = [](std::byte* at) {
    return KvMemory::Dense(at, DType::kF16, kBlocks, kLayers, kHeads, kDim);
  };
  std::vector<float> queries(size_t{kLayers} * 8 * kHeads * kDim, 0.5f);
  std::mt19937_64 dice(seed);
  while (!stop) {
    const auto number = static_cast<uint32_t>(dice() % 24);
    const std::vector<BlockHash> names = Chain(number);
    const uint64_t action = dice() % 10;
    if (action < 4) {
      Fill({base, kBytes}, number);
      PutRequest put;
      put.hashes = names;
      put.source = memory(base);
      put.quality = dice() % 4 == 0 ? QualityClass::kHigh : QualityClass::kBalanced;
      put.wait_for_room = false;
      const PutResult result = (*context)->Put(std::move(put));
      EXPECT_TRUE(Expected(result.status)) << "put: " << result.status.ToString();
      ++tally.puts;
    } else if (action < 8) {
      LookupRequest lookup;
      lookup.hashes = names;
      auto lease = (*context)->Lookup(std::move(lookup));
      ASSERT_TRUE(lease.ok()) << "lookup: " << lease.status().ToString();
      if (lease->run() == 0) continue;
      FetchRequest fetch;
      fetch.block_count = lease->run();
      fetch.form = dice() % 3 == 0 ? wire::Form::kAsStored : wire::Form::kDecoded;
      fetch.target =
          KvMemory::Dense(base + kBytes, DType::kF16, lease->run(), kLayers, kHeads, kDim);
      const FetchResult result = (*context)->Fetch(*lease, std::move(fetch));
      EXPECT_TRUE(Expected(result.status)) << "fetch: " << result.status.ToString();
      if (result.status.ok()) {
        // The first tokens are pinned raw: the chain's own bytes, whatever happened to the rest.
        Fill({base, kBytes}, number);
        EXPECT_EQ(std::memcmp(base, base + kBytes, 4 * kDim * 2), 0) << "chain " << number;
        ++tally.fetches;
      }
    } else if (action == 8) {
      ReportRequest report;
      report.report.leaf = names.back();
      report.report.layer_count = kLayers;
      report.report.head_end = kHeads;
      report.report.first_query_position = kBlocks * kBlockTokens;
      report.report.queries = 8;
      report.report.advance = 64;
      report.data = std::as_bytes(std::span(queries));
      const Status status = (*context)->Report(report);
      EXPECT_TRUE(Expected(status)) << "report: " << status.ToString();
      ++tally.reports;
    } else {
      const auto deleted = (*context)->Delete(names);
      EXPECT_TRUE(deleted.ok()) << "delete: " << deleted.status().ToString();
      ++tally.deletes;
    }
  }
}

TEST(Stress, FourClientsOverRegionsAndSocket) {
  ASSERT_TRUE(InstallSigbusHandler().ok());
  const uint64_t seed = testing::TestSeed();
  const std::string socket = "/tmp/dyna_stress_" + std::to_string(getpid()) + ".sock";
  InProcessDaemon daemon(socket);
  std::atomic<bool> stop{false};
  Tally tally;
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i)
    clients.emplace_back([&, i] {
      Work(socket, i % 2 == 0 ? Bulk::kRegion : Bulk::kSocket, seed + static_cast<uint64_t>(i),
           stop, tally);
    });
  std::this_thread::sleep_for(std::chrono::seconds(FromEnvironment("DYNA_STRESS_SECONDS", 10)));
  stop = true;
  for (std::thread& client : clients) client.join();
  std::printf("%llu puts, %llu fetches, %llu reports, %llu deletes\n",
              static_cast<unsigned long long>(tally.puts.load()),
              static_cast<unsigned long long>(tally.fetches.load()),
              static_cast<unsigned long long>(tally.reports.load()),
              static_cast<unsigned long long>(tally.deletes.load()));
  EXPECT_GT(tally.puts, 0u);
  EXPECT_GT(tally.fetches, 0u);
  EXPECT_GT(tally.reports, 0u);
  EXPECT_GT(tally.deletes, 0u);
}

}  // namespace
}  // namespace dyna
