#include "daemon/tier/circuit_breaker.h"

#include <gtest/gtest.h>

namespace dyna {
namespace {

using State = CircuitBreaker::State;
using std::chrono::milliseconds;
using std::chrono::seconds;

struct CircuitBreakerTest : testing::Test {
  FakeClock clock;
  CircuitBreaker breaker{{.failures = 3, .first_backoff = seconds(1), .max_backoff = seconds(5)}};
  bool Allow() { return breaker.Allow(clock.Now()); }
  void Fail() { breaker.OnFailure(clock.Now()); }
  void FailUntilOpen() {
    for (int i = 0; i < 3; ++i) Fail();
  }
};

TEST_F(CircuitBreakerTest, OpensAfterFailuresInARow) {
  Fail();
  Fail();
  breaker.OnSuccess();
  Fail();
  Fail();
  EXPECT_EQ(breaker.state(), State::kClosed);
  Fail();
  EXPECT_EQ(breaker.state(), State::kOpen);
  EXPECT_FALSE(Allow());
  EXPECT_EQ(breaker.RetryAfter(clock.Now()), seconds(1));
  EXPECT_EQ(breaker.opened(), 1u);
}

TEST_F(CircuitBreakerTest, OneProbeDecides) {
  FailUntilOpen();
  clock.Advance(milliseconds(999));
  EXPECT_FALSE(Allow());
  clock.Advance(milliseconds(1));
  EXPECT_TRUE(Allow());
  EXPECT_EQ(breaker.state(), State::kHalfOpen);
  EXPECT_FALSE(Allow());
  breaker.OnSuccess();
  EXPECT_EQ(breaker.state(), State::kClosed);
  EXPECT_TRUE(Allow());
}

TEST_F(CircuitBreakerTest, BackOffDoublesToItsTopAndStartsAnewAfterSuccess) {
  FailUntilOpen();
  for (int expected : {1, 2, 4, 5, 5}) {
    EXPECT_EQ(breaker.RetryAfter(clock.Now()), seconds(expected));
    clock.Advance(seconds(expected));
    ASSERT_TRUE(Allow());
    Fail();
  }
  clock.Advance(seconds(5));
  ASSERT_TRUE(Allow());
  breaker.OnSuccess();
  FailUntilOpen();
  EXPECT_EQ(breaker.RetryAfter(clock.Now()), seconds(1));
}

TEST_F(CircuitBreakerTest, LateAnswersDoNotCloseIt) {
  FailUntilOpen();
  breaker.OnSuccess();
  EXPECT_EQ(breaker.state(), State::kOpen);
  const auto wait = breaker.RetryAfter(clock.Now());
  Fail();
  EXPECT_EQ(breaker.RetryAfter(clock.Now()), wait);
}

TEST_F(CircuitBreakerTest, AProbeThatNeverReachedTheDiskLetsTheNextOneTry) {
  FailUntilOpen();
  clock.Advance(seconds(1));
  ASSERT_TRUE(Allow());
  breaker.OnNeither();
  EXPECT_EQ(breaker.state(), State::kHalfOpen);
  EXPECT_TRUE(Allow());
}

}  // namespace
}  // namespace dyna
