// The nursery: what no report has covered yet stands beside the budget.
#include <gtest/gtest.h>

#include "daemon/store/store_harness.h"

namespace dyna {
namespace {

using testing::StoreHarness;

struct YoungHarness : StoreHarness {
  static StoreOptions Options(std::chrono::milliseconds young_for) {
    StoreOptions options;
    options.young_for = young_for;
    return options;
  }
  explicit YoungHarness(std::chrono::milliseconds young_for = std::chrono::seconds(10))
      : StoreHarness(4u << 20, Options(young_for)) {}
  uint64_t Bytes(uint64_t n) {
    wire::Query query;
    query.context = context;
    query.hashes = {Name(n)};
    return store->Inspect(caller.tenant, query).at(0).bytes;
  }
  void Rest() {
    for (int i = 0; i < 20; ++i) Settle();
  }
  uint64_t Young() { return store->stats().young_bytes; }
};

// What a block takes at 8 bits of K and V.
uint64_t Whole() {
  YoungHarness s;
  EXPECT_TRUE(s.PutBlock(1, 0).ok());
  return s.Bytes(1);
}

TEST(Young, TakesNoBitsFromOthersAndEntersThePriceWithItsReport) {
  const uint64_t whole = Whole();
  YoungHarness s;
  s.store->SetBudget(whole * 8 / 5);  // two blocks at four fifths
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  s.Report(1, 0, kBlockTokens, 1.0f / kBlockTokens);
  EXPECT_EQ(s.Young(), 0u);
  ASSERT_TRUE(s.PutBlock(2, 1).ok());
  s.Rest();
  EXPECT_EQ(s.Bytes(1), whole) << "there is room for it, and none is taken";
  EXPECT_GE(s.Young(), s.Bytes(2));
  s.Report(2, 0, 2 * kBlockTokens, .5f / kBlockTokens);
  s.Rest();
  EXPECT_EQ(s.Young(), 0u);
  EXPECT_LT(s.Bytes(1) + s.Bytes(2), whole * 8 / 5);
  EXPECT_LE(s.store->stats().charged_bytes, s.store->stats().budget_bytes);
}

TEST(Young, EndsByItselfAndWhenTheBudgetIsSet) {
  YoungHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  const uint64_t beside = s.store->stats().charged_bytes;
  const uint64_t young = s.Young();
  ASSERT_GT(young, 0u);
  EXPECT_TRUE(s.store->NeedsClock());
  s.Wait(10'001);
  EXPECT_EQ(s.Young(), 0u);
  EXPECT_FALSE(s.store->NeedsClock());
  EXPECT_EQ(s.store->stats().charged_bytes, beside + young);
  ASSERT_TRUE(s.PutBlock(2, 1).ok());
  EXPECT_GT(s.Young(), 0u);
  s.store->SetBudget(0);
  EXPECT_EQ(s.Young(), 0u);
}

// More than the nursery holds, and nobody reports: it lets its oldest go, puts go on, both bounds
// hold.
TEST(Young, NurseryAndBudgetHoldWhateverIsPut) {
  YoungHarness s;
  s.store->SetBudget(1u << 20);
  const auto room = static_cast<uint64_t>(double(s.arena_size) * s.options.young_share);
  for (uint32_t n = 1; n <= 200; ++n) {
    Status put = s.PutBlock(n, n - 1);
    for (int i = 0; i < 50 && put.code() == StatusCode::kRetry; ++i) {
      s.Rest();
      put = s.PutBlock(n, n - 1);
    }
    ASSERT_TRUE(put.ok()) << n << ": " << put.ToString();
    EXPECT_LE(s.Young(), room);
  }
  s.Rest();
  const auto stats = s.store->stats();
  EXPECT_LE(stats.charged_bytes, stats.budget_bytes);
  EXPECT_GT(s.Young(), room / 2);
  s.store->Clear(s.caller, {s.context});
  s.Settle();
  EXPECT_EQ(s.Young(), 0u) << "nothing is left on the account";
}

TEST(Young, OffIsOff) {
  YoungHarness s(std::chrono::milliseconds(0));
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  EXPECT_EQ(s.Young(), 0u);
}

}  // namespace
}  // namespace dyna
