#include "client/base/deadline_queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace dyna {
namespace {

using std::chrono::milliseconds;

class DeadlineQueueTest : public testing::Test {
 protected:
  void Advance(int ms) {
    clock_.Advance(milliseconds(ms));
    executor_.RunAll();
  }
  FakeClock clock_;
  ManualExecutor executor_{clock_};
  std::unique_ptr<DeadlineQueue> queue_ = std::make_unique<DeadlineQueue>(executor_, clock_);
  std::string log_;
};

TEST_F(DeadlineQueueTest, RunsInOrderOfTimeAndNotEarly) {
  queue_->AddAfter(milliseconds(20), [&] { log_ += 'b'; });
  queue_->AddAfter(milliseconds(10), [&] { log_ += 'a'; });
  queue_->AddAfter(milliseconds(30), [&] { log_ += 'c'; });
  Advance(9);
  EXPECT_EQ(log_, "");
  Advance(1);
  EXPECT_EQ(log_, "a");
  Advance(25);
  EXPECT_EQ(log_, "abc");
  EXPECT_EQ(queue_->size(), 0u);
}

TEST_F(DeadlineQueueTest, CancelledNeverRuns) {
  const auto id = queue_->AddAfter(milliseconds(10), [&] { log_ += 'x'; });
  queue_->AddAfter(milliseconds(20), [&] { log_ += 'y'; });
  EXPECT_TRUE(queue_->Cancel(id));
  EXPECT_FALSE(queue_->Cancel(id));
  Advance(10);
  EXPECT_EQ(log_, "");
  Advance(10);
  EXPECT_EQ(log_, "y");
}

TEST_F(DeadlineQueueTest, ACallbackMayAddCancelAndDestroy) {
  DeadlineQueue::TimerId later = queue_->AddAfter(milliseconds(10), [&] { log_ += 'z'; });
  queue_->Add(clock_.Now() + milliseconds(5), [&] {
    log_ += 'a';
    queue_->Cancel(later);
    queue_->AddAfter(milliseconds(1), [&] {
      log_ += 'b';
      queue_.reset();
    });
    queue_->AddAfter(milliseconds(2), [&] { log_ += 'c'; });
  });
  Advance(5);
  Advance(1);
  Advance(100);
  EXPECT_EQ(log_, "ab");
}

TEST_F(DeadlineQueueTest, IdleArmsNothing) {
  EXPECT_EQ(executor_.pending(), 0u);
  queue_->AddAfter(milliseconds(1), [] {});
  queue_->AddAfter(milliseconds(2), [] {});
  EXPECT_EQ(executor_.pending(), 1u);
  Advance(2);
  EXPECT_EQ(executor_.pending(), 0u);
}

}  // namespace
}  // namespace dyna
