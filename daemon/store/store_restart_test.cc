// What a restart must find again beside the blocks: pins, a profile's omega, decisions that are
// due.
#include <gtest/gtest.h>

#include "daemon/store/store_context.h"
#include "daemon/store/store_harness.h"

namespace dyna {
namespace {

using testing::StoreHarness;

constexpr int kHeads = StoreHarness::kHeads, kLayers = StoreHarness::kLayers;

bool Pinned(const StoreHarness& s, uint64_t n) {
  const auto facts = s.store->Inspect(
      s.caller.tenant, {wire::QueryKind::kInspect, s.context, {StoreHarness::Name(n)}});
  return facts.size() == 1 && facts[0].pinned;
}

void Pin(StoreHarness& s, uint64_t n, bool pinned, uint32_t ttl_ms = 0) {
  ASSERT_EQ(s.Pin({s.context, {StoreHarness::Name(n)}, pinned, ttl_ms}).count, 1u);
}

TEST(StoreRestart, APinDoesNotNameAHistoryThatWasNotStored) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  s.bank->FailNext(1, Internal("a fault"));
  s.Report(1, 0, kBlockTokens);
  s.Settle();
  Pin(s, 1, true);
  s.Crash();
  EXPECT_TRUE(Pinned(s, 1));
}

TEST(StoreRestart, PinsOfTheBankSurviveAKill) {
  StoreHarness s;
  for (uint64_t n : {1u, 2u})
    ASSERT_TRUE(s.PutBlock(n, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  Pin(s, 1, true);
  Pin(s, 2, true);
  Pin(s, 2, false);
  s.Settle();
  s.Crash();
  s.Settle();
  EXPECT_TRUE(Pinned(s, 1));
  EXPECT_FALSE(Pinned(s, 2)) << "let go of";
  EXPECT_LT(s.ErrorOf(1), 1e-3);

  // It counts against the share of pins as before, and gives that back.
  Pin(s, 1, false);
  s.store->Clear(s.caller, {s.context});
  ASSERT_TRUE(s.PutBlock(3, 0).ok());
  s.store->SetBudget(s.store->stats().charged_bytes * 3);
  Pin(s, 3, true);
}

TEST(StoreRestart, APinThatComesWhileTheBankWritesIsInTheRow) {
  StoreHarness s;
  s.bank->Hold();
  s.PutUnanswered(1);
  wire::CountReply pinned;
  s.store->Pin(s.caller, {s.context, {StoreHarness::Name(1)}, true, 60'000},
               [&](wire::CountReply r) { pinned = std::move(r); });
  s.Settle();
  EXPECT_EQ(pinned.count, 0u) << "answered before the bank";
  s.bank->ReleaseAll();
  s.Settle();
  EXPECT_EQ(pinned.count, 1u);
  s.Crash();
  s.Settle();
  EXPECT_TRUE(Pinned(s, 1));
  s.clock.Advance(std::chrono::seconds(61));
  EXPECT_EQ(s.Lookup({1}).run, 0u) << "and for as long as it was pinned";
}

// What is answered is synced: of each row, also where one with the same in it is on its way.
TEST(StoreRestart, APinOfADurableBlockIsAnsweredWhenTheBankHasSyncedIt) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  ASSERT_TRUE(s.PutBlock(2, 0).ok());
  std::vector<std::string> answers;
  const auto pin = [&](uint64_t n, const std::string& name) {
    s.store->Pin(s.caller, {s.context, {StoreHarness::Name(n)}, true, 60'000},
                 [&answers, name](const wire::CountReply& reply) {
                   answers.push_back(name + " " + std::string(StatusName(reply.status.code())));
                 });
  };
  wire::Put again = s.Request(1, 0);
  again.durability = Durability::kPersistent;
  again.ttl_ms = 60'000;
  auto data = StoreHarness::Data(1);
  const auto from = StoreHarness::Sources(data);

  s.bank->Hold();
  pin(1, "first");
  pin(1, "second");
  pin(2, "volatile");
  s.store->Put(s.caller, again, from, {}, [&](const wire::PutReply& reply) {
    answers.push_back("put " + std::string(StatusName(reply.status.code())));
  });
  s.Settle();
  EXPECT_EQ(answers, (std::vector<std::string>{"volatile OK"}));
  s.bank->Release(1);
  s.Settle();
  EXPECT_EQ(answers.size(), 2u);
  s.bank->ReleaseAll();
  s.Settle();
  EXPECT_EQ(answers, (std::vector<std::string>{"volatile OK", "first OK", "second OK", "put OK"}));

  // One that the bank refuses holds till a restart, and the next is asked of the bank again.
  s.bank->FailNext(1, Internal("a fault"));
  const wire::Pin let_go{s.context, {StoreHarness::Name(1)}, false, 0};
  EXPECT_EQ(s.Pin(let_go).status.code(), StatusCode::kInternal);
  EXPECT_FALSE(Pinned(s, 1));
  EXPECT_TRUE(s.Pin(let_go).status.ok());
  s.Crash();
  s.Settle();
  EXPECT_FALSE(Pinned(s, 1));
}

TEST(StoreRestart, PinsOfTheSpillSurviveAStop) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  Pin(s, 1, true);
  s.Drain();
  s.Restart();
  EXPECT_TRUE(Pinned(s, 1));
  Pin(s, 1, false);  // on the disk
  s.Restart();
  EXPECT_FALSE(Pinned(s, 1));
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

TEST(StoreRestart, NothingIsBankedBeforeTheRowsThatItNeeds) {
  StoreHarness s;
  s.bank->FailNext(1, Internal("a fault"));
  EXPECT_FALSE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  EXPECT_TRUE(s.bank_disk->blocks.empty());
  EXPECT_TRUE(s.bank_disk->rows.empty());
  EXPECT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  s.Crash();
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

// The bank has the block's row; the context's, which it had beside it, is damaged.
TEST(StoreRestart, TheBankStandsWithoutTheSpillsRows) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  s.Drain();
  s.Restart();
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  s.bank_disk->rows.clear();
  s.Restart();
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  s.spill_disk->blocks.clear();
  s.spill_disk->rows.clear();
  s.Crash();
  ASSERT_TRUE(s.store->OpenContext(s.caller, s.spec, {}).ok());
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

// Both disks have the block, of two lives: what one of them has is not taken for the other's.
TEST(StoreRestart, ACopyThatOutlivedItsDeletionIsAnOlderGeneration) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kExact).ok());
  s.Drain();
  s.Restart();
  s.spill->FailNext(1, Internal("a fault"));
  ASSERT_EQ(s.store->Delete(s.caller, {s.context, {StoreHarness::Name(1)}}).count, 1u);
  s.Settle();
  ASSERT_EQ(s.spill_disk->blocks.size(), 1u);
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  s.Crash();
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kExact, Durability::kPersistent).ok());
  s.spill_disk->blocks.clear();
  s.Crash();
  ASSERT_EQ(s.Lookup({1}, QualityClass::kExact).run, 1u);
  EXPECT_EQ(s.ErrorOf(1), 0) << "acknowledged as exact";
}

