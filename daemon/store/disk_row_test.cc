#include "daemon/store/disk_row.h"

#include <gtest/gtest.h>

namespace dyna {
namespace {

// A disk that answers when told.
struct Disk {
  std::vector<DiskRow::Done> asked;
  DiskRow::Put put = [this](DiskRow::Done done) { asked.push_back(std::move(done)); };
  void Answer(const Status& status) {
    for (const auto& done : std::exchange(asked, {})) done(status);
  }
};

struct Waiter {
  int ok = 0, failed = 0;
  DiskRow::Done done = [this](const Status& status) { ++(status.ok() ? ok : failed); };
};

TEST(DiskRow, IsWrittenOnceForAllThatWait) {
  Disk disk;
  DiskRow row;
  Waiter waiter;
  row.Ensure(disk.put, waiter.done);
  row.Ensure(disk.put, waiter.done);
  EXPECT_EQ(disk.asked.size(), 1u);
  EXPECT_EQ(waiter.ok, 0) << "before the disk has said so";
  disk.Answer({});
  EXPECT_EQ(waiter.ok, 2);
  row.Ensure(disk.put, waiter.done);
  EXPECT_EQ(waiter.ok, 3);
  EXPECT_TRUE(disk.asked.empty());
}

TEST(DiskRow, AFailureIsToldToAllThatWaitAndTriedAgainByTheNext) {
  Disk disk;
  DiskRow row;
  Waiter waiter;
  row.Ensure(disk.put, waiter.done);
  row.Ensure(disk.put, waiter.done);
  disk.Answer(Internal("a fault"));
  EXPECT_EQ(waiter.failed, 2);
  EXPECT_FALSE(row.there());
  row.Ensure(disk.put, waiter.done);
  disk.Answer({});
  EXPECT_EQ(waiter.ok, 1);
  EXPECT_TRUE(row.there());
}

// A waiter may ask again from inside its answer.
TEST(DiskRow, AWaiterMayAskAgain) {
  Disk disk;
  DiskRow row;
  Waiter waiter;
  row.Ensure(disk.put, [&](const Status&) { row.Ensure(disk.put, waiter.done); });
  disk.Answer(Internal("a fault"));
  EXPECT_EQ(disk.asked.size(), 1u);
  disk.Answer({});
  EXPECT_EQ(waiter.ok, 1);
}

TEST(DiskRow, IsRewrittenWhereItIsAndWrittenAgainWhereThatFailed) {
  Disk disk;
  DiskRow row;
  Waiter waiter;
  row.Rewrite(disk.put);
  EXPECT_TRUE(disk.asked.empty()) << "nothing leans on it yet";
  row.Found();
  row.Rewrite(disk.put);
  disk.Answer(Internal("a fault"));
  row.Ensure(disk.put, waiter.done);
  EXPECT_EQ(disk.asked.size(), 1u);
}

}  // namespace
}  // namespace dyna
