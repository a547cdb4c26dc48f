#include "client/transport/reconnector.h"

#include <gtest/gtest.h>

#include <vector>

namespace dyna {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class ReconnectorTest : public testing::Test {
 protected:
  void Answer(const Status& status) {
    auto done = std::move(pending_.back());
    pending_.pop_back();
    done(status);
  }
  void Advance(Duration by) {
    clock_.Advance(by);
    executor_.RunAll();
  }
  const Status away_{StatusCode::kCancelled, "refused"};
  FakeClock clock_;
  ManualExecutor executor_{clock_};
  std::vector<std::function<void(const Status&)>> pending_;
  std::unique_ptr<Reconnector> reconnector_ =
      std::make_unique<Reconnector>(executor_, clock_, BackoffOptions{},
                                    [this](auto done) { pending_.push_back(std::move(done)); });
};

TEST(BackoffDelayTest, GrowsToItsBoundWithJitter) {
  const BackoffOptions options;
  for (uint32_t n = 0; n < 100; ++n) {
    const Duration whole = n < 8 ? options.first * (1 << n) : options.max;
    EXPECT_EQ(BackoffDelay(options, n, 0), std::min(whole, options.max) / 2);
    for (const uint64_t random : {uint64_t{12345}, ~uint64_t{0}, uint64_t{1} << 63}) {
      EXPECT_GE(BackoffDelay(options, n, random), std::min(whole, options.max) / 2);
      EXPECT_LE(BackoffDelay(options, n, random), std::min(whole, options.max));
    }
  }
}

TEST_F(ReconnectorTest, TriesUntilTheDaemonIsBack) {
  reconnector_->Start();
  for (int i = 0; i < 20; ++i) {
    ASSERT_EQ(pending_.size(), 1u);
    Answer(away_);
    EXPECT_TRUE(pending_.empty()) << "without a pause";
    Advance(seconds(5));
  }
  Answer(Status::Ok());
  EXPECT_TRUE(reconnector_->connected());
  EXPECT_EQ(reconnector_->attempts(), 21u);
  Advance(seconds(60));
  EXPECT_TRUE(pending_.empty());
  reconnector_->Lost();
  ASSERT_EQ(pending_.size(), 1u) << "at once";
  Answer(away_);
  Advance(milliseconds(20));  // from the shortest delay again
  EXPECT_EQ(pending_.size(), 1u);
}

TEST_F(ReconnectorTest, GivesUpWhereTryingCannotHelp) {
  reconnector_->Start();
  Answer({StatusCode::kUnauthenticated, "uid 7 is not allowed"});
  EXPECT_TRUE(reconnector_->gave_up());
  Advance(seconds(60));
  EXPECT_TRUE(pending_.empty());
  EXPECT_EQ(reconnector_->last_error().message(), "uid 7 is not allowed");
}

TEST_F(ReconnectorTest, LateAnswersAreNobodys) {
  reconnector_->Start();
  auto late = std::move(pending_.back());
  pending_.pop_back();
  reconnector_->Stop();
  late(Status::Ok());
  EXPECT_FALSE(reconnector_->connected());
  reconnector_->Start();
  Answer(away_);
  reconnector_->Stop();
  Advance(seconds(60));
  EXPECT_TRUE(pending_.empty());
  reconnector_.reset();
  late(Status::Ok());
  Advance(seconds(60));
}

}  // namespace
}  // namespace dyna