// Spilled at 8 bits, read back, demoted and banked: after a kill the spill has the better copy.
TEST(StoreRestart, WhatTheBankHasIsNotTakenForTheSpillsBetterCopy) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0).ok());
  s.Drain();
  s.Restart();
  ASSERT_LT(s.ErrorOf(1), 1e-3);
  const auto lease = s.Lookup({1});  // it stays in RAM
  s.store->SetBudget(s.store->stats().charged_bytes * 3 / 4);
  s.Settle();
  s.store->SetBudget(0);
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  s.store->ReleaseLease(s.caller, lease.lease);
  ASSERT_GT(s.ErrorOf(1), 1e-3) << "demoted";
  s.Crash();
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kHigh, Durability::kPersistent).ok());
  s.spill_disk->blocks.clear();
  s.Crash();
  ASSERT_EQ(s.Lookup({1}, QualityClass::kHigh).run, 1u);
  EXPECT_LT(s.ErrorOf(1), 1e-3) << "acknowledged as high";
}

Profile WithOmega(const StoreHarness& s) {
  Profile profile;
  profile.fingerprint = s.context;
  profile.bases.resize(kLayers);
  profile.cells.assign(kLayers, std::vector<CellSensitivity>(kHeads, {1e-3f, 2e-3f, .01f, .1f}));
  profile.cells[0][0].omega_k = 1;
  return profile;
}

TEST(StoreRestart, OmegaSurvives) {
  StoreHarness s;
  ASSERT_TRUE(s.PutBlock(1, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  // It comes when the context's row is there already.
  ASSERT_TRUE(s.store->OpenContext(s.caller, s.spec, SerializeProfile(WithOmega(s))).ok());
  s.Settle();
  s.Crash();
  s.Settle();
  ASSERT_EQ(s.store->Contexts(0).size(), 1u);
  EXPECT_TRUE(s.store->Contexts(0)[0].profile);
  EXPECT_LT(s.ErrorOf(1), 1e-3);

  // The row of a damaged one costs omega alone.
  for (auto& [key, row] : s.bank_disk->rows)
    if (auto* c = std::get_if<record::ContextRow>(&row)) c->omega.at(3) = -1;
  s.Restart();
  ASSERT_EQ(s.store->Contexts(0).size(), 1u);
  EXPECT_FALSE(s.store->Contexts(0)[0].profile);
  EXPECT_LT(s.ErrorOf(1), 1e-3);
}

TEST(StoreRestart, OmegaIsTheSameAsTheProfileGaveIt) {
  StoreHarness s;
  const auto cells = WithOmega(s).cells;
  std::vector<float> flat;
  for (const auto& layer : cells)
    for (const CellSensitivity& c : layer)
      flat.insert(flat.end(), {c.omega_k, c.omega_v, c.k_error_l4, c.k_error_l2});
  for (OmegaGrain grain : {OmegaGrain::kHead, OmegaGrain::kLayer}) {
    StoreContext context(s.caller.tenant, s.context, s.spec, {});
    ASSERT_TRUE(context.SetOmega(flat, grain).ok());
    ASSERT_TRUE(context.sensitivity);
    const auto given = Sensitivity::Make(s.spec, cells, grain);
    for (int l = 0; l < kLayers; ++l) {
      const LayerOmega is = context.sensitivity->layer(l), was = given->layer(l);
      EXPECT_TRUE(
          std::equal(is.log2_k.begin(), is.log2_k.end(), was.log2_k.begin(), was.log2_k.end()));
      EXPECT_TRUE(
          std::equal(is.log2_v.begin(), is.log2_v.end(), was.log2_v.begin(), was.log2_v.end()));
    }
    EXPECT_EQ(context.Row().omega, flat);
  }
}

}  // namespace
}  // namespace dyna
