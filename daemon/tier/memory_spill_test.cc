#include "daemon/tier/memory_spill.h"

#include <gtest/gtest.h>

#include "daemon/tier/store_harness.h"

namespace dyna {
namespace {

TEST(MemorySpill, NothingHappensBeforeTheExecutorRuns) {
  FakeClock clock;
  ManualExecutor executor(clock);
  MemorySpill store(executor);
  const TestBlock b = TestBlock::Make(1);
  int answers = 0;
  store.PutBlock(b.Write(), [&](Status) { ++answers; });
  EXPECT_EQ(answers, 0);
  EXPECT_TRUE(store.disk().blocks.empty());
  EXPECT_EQ(executor.RunAll(), 1u);
  EXPECT_EQ(answers, 1);
  EXPECT_EQ(store.disk().blocks.size(), 1u);
}

TEST(MemorySpill, HeldOperationsGoInOrder) {
  FakeClock clock;
  ManualExecutor executor(clock);
  MemorySpill store(executor);
  const TestBlock b = TestBlock::Make(1);
  std::vector<int> order;
  store.Hold();
  store.PutBlock(b.Write(), [&](Status) { order.push_back(1); });
  store.DeleteBlock(b.meta.key, [&](Status) { order.push_back(2); });
  EXPECT_EQ(executor.RunAll(), 0u);
  EXPECT_EQ(store.held(), 2u);
  store.Release(1);
  executor.RunAll();
  EXPECT_EQ(order, (std::vector<int>{1}));
  store.ReleaseAll();
  executor.RunAll();
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST(MemorySpill, FaultsAndDamage) {
  TestExecutor executor;
  MemorySpill store(executor);
  Client client{store, executor};
  const TestBlock b = TestBlock::Make(1);
  store.FailNext(1, Internal("i/o error"));
  EXPECT_EQ(client.Put(b).code(), StatusCode::kInternal);
  EXPECT_TRUE(store.disk().blocks.empty());
  ASSERT_TRUE(client.Put(b).ok());
  store.Damage(b.meta.key, {PartId::Kind::kSegment, 1, 0});
  const auto statuses = client.Read(b);
  EXPECT_TRUE(statuses[0].ok());
  EXPECT_EQ(statuses[1].code(), StatusCode::kMiss);
  EXPECT_EQ(store.stats().quarantined, 1u);
  EXPECT_EQ(client.Read(b)[1].code(), StatusCode::kMiss);
}

}  // namespace
}  // namespace dyna
