// Several clients that put layer by layer at once, under a budget that holds less than they bring.
#include <gtest/gtest.h>

#include <algorithm>

#include "daemon/store/store_harness.h"

namespace dyna {
namespace {

using std::chrono::milliseconds;
using testing::StoreHarness;

constexpr int kDeep = 16, kHeads = StoreHarness::kHeads, kClients = 6, kChain = 4;
constexpr size_t kFloats = StoreHarness::kBlock / StoreHarness::kLayers * kDeep;

struct Client {
  Caller caller;
  uint64_t first = 0;  // block's number
  std::vector<std::vector<float>> data;
  int layer = 0;
  bool waits = false;
  TimePoint again;
  int retries = 0;
};

class StoreClients : public ::testing::TestWithParam<std::pair<int, int>> {
 protected:
  StoreClients() : s_(16u << 20) {
    s_.spec.model = "deep";
    s_.spec.layers.assign(kDeep, s_.spec.layers[0]);
    context_ = s_.store->OpenContext(s_.caller, s_.spec, {})->context;
  }
  static std::vector<float> Data(uint64_t n) {
    std::mt19937_64 random(n);
    std::normal_distribution<float> normal;
    std::vector<float> out(kFloats);
    for (float& x : out) x = normal(random);
    return out;
  }
  void Put(Client& c) {
    wire::Put put = s_.Request(c.first, 0);
    put.context = context_;
    put.shard = {0, kDeep, 0, kHeads};
    put.layer_begin = static_cast<uint16_t>(c.layer);
    put.layer_count = 1;
    put.hashes.clear();
    std::vector<KvView> sources;
    for (uint64_t b = 0; b < kChain; ++b) {
      put.hashes.push_back(StoreHarness::Name(c.first + b));
      sources.push_back(StoreHarness::Sources(c.data[b], c.layer, 1)[0]);
    }
    c.waits = true;
    s_.store->Put(c.caller, put, sources, {}, [this, &c](const wire::PutReply& reply) {
      c.waits = false;
      if (reply.status.ok()) {
        ++c.layer;
        return;
      }
      EXPECT_EQ(reply.status.code(), StatusCode::kRetry) << reply.status.ToString();
      ++c.retries;
      c.again = s_.clock.Now() + milliseconds(std::max(reply.status.retry_after_ms(), 1u));
    });
  }

  StoreHarness s_;
  Fingerprint context_ = 0;
};

// Budgets in percent of what the blocks take at 8 bits; ms from one client's begin to the next's.
TEST_P(StoreClients, AllAreAcceptedAndTheBudgetIsKept) {
  const auto [percent, stagger] = GetParam();
  std::vector<Client> clients(kClients + 1);
  for (int i = 0; i <= kClients; ++i) {
    Client& c = clients[static_cast<size_t>(i)];
    c.caller = {static_cast<SessionId>(10 + i), s_.caller.tenant};
    c.first = 1 + static_cast<uint64_t>(i) * kChain;
    for (uint64_t b = 0; b < kChain; ++b) c.data.push_back(Data(c.first + b));
  }
  // The last one tells what a chain takes.
  for (Client& c = clients.back(); c.layer < kDeep;) {
    Put(c);
    s_.Settle();
  }
  const uint64_t chain = s_.store->stats().charged_bytes;
  s_.store->Clear(s_.caller, {context_});
  s_.Settle();
  clients.pop_back();
  s_.store->SetBudget(chain * kClients * static_cast<uint64_t>(percent) / 100);

  std::mt19937_64 dice(static_cast<uint64_t>(percent));
  const TimePoint start = s_.clock.Now();
  for (int i = 0; i < kClients; ++i)
    clients[static_cast<size_t>(i)].again = start + milliseconds(i * stagger);
  const auto finished = [&] {
    return std::all_of(clients.begin(), clients.end(),
                       [](const Client& c) { return c.layer == kDeep; });
  };
  while (!finished() && s_.clock.Now() - start < std::chrono::seconds(20)) {
    for (Client& c : clients)
      if (!c.waits && c.layer < kDeep && s_.clock.Now() >= c.again && dice() % 2 == 0) Put(c);
    for (int i = 0; i < 8; ++i) dice() % 2 == 0 ? (void)s_.codec.RunOne() : (void)s_.loop.RunOne();
    s_.store->Tick();
    s_.clock.Advance(milliseconds(1));
  }
  s_.Settle();
  int retries = 0;
  for (const Client& c : clients) {
    EXPECT_EQ(c.layer, kDeep) << "a client that is refused for ever";
    retries += c.retries;
  }
  const StoreStats stats = s_.store->stats();
  EXPECT_LE(stats.charged_bytes, stats.budget_bytes);
  // Those that begin later find first layers that were coded while there was room, and these shrink
  // only when their blocks are complete.
  if (stagger == 0) {
    EXPECT_EQ(retries, 0);
  }
  EXPECT_EQ(stats.aborted_puts, 0u);
  EXPECT_EQ(stats.spilled_blocks, 0u);

  for (Client& c : clients)
    for (uint64_t b = 0; b < kChain; ++b) {
      wire::Lookup look;
      look.context = context_;
      look.shard = {0, kDeep, 0, kHeads};
      look.hashes = {StoreHarness::Name(c.first + b)};
      const auto hit = s_.store->Lookup(c.caller, look);
      if (hit.run != 1) continue;  // a miss is allowed
      std::vector<float> got(kFloats);
      wire::Fetch fetch;
      fetch.context = context_;
      fetch.lease = hit.lease;
      fetch.head_end = kHeads;
      fetch.layer_count = kDeep;
      fetch.block_count = 1;
      Status status = Internal("never answered");
      s_.store->Fetch(c.caller, fetch, StoreHarness::Views(got, 0, kDeep, 0), {},
                      [&](Store::Fetched f) { status = f.reply.status; });
      s_.Settle();
      ASSERT_TRUE(status.ok()) << status.ToString();
      double error = 0, energy = 0;
      for (size_t i = 0; i < kFloats; ++i) {
        const double d = static_cast<double>(got[i]) - static_cast<double>(c.data[b][i]);
        error += d * d;
        energy += static_cast<double>(c.data[b][i]) * static_cast<double>(c.data[b][i]);
      }
      EXPECT_LT(error / energy, 0.05) << "block " << c.first + b;
      s_.store->ReleaseLease(c.caller, hit.lease);
    }
}

INSTANTIATE_TEST_SUITE_P(Budgets, StoreClients,
                         ::testing::Values(std::pair(90, 0), std::pair(75, 0), std::pair(62, 0),
                                           std::pair(75, 6), std::pair(62, 6), std::pair(62, 20)));

}  // namespace
}  // namespace dyna
