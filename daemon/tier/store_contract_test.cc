// The contract of SpillStore, held by each implementation.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "daemon/tier/memory_spill.h"
#include "daemon/tier/rocks/rocks_store.h"
#include "daemon/tier/store_harness.h"

namespace dyna {
namespace {

struct Fixture {
  TempDir dir;
  TestExecutor executor;
  SpillPool pool{2};
  std::shared_ptr<MemoryDisk> disk = std::make_shared<MemoryDisk>();
};
using Factory = std::function<std::unique_ptr<SpillStore>(Fixture&)>;

std::unique_ptr<SpillStore> MakeRocks(Fixture& f, RocksOptions::Kind kind) {
  RocksOptions options;
  options.kind = kind;
  options.path = f.dir / "store";
  options.write_buffer_bytes = 4 << 20;
  auto store = OpenRocksStore(options, f.pool, f.executor);
  EXPECT_TRUE(store.ok()) << store.status().ToString();
  return std::move(*store);
}

struct Param {
  const char* name;
  Factory make;
};

class StoreContract : public testing::TestWithParam<Param> {
 protected:
  StoreContract() { Reopen(); }
  void Reopen() {
    store_.reset();
    store_ = GetParam().make(f_);
  }
  Client client() { return {*store_, f_.executor}; }
  Fixture f_;
  std::unique_ptr<SpillStore> store_;
};

TEST_P(StoreContract, ReadsWhatWasPut) {
  const TestBlock a = TestBlock::Make(1), b = TestBlock::Make(2, 1, 5, 256, 0);
  ASSERT_TRUE(client().Put(a).ok());
  ASSERT_TRUE(client().Put(b).ok());
  EXPECT_TRUE(client().Holds(a));
  EXPECT_TRUE(client().Holds(b));
  const SpillStats stats = store_->stats();
  EXPECT_EQ(stats.blocks, 2u);
  EXPECT_EQ(stats.writes, 2u);
  EXPECT_EQ(stats.reads, 4u + 5u);
  EXPECT_GE(stats.live_bytes, 3 * 7168u + 72 + 5 * 256);
}

TEST_P(StoreContract, MissesWhatWasNot) {
  const TestBlock a = TestBlock::Make(1);
  ASSERT_TRUE(client().Put(a).ok());
  for (const Status& s : client().Read(TestBlock::Make(2))) EXPECT_EQ(s.code(), StatusCode::kMiss);
  for (const Status& s : client().Read(TestBlock::Make(1, 2)))  // another generation
    EXPECT_EQ(s.code(), StatusCode::kMiss);
  EXPECT_EQ(store_->stats().read_misses, 8u);
}

TEST_P(StoreContract, ARightLengthIsDemanded) {
  TestBlock a = TestBlock::Make(1);
  ASSERT_TRUE(client().Put(a).ok());
  a.bytes.begin()->second.resize(256);
  EXPECT_EQ(client().Read(a)[0].code(), StatusCode::kInvalid);
  EXPECT_TRUE(client().Read(a)[1].ok());
}

TEST_P(StoreContract, ReplacesUnderAnotherGeneration) {
  const TestBlock old = TestBlock::Make(1, 1), next = TestBlock::Make(1, 2, 2, 512, 0);
  ASSERT_TRUE(client().Put(old).ok());
  const uint64_t before = store_->stats().live_bytes;
  ASSERT_TRUE(client().Put(next).ok());
  EXPECT_TRUE(client().Holds(next));
  for (const Status& s : client().Read(old)) EXPECT_EQ(s.code(), StatusCode::kMiss);
  EXPECT_EQ(store_->stats().blocks, 1u);
  EXPECT_LT(store_->stats().live_bytes, before);
}

TEST_P(StoreContract, NewHistoryComesAlone) {
  TestBlock a = TestBlock::Make(1);
  ASSERT_TRUE(client().Put(a).ok());
  const PartId history{PartId::Kind::kHistory, 0, 0};
  auto& bytes = a.bytes[history];
  std::fill(bytes.begin(), bytes.end(), std::byte{0x33});
  a.meta.reuse = 4;
  ASSERT_TRUE(client().Put(BlockWrite{a.meta, {{history, bytes}}}).ok());
  EXPECT_TRUE(client().Holds(a));
  const auto rows = client().Scan();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0], record::Row(a.meta));
}

TEST_P(StoreContract, ASecondShardJoins) {
  TestBlock whole = TestBlock::Make(1, 1, 4);
  BlockWrite first = whole.Write(), second = whole.Write();
  first.meta.segments.resize(2);
  first.meta.shards = {{0, 2, 0, 3}};
  first.meta.history_bytes = 0;
  std::erase_if(first.parts, [](const PartWrite& p) {
    return p.id.layer >= 2 || p.id.kind == PartId::Kind::kHistory;
  });
  std::erase_if(second.parts, [](const PartWrite& p) {
    return p.id.layer < 2 && p.id.kind == PartId::Kind::kSegment;
  });
  ASSERT_TRUE(client().Put(first).ok());
  ASSERT_TRUE(client().Put(second).ok());
  EXPECT_TRUE(client().Holds(whole));
}

