#include "daemon/tier/guarded_store.h"

#include <gtest/gtest.h>

#include "daemon/tier/memory_spill.h"
#include "daemon/tier/store_harness.h"

namespace dyna {
namespace {

struct GuardedStoreTest : testing::Test {
  GuardedStoreTest() {
    auto inner = std::make_unique<MemorySpill>(executor);
    memory = inner.get();
    store = GuardStore("spill", std::move(inner),
                       {.failures = 2, .first_backoff = std::chrono::seconds(1)}, clock, executor);
  }
  Client client() { return {*store, executor}; }

  FakeClock clock;
  TestExecutor executor;
  MemorySpill* memory = nullptr;
  std::unique_ptr<SpillStore> store;
  const TestBlock block = TestBlock::Make(1);
};

TEST_F(GuardedStoreTest, AFailingDiskIsLeftAloneAndTriedAgain) {
  ASSERT_TRUE(client().Put(block).ok());
  memory->FailNext(100, Internal("i/o error"));
  EXPECT_EQ(client().Put(block).code(), StatusCode::kInternal);
  EXPECT_EQ(client().Read(block)[0].code(), StatusCode::kInternal);

  EXPECT_FALSE(store->stats().available);
  EXPECT_NE(store->stats().state.find("i/o error"), std::string::npos);
  const Status refused = client().Put(block);
  EXPECT_EQ(refused.code(), StatusCode::kRetry);
  EXPECT_EQ(refused.retry_after_ms(), 1000u);
  const auto reads = client().Read(block);
  ASSERT_EQ(reads.size(), block.bytes.size());
  EXPECT_EQ(reads[0].code(), StatusCode::kRetry);
  EXPECT_EQ(store->stats().refused, 2u);
  EXPECT_EQ(memory->stats().errors, 2u);

  memory->FailNext(0, {});
  clock.Advance(std::chrono::seconds(1));
  EXPECT_TRUE(client().Holds(block));
  EXPECT_TRUE(store->stats().available);
}

TEST_F(GuardedStoreTest, MissesAndFullBudgetsAreNoFailures) {
  store->SetBudget(1);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(client().Put(block).code(), StatusCode::kQuota);
    EXPECT_EQ(client().Read(block)[0].code(), StatusCode::kMiss);
  }
  EXPECT_TRUE(store->stats().available);
}

TEST_F(GuardedStoreTest, CompletionsMayOutliveTheStore) {
  memory->Hold();
  Status status;
  int answers = 0;
  store->PutBlock(block.Write(), [&](Status s) {
    status = std::move(s);
    ++answers;
  });
  memory->ReleaseAll();
  store.reset();
  ASSERT_TRUE(executor.RunUntil([&] { return answers == 1; }));
  EXPECT_TRUE(status.ok());
}

}  // namespace
}  // namespace dyna
