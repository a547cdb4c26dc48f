// A tile that no report has covered yet keeps more bits than its like that one has.
#include <gtest/gtest.h>

#include "daemon/store/store_harness.h"

namespace dyna {
namespace {

using testing::StoreHarness;

// Two blocks of a chain, the first of them reported; then the budget asks for fewer bits.
struct YoungHarness : StoreHarness {
  explicit YoungHarness(std::chrono::milliseconds young_for = std::chrono::seconds(10))
      : StoreHarness(4u << 20, [&] {
          StoreOptions o;
          o.young_weight = 8;
          o.young_for = young_for;
          return o;
        }()) {
    EXPECT_TRUE(PutBlock(1, 0).ok());
    EXPECT_TRUE(PutBlock(2, 1).ok());
    Report(1, 0, kBlockTokens, 1.0f / kBlockTokens);  // as much attention as is usual
  }
  void Press(int percent) {
    store->SetBudget(store->stats().charged_bytes * static_cast<uint64_t>(percent) / 100);
    for (int i = 0; i < 20; ++i) Settle();
  }
  uint64_t Bytes(uint64_t n) {
    wire::Query query;
    query.context = context;
    query.hashes = {Name(n)};
    return store->Inspect(caller.tenant, query).at(0).bytes;
  }
};

TEST(Young, KeepsItsBitsUntilAReportCoversIt) {
  YoungHarness s;
  const uint64_t before = s.Bytes(2);
  s.Press(85);
  EXPECT_LT(s.Bytes(1), before);
  EXPECT_EQ(s.Bytes(2), before);
  s.Report(2, 0, 2 * kBlockTokens, .5f / kBlockTokens);
  s.Press(80);
  EXPECT_LT(s.Bytes(2), before) << "as important as the other: pressed like it";
}

TEST(Young, EndsByItself) {
  YoungHarness s;
  s.Wait(10'001);
  const uint64_t before = s.Bytes(2);
  s.Press(85);
  EXPECT_LT(s.Bytes(2), before);
}

TEST(Young, OffIsOff) {
  YoungHarness s(std::chrono::milliseconds(0));
  const uint64_t before = s.Bytes(2);
  s.Press(85);
  EXPECT_LT(s.Bytes(2), before);
}

}  // namespace
}  // namespace dyna
