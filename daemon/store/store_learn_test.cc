// What a context learns of its traffic: bases, and how much its heads mind errors.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "daemon/policy/basis/profile.h"
#include "daemon/store/store_harness.h"

namespace dyna {
namespace {

using testing::StoreHarness;

constexpr int kLayers = StoreHarness::kLayers, kHeads = StoreHarness::kHeads,
              kDim = StoreHarness::kDim, kGroup = 2;
constexpr uint32_t kBlocks = 8;

StoreOptions Learning(uint32_t windows = 8) {
  StoreOptions options = testing::NoNursery();
  options.learner.min_tokens = 256;
  options.learner.omega_windows = windows;
  return options;
}

// Queries of the chain's last block. Head 0 of layer 0 attends to one token, sharply.
Status ReportWindow(StoreHarness& s, uint64_t leaf, uint64_t seed) {
  wire::Report r;
  r.context = s.context;
  r.kind = wire::ReportKind::kQueryWindow;
  r.leaf = StoreHarness::Name(leaf);
  r.layer_count = kLayers;
  r.head_end = kHeads;
  r.queries = kBlockTokens;
  r.advance = kBlocks * kBlockTokens;
  r.first_query_position = (kBlocks - 1) * kBlockTokens;
  r.dtype = DType::kF32;
  std::mt19937_64 dice(seed);
  std::normal_distribution<float> normal;
  std::vector<float> queries;
  for (int l = 0; l < kLayers; ++l)
    for (int q = 0; q < kBlockTokens; ++q)
      for (int h = 0; h < kHeads * kGroup; ++h)
        for (int c = 0; c < kDim; ++c)
          queries.push_back(normal(dice) * (l == 0 && h / kGroup == 0 ? 3.0f : .1f));
  std::vector<std::byte> bytes(queries.size() * sizeof(float));
  std::memcpy(bytes.data(), queries.data(), bytes.size());
  Status status = Internal("not answered");
  s.store->Report(s.caller, r, bytes, [&](Status got) { status = got; });
  s.Settle();
  return status;
}

struct Bits {
  double k = 0, v = 0;
};
// Of head 0 of a layer, over the chain.
Bits BitsOf(StoreHarness& s, int layer) {
  Bits sum;
  wire::Query query;
  query.context = s.context;
  for (uint32_t n = 1; n <= kBlocks; ++n) query.hashes.push_back(StoreHarness::Name(n));
  for (const auto& block : s.store->Inspect(s.caller.tenant, query))
    for (const auto& row : block.rows)
      if (row.layer == layer) {
        sum.k += row.k_bits.at(0) / kBlocks;
        sum.v += row.v_bits.at(0) / kBlocks;
      }
  return sum;
}

void PutChain(StoreHarness& s) {
  for (uint32_t n = 1; n <= kBlocks; ++n) ASSERT_TRUE(s.PutBlock(n, n - 1).ok());
}

TEST(StoreLearn, SensitivitiesComeFromTrafficAndDecide) {
  for (uint32_t windows : {0u, 8u}) {
    StoreHarness s(4u << 20, Learning(windows));
    PutChain(s);
    for (uint64_t i = 0; i < 4; ++i) {
      EXPECT_FALSE(s.store->Contexts(0)[0].omega_learned);
      ASSERT_TRUE(ReportWindow(s, kBlocks, i).ok());
    }
    ASSERT_EQ(s.store->Contexts(0)[0].bases.size(), size_t{kLayers});
    EXPECT_EQ(s.store->Contexts(0)[0].omega_learned, windows != 0);
    s.store->SetBudget(s.store->stats().charged_bytes * 45 / 100);
    s.Settle();
    EXPECT_LE(s.store->stats().charged_bytes, s.store->stats().budget_bytes);
    const Bits sharp = BitsOf(s, 0), flat = BitsOf(s, 1);
    if (windows == 0)
      EXPECT_NEAR(sharp.k + sharp.v, flat.k + flat.v, 1);
    else
      EXPECT_GT(sharp.k + sharp.v, flat.k + flat.v + 1) << "an error there moves the output";
  }
}

TEST(StoreLearn, SensitivitiesSurviveAKillAndYieldToAProfile) {
  StoreHarness s(4u << 20, Learning());
  ASSERT_TRUE(s.PutBlock(100, 0, QualityClass::kBalanced, Durability::kPersistent).ok());
  PutChain(s);
  for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(ReportWindow(s, kBlocks, i).ok());
  ASSERT_TRUE(s.store->Contexts(0)[0].omega_learned);
  s.Crash();
  s.Settle();
  std::vector<float> kept;
  for (const auto& [key, row] : s.bank_disk->rows)
    if (const auto* c = std::get_if<record::ContextRow>(&row)) kept = c->omega;
  EXPECT_EQ(kept.size(), size_t{4} * kLayers * kHeads);

  Profile profile;
  profile.fingerprint = s.context;
  profile.bases.resize(kLayers);
  profile.cells.assign(kLayers, std::vector<CellSensitivity>(kHeads, {1e-3f, 2e-3f, .01f, .1f}));
  ASSERT_TRUE(s.store->OpenContext(s.caller, s.spec, SerializeProfile(profile)).ok());
  s.Settle();
  EXPECT_FALSE(s.store->Contexts(0)[0].omega_learned);
  for (const auto& [key, row] : s.bank_disk->rows)
    if (const auto* c = std::get_if<record::ContextRow>(&row)) kept = c->omega;
  EXPECT_FLOAT_EQ(kept.at(1), 2e-3f);
  PutChain(s);
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(ReportWindow(s, kBlocks, i).ok());
  EXPECT_FALSE(s.store->Contexts(0)[0].omega_learned) << "a profile's stays";
}

}  // namespace
}  // namespace dyna