TEST_P(StoreContract, RefusesContradictions) {
  const TestBlock a = TestBlock::Make(1);
  BlockWrite short_part = a.Write();
  short_part.parts[0].bytes = short_part.parts[0].bytes.first(256);
  EXPECT_EQ(client().Put(short_part).code(), StatusCode::kInvalid);
  BlockWrite missing = a.Write();
  missing.parts.pop_back();
  EXPECT_EQ(client().Put(missing).code(), StatusCode::kInvalid);
  BlockWrite unlisted = a.Write();
  unlisted.parts[0].id.layer = 9;
  EXPECT_EQ(client().Put(unlisted).code(), StatusCode::kInvalid);
  BlockWrite twice = a.Write();
  twice.parts.push_back(twice.parts[0]);
  EXPECT_EQ(client().Put(twice).code(), StatusCode::kInvalid);
  BlockWrite bad_row = a.Write();
  bad_row.meta.shards.clear();
  EXPECT_EQ(client().Put(bad_row).code(), StatusCode::kInvalid);
  EXPECT_EQ(store_->stats().blocks, 0u);
  EXPECT_TRUE(client().Scan().empty());
}

TEST_P(StoreContract, DeletesAll) {
  const TestBlock a = TestBlock::Make(1);
  ASSERT_TRUE(client().Put(a).ok());
  EXPECT_TRUE(client().Delete(a.meta.key).ok());
  EXPECT_TRUE(client().Delete(a.meta.key).ok());
  for (const Status& s : client().Read(a)) EXPECT_EQ(s.code(), StatusCode::kMiss);
  EXPECT_EQ(store_->stats().blocks, 0u);
  EXPECT_EQ(store_->stats().live_bytes, 0u);
  EXPECT_EQ(store_->stats().deletes, 1u);
}

TEST_P(StoreContract, HoldsItsBudget) {
  const TestBlock a = TestBlock::Make(1), b = TestBlock::Make(2);
  ASSERT_TRUE(client().Put(a).ok());
  store_->SetBudget(store_->stats().live_bytes + 1000);
  EXPECT_EQ(client().Put(b).code(), StatusCode::kQuota);
  EXPECT_EQ(store_->stats().refused, 1u);
  // What does not grow is always taken.
  EXPECT_TRUE(client().Put(TestBlock::Make(1, 2)).ok());
  ASSERT_TRUE(client().Delete(a.meta.key).ok());
  EXPECT_TRUE(client().Put(b).ok());
}

TEST_P(StoreContract, ARestartFindsTheRowsInOrder) {
  const record::BasisRow basis{7, 0xfeed, 5, std::vector<uint8_t>(100'000, 3)};
  const record::LearnerRow learner{7, 0xfeed, 2, 1, {1, 2}};
  record::ContextRow context{7, 0xfeed, {}, {}};
  context.spec.model = "m";
  context.spec.ropes = {{RopeKind::kHalf, 2, {1.0f}}};
  context.spec.layers = {{LayerKind::kFull, 3, 9, 64, 0, 0, 8192}};
  std::vector<TestBlock> blocks;
  for (uint64_t i = 0; i < 700; ++i) blocks.push_back(TestBlock::Make(i, 1, 1, 256, 0));
  for (const TestBlock& b : blocks) store_->PutBlock(b.Write(), nullptr);
  ASSERT_TRUE(client().PutRow(learner).ok());
  ASSERT_TRUE(client().PutRow(record::PriceRow{0, Tier::kHost, 2.5}).ok());
  ASSERT_TRUE(client().PutRow(record::PriceRow{0, Tier::kHost, 3.5}).ok());
  ASSERT_TRUE(client().PutRow(basis).ok());
  ASSERT_TRUE(client().PutRow(context).ok());
  const record::BasisRow gone{7, 0xfeed, 6, {1}};
  ASSERT_TRUE(client().PutRow(gone).ok());
  ASSERT_TRUE(client().DeleteRow(KeyOf(gone)).ok());
  const uint64_t live = store_->stats().live_bytes;

  Reopen();
  const auto rows = client().Scan();
  ASSERT_EQ(rows.size(), 704u);
  EXPECT_EQ(rows[0], record::Row(context));
  EXPECT_EQ(rows[1], record::Row(basis));
  EXPECT_EQ(rows[2], record::Row(record::PriceRow{0, Tier::kHost, 3.5}));
  EXPECT_EQ(rows[3], record::Row(learner));
  EXPECT_EQ(store_->stats().blocks, 700u);
  EXPECT_EQ(store_->stats().live_bytes, live);
  for (const TestBlock& b : blocks) ASSERT_TRUE(client().Holds(b));
  EXPECT_TRUE(client().Put(TestBlock::Make(1000)).ok());
  EXPECT_TRUE(client().Flush().ok());
}

INSTANTIATE_TEST_SUITE_P(
    All, StoreContract,
    testing::Values(
        Param{"memory",
              [](Fixture& f) { return std::make_unique<MemorySpill>(f.executor, f.disk); }},
        Param{"spill", [](Fixture& f) { return MakeRocks(f, RocksOptions::Kind::kSpill); }},
        Param{"bank", [](Fixture& f) { return MakeRocks(f, RocksOptions::Kind::kBank); }}),
    [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace dyna
