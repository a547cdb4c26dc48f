#include "daemon/tier/kept_deletions.h"

#include <gtest/gtest.h>

#include "daemon/tier/memory_spill.h"
#include "daemon/tier/store_harness.h"

namespace dyna {
namespace {

struct KeptDeletionsTest : testing::Test {
  KeptDeletionsTest() {
    auto inner = std::make_unique<MemorySpill>(executor);
    memory = inner.get();
    store = KeepDeletions(std::move(inner), clock, executor);
  }
  Status Put() {
    Status out = Internal("not answered");
    store->PutBlock(block.Write(), [&](Status s) { out = std::move(s); });
    executor.RunAll();
    return out;
  }
  Status Delete() {
    Status out = Internal("not answered");
    store->DeleteBlock(block.meta.key, [&](Status s) { out = std::move(s); });
    executor.RunAll();
    return out;
  }
  bool Held() const { return memory->disk().blocks.size() == 1; }
  void Wait() {
    clock.Advance(std::chrono::seconds(1));
    executor.RunAll();
  }

  FakeClock clock;
  ManualExecutor executor{clock};
  MemorySpill* memory = nullptr;
  std::unique_ptr<SpillStore> store;
  const TestBlock block = TestBlock::Make(1);
};

TEST_F(KeptDeletionsTest, AreAskedForAgainUntilTheyAreDone) {
  ASSERT_TRUE(Put().ok());
  memory->FailNext(3, Status(StatusCode::kRetry, "too much is queued"));
  EXPECT_EQ(Delete().code(), StatusCode::kRetry);
  EXPECT_TRUE(Held());
  Wait();
  Wait();
  EXPECT_TRUE(Held());
  Wait();
  EXPECT_FALSE(Held());
  EXPECT_EQ(executor.pending(), 0u) << "nothing is left to do";
}

TEST_F(KeptDeletionsTest, DoNotTouchWhatTookItsPlace) {
  ASSERT_TRUE(Put().ok());
  memory->FailNext(1, Internal("i/o error"));
  EXPECT_EQ(Delete().code(), StatusCode::kInternal);
  ASSERT_TRUE(Put().ok());
  Wait();
  EXPECT_TRUE(Held());
}

// The put was asked for before the deletion had failed.
TEST_F(KeptDeletionsTest, ThatFailLateDoNotTouchWhatTookTheirPlace) {
  ASSERT_TRUE(Put().ok());
  memory->FailNext(1, Internal("i/o error"));
  store->DeleteBlock(block.meta.key, {});
  ASSERT_TRUE(Put().ok());
  Wait();
  EXPECT_TRUE(Held());
}

TEST_F(KeptDeletionsTest, AreKeptWhereWhatWasToTakeItsPlaceIsNotStored) {
  ASSERT_TRUE(Put().ok());
  memory->FailNext(2, Internal("i/o error"));
  EXPECT_FALSE(Delete().ok());
  EXPECT_FALSE(Put().ok());
  Wait();
  EXPECT_FALSE(Held());
}

TEST_F(KeptDeletionsTest, EndWithTheStore) {
  ASSERT_TRUE(Put().ok());
  memory->FailNext(1, Internal("i/o error"));
  EXPECT_FALSE(Delete().ok());
  store.reset();
  Wait();
}

}  // namespace
}  // namespace dyna
