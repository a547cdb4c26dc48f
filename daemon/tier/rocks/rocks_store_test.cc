// What only a real disk can do: damage, a foreign format, garbage, a full file system, group
// commit.
#include "daemon/tier/rocks/rocks_store.h"

#include <gtest/gtest.h>
#include <rocksdb/db.h>
#include <sys/mount.h>

#include <fstream>

#include "daemon/tier/rocks/part_frame.h"
#include "daemon/tier/store_harness.h"

namespace dyna {
namespace {

using Kind = RocksOptions::Kind;

struct RocksStoreTest : testing::Test {
  RocksStoreTest() { options.write_buffer_bytes = 1 << 20; }
  Status Open(Kind kind = Kind::kSpill) {
    store.reset();
    options.kind = kind;
    if (options.path.empty()) options.path = dir / "store";
    auto opened = OpenRocksStore(options, pool, executor);
    if (!opened.ok()) return opened.status();
    store = std::move(*opened);
    return {};
  }
  Client client() { return {*store, executor}; }

  // Everything that is stored, behind the store's back. REQUIRES that the store is closed.
  void WithRawDatabase(const std::function<void(rocksdb::DB&, rocksdb::ColumnFamilyHandle* meta,
                                                rocksdb::ColumnFamilyHandle* blocks)>& act) {
    rocksdb::DB* db = nullptr;
    std::vector<rocksdb::ColumnFamilyHandle*> families;
    const auto status =
        rocksdb::DB::Open(rocksdb::DBOptions(), options.path + "/db",
                          {{"default", {}}, {"meta", {}}, {"blocks", {}}}, &families, &db);
    ASSERT_TRUE(status.ok()) << status.ToString();
    act(*db, families[1], families[2]);
    for (auto* family : families) db->DestroyColumnFamilyHandle(family);
    delete db;
  }

