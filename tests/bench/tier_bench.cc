// The slower tier: how long a restart scans, what a block costs to put and to read back. The
// references are in the same run: memcpy of the same bytes, and a file written and synced.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <vector>

#include "daemon/tier/rocks/rocks_store.h"
#include "daemon/tier/store_harness.h"

namespace dyna {
namespace {

std::unique_ptr<SpillStore> Open(const TempDir& dir, RocksOptions::Kind kind, SpillPool& pool,
                                 TestExecutor& executor) {
  RocksOptions options;
  options.kind = kind;
  options.path = dir / "store";
  auto store = OpenRocksStore(options, pool, executor);
  if (!store.ok()) std::abort();
  return std::move(*store);
}

// 100,000 rows of a model's shape; the payload of a row plays no part in the scan.
void BM_RestartScan(benchmark::State& state) {
  const auto layers = static_cast<uint16_t>(state.range(0)),
             heads = static_cast<uint16_t>(state.range(1));
  constexpr uint64_t kBlocks = 100'000;
  TempDir dir;
  TestExecutor executor;
  SpillPool pool(2);
  const std::vector<std::byte> payload(256);
  {
    auto store = Open(dir, RocksOptions::Kind::kSpill, pool, executor);
    uint64_t answered = 0, asked = 0;
    while (asked < kBlocks) {
      BlockWrite write{TestBlock::Make(asked, 1, 1, 256, 0).meta, {}};
      write.meta.shards = {{0, layers, 0, heads}};
      write.meta.segments.clear();
      for (uint16_t l = 0; l < layers; ++l) {
        write.meta.segments.push_back({l, 0, heads, 0x1000u + l, 256});
        write.parts.push_back({{PartId::Kind::kSegment, l, 0}, payload});
      }
      write.meta.cells.assign(size_t{layers} * heads, {kind::Level(7), kind::VBits(2), 0, 0, 0, 0});
      store->PutBlock(std::move(write), [&](Status s) {
        if (!s.ok()) std::abort();
        ++answered;
      });
      ++asked;
      executor.RunUntil([&] { return asked - answered < 64; });
    }
    executor.RunUntil([&] { return asked == answered; });
  }
  for (auto _ : state) {
    auto store = Open(dir, RocksOptions::Kind::kSpill, pool, executor);
    size_t rows = 0;
    bool done = false;
    store->Scan([&](std::vector<record::Row> batch) { rows += batch.size(); },
                [&](Status) { done = true; });
    executor.RunUntil([&] { return done; });
    if (rows != kBlocks) std::abort();
  }
  state.counters["rows"] = static_cast<double>(kBlocks);
}
BENCHMARK(BM_RestartScan)
    ->Args({30, 3})
    ->Args({32, 8})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(3)
    ->MeasureProcessCPUTime()
    ->UseRealTime();

// A block of 30 segments of 7,168 bytes (SmolLM2 at 2 bits), 16 open at once.
void BM_Put(benchmark::State& state) {
  const auto kind = static_cast<RocksOptions::Kind>(state.range(0));
  TempDir dir;
  TestExecutor executor;
  SpillPool pool(2);
  auto store = Open(dir, kind, pool, executor);
  TestBlock block = TestBlock::Make(1, 1, 30);
  uint64_t asked = 0, answered = 0;
  for (auto _ : state) {
    block.meta.key = TestBlock::Key(asked++);
    store->PutBlock(block.Write(), [&](Status s) {
      if (!s.ok()) std::abort();
      ++answered;
    });
    executor.RunUntil([&] { return asked - answered < 16; });
  }
  executor.RunUntil([&] { return asked == answered; });
  state.SetBytesProcessed(static_cast<int64_t>(asked * record::SegmentBytes(block.meta)));
  state.counters["blocks/commit"] =
      static_cast<double>(asked) / static_cast<double>(store->stats().commits);
}
BENCHMARK(BM_Put)
    ->ArgName("bank")
    ->Arg(0)
    ->Arg(1)
    ->Iterations(1000)
    ->MeasureProcessCPUTime()
    ->UseRealTime();

void BM_ReadBack(benchmark::State& state) {
  TempDir dir;
  TestExecutor executor;
  SpillPool pool(2);
  auto store = Open(dir, RocksOptions::Kind::kSpill, pool, executor);
  TestBlock block = TestBlock::Make(1, 1, 30);
  constexpr uint64_t kBlocks = 500;
  for (uint64_t i = 0; i < kBlocks; ++i) {
    block.meta.key = TestBlock::Key(i);
    if (!Client{*store, executor}.Put(block).ok()) std::abort();
  }
  if (!Client{*store, executor}.Flush().ok()) std::abort();
  std::vector<std::vector<std::byte>> out;
  for (const auto& [id, bytes] : block.bytes) out.emplace_back(bytes.size());
  uint64_t asked = 0;
  for (auto _ : state) {
    BlockRead read{TestBlock::Key(asked++ % kBlocks), 1, {}};
    size_t i = 0;
    for (const auto& [id, bytes] : block.bytes) read.parts.push_back({id, out[i++]});
    bool done = false;
    store->ReadParts(std::move(read), [&](std::vector<Status> statuses) {
      for (const Status& s : statuses)
        if (!s.ok()) std::abort();
      done = true;
    });
    executor.RunUntil([&] { return done; });
  }
  state.SetBytesProcessed(static_cast<int64_t>(asked * record::SegmentBytes(block.meta)));
}
BENCHMARK(BM_ReadBack)->Iterations(1000)->MeasureProcessCPUTime()->UseRealTime();

void BM_Memcpy(benchmark::State& state) {
  const std::vector<std::byte> from(64 << 20, std::byte{1});
  std::vector<std::byte> to(from.size());
  for (auto _ : state) {
    std::memcpy(to.data(), from.data(), from.size());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * from.size()));
}
BENCHMARK(BM_Memcpy)->MeasureProcessCPUTime()->UseRealTime();

// What the disk gives to one who writes 8 MiB and syncs: the bank's group, without a database.
void BM_WriteAndSync(benchmark::State& state) {
  TempDir dir;
  const int fd = open((dir / "file").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  const std::vector<std::byte> bytes(8 << 20, std::byte{1});
  for (auto _ : state)
    if (write(fd, bytes.data(), bytes.size()) < 0 || fdatasync(fd) != 0) std::abort();
  close(fd);
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * bytes.size()));
}
BENCHMARK(BM_WriteAndSync)->Iterations(30)->MeasureProcessCPUTime()->UseRealTime();

}  // namespace
}  // namespace dyna

BENCHMARK_MAIN();
