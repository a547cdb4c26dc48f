// What the tests of the stores share: an executor that other threads may post to, blocks made from
// a number, and calls that wait for their answer.
//
// Test thread, except TestExecutor::Post.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "client/base/executor.h"
#include "daemon/tier/block_parts.h"
#include "daemon/tier/spill_store.h"

namespace dyna {

class TestExecutor final : public Executor {
 public:
  void Post(Task task) override {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    posted_.notify_all();
  }
  void PostAt(TimePoint, Task task) override { Post(std::move(task)); }

  // Runs tasks as they come until `done`; false when nothing came for half a minute.
  template <typename Pred>
  bool RunUntil(Pred done) {
    while (!done()) {
      Task task;
      {
        std::unique_lock lock(mutex_);
        if (!posted_.wait_for(lock, std::chrono::seconds(30), [this] { return !tasks_.empty(); }))
          return false;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
    return true;
  }

 private:
  std::mutex mutex_;
  std::condition_variable posted_;
  std::deque<Task> tasks_;
};

class TempDir {
 public:
  TempDir() {
    std::string pattern = std::filesystem::temp_directory_path() / "dyna-tier-XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A block and the bytes of its parts, all following from `number` and `generation`.
struct TestBlock {
  record::BlockMeta meta;
  std::map<PartId, std::vector<std::byte>> bytes;

  static record::BlockKey Key(uint64_t number) {
    record::BlockKey key{7, 0xfeed, {}};
    std::mt19937_64 rng(number);
    for (auto& b : key.hash.bytes) b = static_cast<uint8_t>(rng());
    return key;
  }
  static TestBlock Make(uint64_t number, uint32_t generation = 1, uint16_t layers = 3,
                        uint32_t segment_bytes = 7168, uint32_t history_bytes = 72) {
    TestBlock b;
    b.meta.key = Key(number);
    b.meta.index = static_cast<uint32_t>(number & 0xffff);
    b.meta.generation = generation;
    b.meta.history_bytes = history_bytes;
    b.meta.shards = {{0, layers, 0, 3}};
    for (uint16_t l = 0; l < layers; ++l) b.meta.segments.push_back({l, 0, 3, 0, segment_bytes});
    std::mt19937_64 rng(number * 1000 + generation);
    for (const ListedPart& part : PartsOf(b.meta)) {
      auto& out = b.bytes[part.id];
      out.resize(part.bytes);
      for (size_t i = 0; i + 8 <= out.size(); i += 8) {
        const uint64_t word = rng();
        std::memcpy(&out[i], &word, 8);
      }
    }
    return b;
  }
  BlockWrite Write() const {
    BlockWrite write{meta, {}};
    for (const auto& [id, part] : bytes) write.parts.push_back({id, part});
    return write;
  }
};

// Calls that wait.
struct Client {
  SpillStore& store;
  TestExecutor& executor;

  Status Wait(const std::function<void(SpillStore::Done)>& call) {
    Status out;
    bool answered = false;
    call([&](Status status) {
      out = std::move(status);
      answered = true;
    });
    EXPECT_TRUE(executor.RunUntil([&] { return answered; })) << "no answer";
    return out;
  }
  Status Put(const TestBlock& b) {
    return Wait([&](auto done) { store.PutBlock(b.Write(), done); });
  }
  Status Put(BlockWrite write) {
    return Wait([&](auto done) { store.PutBlock(std::move(write), done); });
  }
  Status Delete(const record::BlockKey& key) {
    return Wait([&](auto done) { store.DeleteBlock(key, done); });
  }
  Status PutRow(const record::Row& row) {
    return Wait([&](auto done) { store.PutRow(row, done); });
  }
  Status DeleteRow(const RowKey& key) {
    return Wait([&](auto done) { store.DeleteRow(key, done); });
  }
  Status Flush() {
    return Wait([&](auto done) { store.Flush(done); });
  }
  std::vector<record::Row> Scan() {
    std::vector<record::Row> rows;
    const Status status = Wait([&](auto done) {
      store.Scan(
          [&](std::vector<record::Row> batch) {
            for (auto& row : batch) rows.push_back(std::move(row));
          },
          done);
    });
    EXPECT_TRUE(status.ok()) << status.ToString();
    return rows;
  }
  // The status of each part; what was read is compared with the block's bytes.
  std::vector<Status> Read(const TestBlock& b) {
    std::map<PartId, std::vector<std::byte>> out;
    BlockRead read{b.meta.key, b.meta.generation, {}};
    for (const auto& [id, bytes] : b.bytes) {
      out[id].resize(bytes.size());
      read.parts.push_back({id, out[id]});
    }
    std::vector<Status> statuses;
    bool answered = false;
    store.ReadParts(std::move(read), [&](std::vector<Status> s) {
      statuses = std::move(s);
      answered = true;
    });
    EXPECT_TRUE(executor.RunUntil([&] { return answered; })) << "no answer";
    size_t i = 0;
    for (const auto& [id, bytes] : b.bytes) {
      if (statuses.at(i).ok()) {
        EXPECT_EQ(out[id], bytes) << "part " << i << " has wrong bytes";
      }
      ++i;
    }
    return statuses;
  }
  bool Holds(const TestBlock& b) {
    for (const Status& s : Read(b))
      if (!s.ok()) return false;
    return true;
  }
};

}  // namespace dyna
