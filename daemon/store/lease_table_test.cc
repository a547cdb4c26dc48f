// Leases end when they are due, at a bounded cost, and let go of each block once.
#include "daemon/store/lease_table.h"
#include "tests/support/seed.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>

namespace dyna {
namespace {

using std::chrono::milliseconds;

class LeaseTableTest : public ::testing::Test {
 protected:
  HeldLease Lease(SessionId session, int expires_ms, size_t run) {
    HeldLease lease;
    lease.session = session;
    lease.expires = At(expires_ms);
    for (size_t i = 0; i < run; ++i) {
      blocks_.push_back(std::make_shared<Block>());
      blocks_.back()->appraised_bytes = 10;
      lease.run.push_back(blocks_.back());
    }
    return lease;
  }
  static TimePoint At(int ms) { return TimePoint() + milliseconds(ms); }

  LeaseTable table_;
  std::vector<BlockRef> blocks_;
};

TEST_F(LeaseTableTest, ATickLetsGoOfABoundedNumberOfBlocksTheOldestFirst) {
  const uint64_t late = table_.Grant(Lease(1, 30, 4));
  const uint64_t early = table_.Grant(Lease(2, 10, 4));
  const uint64_t middle = table_.Grant(Lease(1, 20, 4));
  EXPECT_EQ(table_.held_bytes(), 120u);
  using Ended = std::vector<std::pair<SessionId, uint64_t>>;
  EXPECT_EQ(table_.Expire(At(9), 100), Ended{});
  EXPECT_EQ(table_.Expire(At(40), 6), (Ended{{2, early}, {1, middle}}));
  EXPECT_EQ(table_.held_bytes(), 40u);
  EXPECT_EQ(table_.Expire(At(40), 6), (Ended{{1, late}}));
  EXPECT_EQ(table_.held_bytes(), 0u);
}

TEST_F(LeaseTableTest, AForgedIdIsNobodys) {
  const uint64_t id = table_.Grant(Lease(1, 10, 1));
  EXPECT_EQ(table_.Find(2, id), nullptr);
  EXPECT_FALSE(table_.Release(2, id));
  EXPECT_NE(table_.Find(1, id), nullptr);
  EXPECT_TRUE(table_.Release(1, id));
  EXPECT_FALSE(table_.Release(1, id));
}

TEST_F(LeaseTableTest, ASessionTakesItsLeasesOnly) {
  for (const SessionId session : {1, 2, 3, 2}) table_.Grant(Lease(session, 10, 1));
  table_.ReleaseSession(2);
  EXPECT_EQ(table_.size(), 2u);
  EXPECT_EQ(table_.Expire(At(11), 100).size(), 2u);
}

TEST_F(LeaseTableTest, IsWhatAWalkOverAllOfThemWouldSay) {
  std::mt19937_64 dice(testing::TestSeed());
  std::map<std::pair<SessionId, uint64_t>, TimePoint> model;
  size_t dropped = 0, granted = 0;
  table_.OnDropped([&](Block& block) {
    ++dropped;
    EXPECT_EQ(block.leases, 0u);
  });
  for (int now = 0; now < 3000; ++now) {
    const auto session = static_cast<SessionId>(dice() % 4);
    const size_t what = dice() % 4;
    if (what <= 1) {
      const int until = now + static_cast<int>(dice() % 200);
      const size_t run = dice() % 3;
      granted += run;
      model[{session, table_.Grant(Lease(session, until, run))}] = At(until);
    } else if (what == 2 && !model.empty()) {
      auto it = std::next(model.begin(), static_cast<long>(dice() % model.size()));
      HeldLease* lease = table_.Find(it->first.first, it->first.second);
      ASSERT_NE(lease, nullptr);
      const TimePoint later = At(now + static_cast<int>(dice() % 300));
      table_.Extend(*lease, later);
      it->second = std::max(it->second, later);  // never sooner
    } else if (dice() % 8 == 0) {
      table_.ReleaseSession(session);
      std::erase_if(model, [&](const auto& l) { return l.first.first == session; });
    } else if (!model.empty()) {
      const auto it = std::next(model.begin(), static_cast<long>(dice() % model.size()));
      EXPECT_TRUE(table_.Release(it->first.first, it->first.second));
      model.erase(it);
    }
    for (const auto& ended : table_.Expire(At(now), 1'000'000)) {
      ASSERT_TRUE(model.count(ended));
      EXPECT_LE(model[ended], At(now));
      model.erase(ended);
    }
    ASSERT_EQ(table_.size(), model.size());
    size_t blocks = 0, counted = 0;
    for (const auto& [key, until] : model) blocks += table_.Find(key.first, key.second)->run.size();
    for (SessionId s = 0; s < 4; ++s) counted += table_.BlocksOf(s);
    ASSERT_EQ(counted, blocks);
    for (const auto& [key, expires] : model) ASSERT_GT(expires, At(now));
  }
  for (SessionId session = 0; session < 4; ++session) table_.ReleaseSession(session);
  EXPECT_EQ(dropped, granted);
  EXPECT_EQ(table_.held_bytes(), 0u);
}

}  // namespace
}  // namespace dyna