  TempDir dir;
  TestExecutor executor;
  SpillPool pool{2};
  RocksOptions options;
  std::unique_ptr<SpillStore> store;
};

TEST_F(RocksStoreTest, OneDaemonAtATime) {
  ASSERT_TRUE(Open().ok());
  const auto second = OpenRocksStore(options, pool, executor);
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.status().message().find("in use by another daemon"), std::string::npos);
}

TEST_F(RocksStoreTest, ABankIsNoSpill) {
  ASSERT_TRUE(Open(Kind::kBank).ok());
  ASSERT_TRUE(client().Put(TestBlock::Make(1)).ok());
  ASSERT_TRUE(Open(Kind::kSpill).ok());
  EXPECT_TRUE(client().Scan().empty());
  EXPECT_TRUE(std::filesystem::exists(options.path + ".set-aside-1/db/CURRENT"));
}

TEST_F(RocksStoreTest, WritesWaitForTheScan) {
  ASSERT_TRUE(Open().ok());
  const TestBlock b = TestBlock::Make(1);
  ASSERT_TRUE(client().Put(b).ok());
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(client().Put(b).code(), StatusCode::kRetry);
  EXPECT_TRUE(client().Holds(b));
  EXPECT_EQ(client().Scan().size(), 1u);
  EXPECT_TRUE(client().Put(b).ok());
}

TEST_F(RocksStoreTest, ManyWritesShareASync) {
  ASSERT_TRUE(Open(Kind::kBank).ok());
  std::vector<TestBlock> blocks;
  for (uint64_t i = 0; i < 200; ++i) blocks.push_back(TestBlock::Make(i, 1, 1, 256, 0));
  size_t answers = 0;
  for (const TestBlock& b : blocks)
    store->PutBlock(b.Write(), [&](Status s) { answers += s.ok(); });
  ASSERT_TRUE(executor.RunUntil([&] { return answers == blocks.size(); }));
  EXPECT_LT(store->stats().commits, blocks.size());
  for (const TestBlock& b : blocks) ASSERT_TRUE(client().Holds(b));
}

TEST_F(RocksStoreTest, OneBlockManyTimesInARow) {
  ASSERT_TRUE(Open(Kind::kBank).ok());
  std::vector<TestBlock> versions;
  for (uint32_t g = 1; g <= 20; ++g) versions.push_back(TestBlock::Make(1, g, 2, 256, 0));
  size_t answers = 0;
  for (const TestBlock& b : versions)
    store->PutBlock(b.Write(), [&](Status s) { answers += s.ok(); });
  store->DeleteBlock(versions[0].meta.key, [&](Status s) { answers += s.ok(); });
  store->PutBlock(versions[7].Write(), [&](Status s) { answers += s.ok(); });
  ASSERT_TRUE(executor.RunUntil([&] { return answers == 22; }));
  EXPECT_TRUE(client().Holds(versions[7]));
  EXPECT_FALSE(client().Holds(versions[19]));
  EXPECT_EQ(store->stats().blocks, 1u);
  store.reset();
  // Nothing of the other generations is left.
  WithRawDatabase([&](rocksdb::DB& db, auto*, auto* blocks) {
    std::unique_ptr<rocksdb::Iterator> it(db.NewIterator({}, blocks));
    size_t parts = 0;
    for (it->SeekToFirst(); it->Valid(); it->Next()) parts += it->key().size() == kPartKeyBytes;
    EXPECT_EQ(parts, 2u);
  });
}

TEST_F(RocksStoreTest, QueuesAreBounded) {
  options.max_queued_bytes = 100'000;
  options.max_queued = 50;
  ASSERT_TRUE(Open(Kind::kBank).ok());
  std::vector<TestBlock> blocks;
  for (uint64_t i = 0; i < 300; ++i) blocks.push_back(TestBlock::Make(i));
  size_t done = 0, retry = 0;
  for (const TestBlock& b : blocks)
    store->PutBlock(b.Write(), [&](Status s) {
      ++done;
      retry += s.code() == StatusCode::kRetry;
      EXPECT_TRUE(s.ok() || s.retry_after_ms() > 0);
    });
  ASSERT_TRUE(executor.RunUntil([&] { return done == blocks.size(); }));
  EXPECT_GT(retry, 0u);
  EXPECT_LT(retry, blocks.size());
  EXPECT_EQ(store->stats().queued_bytes, 0u);
  EXPECT_EQ(store->stats().blocks, blocks.size() - retry);
}

// What was deleted would be back after the next start.
TEST_F(RocksStoreTest, DeletionsAreNotRefusedForWantOfRoom) {
  options.max_queued = 50;
  ASSERT_TRUE(Open(Kind::kBank).ok());
  constexpr size_t kMany = 300;
  for (uint64_t i = 0; i < kMany; ++i) ASSERT_TRUE(client().Put(TestBlock::Make(i)).ok());
  size_t done = 0;
  for (uint64_t i = 0; i < kMany; ++i)
    store->DeleteBlock(TestBlock::Key(i), [&](Status s) {
      ++done;
      EXPECT_TRUE(s.ok()) << s.ToString();
    });
  ASSERT_TRUE(executor.RunUntil([&] { return done == kMany; }));
  EXPECT_EQ(store->stats().blocks, 0u);
}

TEST_F(RocksStoreTest, ClosingAnswersEverything) {
  ASSERT_TRUE(Open(Kind::kBank).ok());
  std::vector<TestBlock> blocks;
  for (uint64_t i = 0; i < 500; ++i) blocks.push_back(TestBlock::Make(i));
  std::vector<bool> kept(blocks.size());
  size_t done = 0;
  for (size_t i = 0; i < blocks.size(); ++i)
    store->PutBlock(blocks[i].Write(), [&, i](Status s) {
      ++done;
      kept[i] = s.ok();
      EXPECT_TRUE(s.ok() || s.code() == StatusCode::kCancelled) << s.ToString();
    });
  ASSERT_TRUE(Open(Kind::kBank).ok());
  ASSERT_TRUE(executor.RunUntil([&] { return done == blocks.size(); }));
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (kept[i]) {
      ASSERT_TRUE(client().Holds(blocks[i]));
    }
  }
}

