#include "client/base/executor.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>

#include "client/base/asio_executor.h"

namespace dyna {
namespace {

TEST(ManualExecutorTest, RunsInOrderAndOnlyWhenDue) {
  FakeClock clock;
  ManualExecutor executor(clock);
  std::string log;
  executor.PostAt(clock.Now() + std::chrono::seconds(1), [&] { log += 't'; });
  executor.Post([&] {
    log += 'a';
    executor.Post([&] { log += 'c'; });
  });
  executor.Post([&] { log += 'b'; });
  EXPECT_EQ(log, "");
  executor.RunAll();
  EXPECT_EQ(log, "abc");
  clock.Advance(std::chrono::seconds(1));
  EXPECT_TRUE(executor.RunOne());
  EXPECT_EQ(log, "abct");
  EXPECT_FALSE(executor.RunOne());
}

TEST(AsioExecutorTest, PostsAcrossThreadsAndKeepsTime) {
  asio::io_context loop;
  AsioExecutor executor(loop);
  std::string log;
  const TimePoint due = SystemClock().Now() + std::chrono::milliseconds(5);
  std::thread other([&] {
    executor.PostAt(due, [&] {
      EXPECT_GE(SystemClock().Now(), due);
      log += 't';
    });
    executor.Post([&] { log += 'a'; });
  });
  other.join();
  EXPECT_EQ(log, "");  // nothing runs inside Post
  loop.run();
  EXPECT_EQ(log, "at");
}

}  // namespace
}  // namespace dyna
