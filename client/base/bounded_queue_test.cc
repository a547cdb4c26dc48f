#include "client/base/bounded_queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

namespace dyna {
namespace {

TEST(BoundedQueueTest, RefusesBeyondItsBoundAndLeavesTheItem) {
  BoundedQueue<std::unique_ptr<int>> queue(2);
  EXPECT_TRUE(queue.TryPush(std::make_unique<int>(1)));
  EXPECT_TRUE(queue.TryPush(std::make_unique<int>(2)));
  auto third = std::make_unique<int>(3);
  EXPECT_FALSE(queue.TryPush(third));
  ASSERT_NE(third, nullptr);
  EXPECT_EQ(**queue.TryPop(), 1);
  EXPECT_TRUE(queue.TryPush(third));
  EXPECT_EQ(queue.size(), 2u);
}

TEST(BoundedQueueTest, DrainsAfterClose) {
  BoundedQueue<int> queue(4);
  queue.TryPush(7);
  queue.Close();
  EXPECT_FALSE(queue.TryPush(8));
  EXPECT_EQ(queue.Pop(), 7);
  EXPECT_EQ(queue.Pop(), std::nullopt);
}

TEST(BoundedQueueTest, PopWaitsForAnotherThread) {
  BoundedQueue<int> queue(1);
  std::thread producer([&] {
    for (int i = 0; i < 100; ++i)
      while (!queue.TryPush(i)) std::this_thread::yield();
    queue.Close();
  });
  int expected = 0;
  while (const auto item = queue.Pop()) EXPECT_EQ(*item, expected++);
  producer.join();
  EXPECT_EQ(expected, 100);
}

}  // namespace
}  // namespace dyna