TEST_F(RocksStoreTest, ADamagedPartIsQuarantined) {
  ASSERT_TRUE(Open().ok());
  const TestBlock b = TestBlock::Make(1), other = TestBlock::Make(2);
  ASSERT_TRUE(client().Put(b).ok());
  ASSERT_TRUE(client().Put(other).ok());
  store.reset();
  const std::string key = PartKey(b.meta.key, 1, {PartId::Kind::kSegment, 1, 0});
  WithRawDatabase([&](rocksdb::DB& db, auto*, auto* blocks) {
    std::string value;
    ASSERT_TRUE(db.Get({}, blocks, key, &value).ok());
    value[1000] = static_cast<char>(value[1000] ^ 1);
    ASSERT_TRUE(db.Put({}, blocks, key, value).ok());
  });
  ASSERT_TRUE(Open().ok());
  ASSERT_EQ(client().Scan().size(), 2u);
  const auto statuses = client().Read(b);
  EXPECT_TRUE(statuses[0].ok());
  EXPECT_EQ(statuses[1].code(), StatusCode::kMiss);
  EXPECT_TRUE(client().Flush().ok());  // behind the move
  EXPECT_EQ(store->stats().quarantined, 1u);
  EXPECT_EQ(store->stats().errors, 0u);
  EXPECT_EQ(client().Read(b)[1].code(), StatusCode::kMiss);
  EXPECT_TRUE(client().Holds(other));
  // Put again it is whole again.
  EXPECT_TRUE(client().Put(b).ok());
  EXPECT_TRUE(client().Holds(b));
  store.reset();
  WithRawDatabase([&](rocksdb::DB& db, auto*, auto*) {
    std::string value;
    EXPECT_TRUE(db.Get({}, db.DefaultColumnFamily(), key, &value).ok()) << "not kept for a look";
  });
}

TEST_F(RocksStoreTest, ADamagedRowLosesItsBlockOnly) {
  ASSERT_TRUE(Open().ok());
  const TestBlock b = TestBlock::Make(1), other = TestBlock::Make(2), third = TestBlock::Make(3);
  for (const TestBlock* x : {&b, &other, &third}) ASSERT_TRUE(client().Put(*x).ok());
  store.reset();
  WithRawDatabase([&](rocksdb::DB& db, auto* meta, auto*) {
    std::string value;
    ASSERT_TRUE(db.Get({}, meta, BlockRowKey(other.meta.key), &value).ok());
    ASSERT_TRUE(db.Put({}, meta, BlockRowKey(third.meta.key), value).ok());  // another's row
    value.resize(value.size() / 2);
    ASSERT_TRUE(db.Put({}, meta, BlockRowKey(b.meta.key), value).ok());
  });
  ASSERT_TRUE(Open().ok());
  const auto rows = client().Scan();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0], record::Row(other.meta));
  EXPECT_TRUE(client().Flush().ok());
  EXPECT_EQ(store->stats().quarantined, 2u);
  EXPECT_TRUE(client().Holds(other));
  EXPECT_EQ(client().Read(b)[0].code(), StatusCode::kMiss);
  EXPECT_TRUE(client().Put(b).ok());
  EXPECT_TRUE(client().Holds(b));
}

