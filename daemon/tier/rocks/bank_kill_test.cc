// kill -9 of a process that writes to a bank: what it acknowledged is there, byte for byte, and
// what is there is whole.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <set>

#include "client/base/unique_fd.h"
#include "daemon/tier/rocks/rocks_store.h"
#include "daemon/tier/store_harness.h"
#include "tests/support/seed.h"

namespace dyna {
namespace {

constexpr int kKills = 10, kOpenPuts = 16;
constexpr uint64_t kNumbers =
    400;  // blocks that are written again and again, under new generations

RocksOptions BankOptions(const std::string& path) {
  RocksOptions options;
  options.kind = RocksOptions::Kind::kBank;
  options.path = path;
  options.write_buffer_bytes = 2 << 20;  // flushes and compactions happen in the test
  return options;
}

struct Ack {
  uint64_t number;
  uint32_t generation;
  uint32_t pad = 0;
};
struct Basis {
  static record::BasisRow Row(uint64_t name) {
    return {7, 0xfeed, name, std::vector<uint8_t>(100, 1)};
  }
};

// The child: a basis, then the block that names it, many at once; one record to the pipe an answer.
[[noreturn]] void WriteForEver(const std::string& path, int pipe, uint32_t first_generation) {
  TestExecutor executor;
  SpillPool pool(2);
  auto store = OpenRocksStore(BankOptions(path), pool, executor);
  if (!store.ok()) _exit(3);
  bool scanned = false;
  (*store)->Scan([](std::vector<record::Row>) {}, [&](Status) { scanned = true; });
  executor.RunUntil([&] { return scanned; });
  int open = 0;
  for (uint64_t i = 0;; ++i) {
    const uint64_t number = (i * 37) % kNumbers;
    const auto generation = first_generation + static_cast<uint32_t>(i / kNumbers);
    auto block = std::make_shared<TestBlock>(TestBlock::Make(number, generation));
    const uint64_t basis = number * 1'000'003 + generation + 1;
    for (auto& s : block->meta.segments) s.basis = basis;
    (*store)->PutRow(Basis::Row(basis), nullptr);
    ++open;
    (*store)->PutBlock(block->Write(), [&open, block, number, generation, pipe](Status status) {
      --open;
      if (!status.ok()) _exit(4);
      const Ack ack{number, generation};
      if (write(pipe, &ack, sizeof ack) != sizeof ack) _exit(5);
    });
    executor.RunUntil([&] { return open < kOpenPuts; });
  }
}

// Run by the test below in a process of its own: RocksDB's threads do not survive a fork.
TEST(BankKill, DISABLED_Child) {
  const char* path = std::getenv("DYNA_BANK_PATH");
  const char* pipe = std::getenv("DYNA_BANK_PIPE");
  const char* generation = std::getenv("DYNA_BANK_GENERATION");
  if (path == nullptr || pipe == nullptr || generation == nullptr) return;
  WriteForEver(path, std::atoi(pipe), static_cast<uint32_t>(std::atoi(generation)));
}

pid_t StartChild(const std::string& path, int pipe, uint32_t generation) {
  setenv("DYNA_BANK_PATH", path.c_str(), 1);
  setenv("DYNA_BANK_PIPE", std::to_string(pipe).c_str(), 1);
  setenv("DYNA_BANK_GENERATION", std::to_string(generation).c_str(), 1);
  const pid_t child = fork();
  if (child == 0) {
    execl("/proc/self/exe", "bank_child", "--gtest_filter=BankKill.DISABLED_Child",
          "--gtest_also_run_disabled_tests", "--gtest_brief=1", nullptr);
    _exit(6);
  }
  return child;
}

TEST(BankKill, WhatWasAcknowledgedSurvives) {
  std::mt19937 rng(testing::TestSeed());
  TempDir dir;
  const std::string path = dir / "bank";
  std::map<uint64_t, uint32_t> acknowledged;  // block number -> its newest generation
  uint64_t acks = 0;

  for (int kill_number = 0; kill_number < kKills; ++kill_number) {
    int fds[2];
    ASSERT_EQ(pipe(fds), 0);
    UniqueFd reader(fds[0]), writer(fds[1]);
    const auto generation = static_cast<uint32_t>(1000 * kill_number + 1);
    const pid_t child = StartChild(path, writer.get(), generation);
    ASSERT_GT(child, 0);
    writer.reset();

    // Killed after a random number of answers: inside some commit, most times.
    const uint64_t until = 50 + rng() % 800;
    Ack ack;
    uint64_t n = 0;
    while (read(reader.get(), &ack, sizeof ack) == sizeof ack) {
      acknowledged[ack.number] = ack.generation;
      ++acks;
      if (++n == until) kill(child, SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself: " << WEXITSTATUS(status);

    TestExecutor executor;
    SpillPool pool(2);
    auto store = OpenRocksStore(BankOptions(path), pool, executor);
    ASSERT_TRUE(store.ok()) << store.status().ToString();
    Client client{**store, executor};
    std::map<record::BlockKey, record::BlockMeta> found;
    std::set<BasisName> bases;
    for (const record::Row& row : client.Scan()) {
      if (const auto* meta = std::get_if<record::BlockMeta>(&row)) found[meta->key] = *meta;
      if (const auto* basis = std::get_if<record::BasisRow>(&row)) bases.insert(basis->name);
    }
    for (const auto& [number, newest] : acknowledged) {
      const auto at = found.find(TestBlock::Key(number));
      ASSERT_NE(at, found.end()) << "lost: block " << number;
      ASSERT_GE(at->second.generation, newest) << "went back: block " << number;
    }
    for (uint64_t number = 0; number < kNumbers; ++number) {
      const auto at = found.find(TestBlock::Key(number));
      if (at == found.end()) continue;
      ASSERT_TRUE(client.Holds(TestBlock::Make(number, at->second.generation)))
          << "wrong or torn: block " << number;
      ASSERT_TRUE(bases.count(at->second.segments[0].basis)) << "its basis is missing: " << number;
    }
    EXPECT_EQ((*store)->stats().quarantined, 0u);
  }
  std::printf("%d kills, %llu acknowledged writes, 0 lost, 0 wrong\n", kKills,
              static_cast<unsigned long long>(acks));
}

}  // namespace
}  // namespace dyna