TEST_F(RocksStoreTest, ABlobFileThatRotsIsAMiss) {
  ASSERT_TRUE(Open().ok());
  const TestBlock b = TestBlock::Make(1);
  ASSERT_TRUE(client().Put(b).ok());
  store.reset();
  size_t spoiled = 0;
  for (const auto& file : std::filesystem::directory_iterator(options.path + "/db")) {
    if (file.path().extension() != ".blob" || file.file_size() < 10'000) continue;
    std::fstream f(file.path(), std::ios::in | std::ios::out | std::ios::binary);
    f.seekp(static_cast<std::streamoff>(file.file_size() / 2));
    f.write("\xff\x00\xff\x00", 4);
    ++spoiled;
  }
  ASSERT_GT(spoiled, 0u);
  ASSERT_TRUE(Open().ok());
  ASSERT_EQ(client().Scan().size(), 1u);
  size_t misses = 0;
  for (const Status& s : client().Read(b)) misses += s.code() == StatusCode::kMiss;
  EXPECT_EQ(misses, 1u);
  EXPECT_TRUE(client().Flush().ok());
  EXPECT_EQ(store->stats().quarantined, 1u);
}

TEST_F(RocksStoreTest, ASpillThatCannotBeReadIsSetAsideABankIsNot) {
  for (Kind kind : {Kind::kSpill, Kind::kBank}) {
    options.path = dir / (kind == Kind::kSpill ? "spill" : "bank");
    ASSERT_TRUE(Open(kind).ok());
    ASSERT_TRUE(client().Put(TestBlock::Make(1)).ok());
    ASSERT_TRUE(client().Flush().ok());
    store.reset();
    std::ofstream(options.path + "/db/CURRENT") << "MANIFEST-999999\n";
    const Status status = Open(kind);
    if (kind == Kind::kSpill) {
      ASSERT_TRUE(status.ok()) << status.ToString();
      EXPECT_TRUE(client().Scan().empty());
      EXPECT_TRUE(std::filesystem::exists(options.path + ".set-aside-1"));
    } else {
      EXPECT_FALSE(status.ok());
      EXPECT_FALSE(std::filesystem::exists(options.path + ".set-aside-1"));
    }
  }
}

TEST_F(RocksStoreTest, DeletedBytesGoBackToTheDisk) {
  options.budget_bytes = 64 << 20;
  ASSERT_TRUE(Open().ok());
  uint64_t peak = 0, next = 0;
  // Four times the budget passes through, as the store evicts: oldest first.
  for (int round = 0; round < 256; ++round) {
    const TestBlock b = TestBlock::Make(next++, 1, 4, 256 << 10, 0);
    Status status = client().Put(b);
    // Compaction may lag behind such a writer, who is then told to wait; not for ever.
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (status.code() == StatusCode::kRetry && std::chrono::steady_clock::now() < give_up)
      status = client().Put(b);
    ASSERT_TRUE(status.ok()) << status.ToString();
    if (next > 48) {
      ASSERT_TRUE(client().Delete(TestBlock::Key(next - 49)).ok());
    }
    peak = std::max(peak, store->stats().disk_bytes);
  }
  EXPECT_LE(store->stats().live_bytes, options.budget_bytes);
  EXPECT_LE(peak, options.budget_bytes * 9 / 4 + 4 * options.write_buffer_bytes + (8 << 20));
  EXPECT_TRUE(client().Holds(TestBlock::Make(next - 1, 1, 4, 256 << 10, 0)));
  EXPECT_FALSE(client().Holds(TestBlock::Make(0, 1, 4, 256 << 10, 0)));
}

TEST_F(RocksStoreTest, AFullDiskIsQuotaAndRecovers) {
  const std::string small = dir / "small";
  std::filesystem::create_directories(small);
  if (mount("tmpfs", small.c_str(), "tmpfs", 0, "size=24m") != 0)
    GTEST_SKIP() << "mounting a small file system needs root";
  options.path = small + "/bank";
  ASSERT_TRUE(Open(Kind::kBank).ok());
  std::vector<TestBlock> kept;
  Status status;
  for (uint64_t i = 0; status.ok() && i < 100; ++i) {
    TestBlock b = TestBlock::Make(i, 1, 4, 256 << 10, 0);
    status = client().Put(b);
    if (status.ok()) kept.push_back(std::move(b));
  }
  EXPECT_EQ(status.code(), StatusCode::kQuota) << status.ToString();
  EXPECT_NE(status.message().find("disk is full"), std::string::npos);
  EXPECT_GT(kept.size(), 5u);
  for (const TestBlock& b : kept) EXPECT_TRUE(client().Holds(b));
  // With room again it works again, without a restart. If a flush met the full disk, RocksDB looks
  // for room every 5 s, on a thread of its own, and refuses every write until then.
  EXPECT_EQ(mount("tmpfs", small.c_str(), "tmpfs", MS_REMOUNT, "size=256m"), 0);
  const TestBlock late = TestBlock::Make(1000);
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!(status = client().Put(late)).ok() && std::chrono::steady_clock::now() < give_up) {
    EXPECT_EQ(status.code(), StatusCode::kQuota) << status.ToString();
  }
  EXPECT_TRUE(status.ok()) << status.ToString();
  ASSERT_TRUE(Open(Kind::kBank).ok());
  EXPECT_EQ(client().Scan().size(), kept.size() + 1);
  for (const TestBlock& b : kept) EXPECT_TRUE(client().Holds(b));
  EXPECT_TRUE(client().Holds(late));
  store.reset();
  umount2(small.c_str(), MNT_DETACH);
}

}  // namespace
}  // namespace dyna
