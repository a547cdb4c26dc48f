// dynacompress bench: put and get of made-up K and V, beside memcpy of the same bytes in this run.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>

#include "client/cli/files.h"
#include "client/cli/progress.h"

namespace dyna::cli {
namespace {

struct BenchArgs {
  std::string context_file, quality = "balanced";
  uint64_t mib = 256;
  uint32_t batch = 16, rounds = 3, calls = 300;
  bool as_stored = false;
};

using Clock = std::chrono::steady_clock;
double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

ContextSpec DefaultSpec() {  // an eighth of Llama-3.1-8B's layers
  ContextSpec s;
  s.model = "dynacompress-bench";
  s.dtype = DType::kF16;
  s.ropes.emplace_back();
  s.layers.assign(4, {LayerKind::kFull, 8, 32, 128, 0, 0, 1u << 20});
  return s;
}

// Normal values in the dtype, the same every time; rows have a slowly moving mean, as K has.
void FillNormal(const ContextSpec& spec, std::span<std::byte> out) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<std::byte> pattern(size_t{1} << 20);
  const auto width = static_cast<size_t>(DTypeBytes(spec.dtype));
  for (size_t i = 0; i + width <= pattern.size(); i += width) {
    const float f = normal(rng);
    if (spec.dtype == DType::kF32) {
      std::memcpy(&pattern[i], &f, 4);
    } else if (width == 2) {
      uint32_t bits;
      std::memcpy(&bits, &f, 4);
      const uint32_t e = (bits >> 23) & 255, sign = bits >> 31;
      // f16 of a normal f32 in range, truncated; below f16's normals: zero.
      uint16_t h = static_cast<uint16_t>(bits >> 16);
      if (spec.dtype == DType::kF16)
        h = static_cast<uint16_t>(
            e < 113 ? sign << 15 : (sign << 15) | ((e - 112) << 10) | ((bits >> 13) & 1023));
      std::memcpy(&pattern[i], &h, 2);
    } else {
      pattern[i] = static_cast<std::byte>(rng() & 0xb7);  // fp8: no infinities or NaN
    }
  }
  for (size_t at = 0; at < out.size(); at += pattern.size())
    std::memcpy(&out[at], pattern.data(), std::min(pattern.size(), out.size() - at));
}

double MemcpyRate(std::span<std::byte> from, std::span<std::byte> to, uint32_t rounds) {
  double best = 0;
  for (uint32_t r = 0; r < rounds; ++r) {
    const auto start = Clock::now();
    std::memcpy(to.data(), from.data(), from.size());
    best = std::max(best, static_cast<double>(from.size()) / 1e9 / Since(start));
  }
  return best;
}

struct Rates {
  double put = 0, get = 0, nmse = 0;
  uint64_t stored = 0;
};

Result<Rates> Measure(Workbench& bench, const ContextSpec& spec, const BenchArgs& args,
                      uint32_t blocks, std::byte* source, std::byte* target, Progress& progress) {
  Rates best;
  const uint64_t block_bytes = BlockBytes(spec);
  const double bytes = static_cast<double>(block_bytes) * blocks;
  QualityClass quality = QualityClass::kBalanced;
  for (auto q : {QualityClass::kSmall, QualityClass::kHigh, QualityClass::kExact})
    if (QualityName(q) == args.quality) quality = q;
  for (uint32_t round = 0; round < args.rounds; ++round) {
    DYNA_ASSIGN_OR_RETURN(auto hashes,
                          BlockNames("", fmt::format("bench {} {}", getpid(), round), blocks));
    best.stored = 0;
    auto start = Clock::now();
    for (uint32_t b = 0; b < blocks; b += args.batch) {
      const uint32_t n = std::min(args.batch, blocks - b);
      PutRequest put;
      put.parent = b == 0 ? BlockHash{} : hashes[b - 1];
      put.first_index = b;
      put.hashes.assign(hashes.begin() + b, hashes.begin() + b + n);
      put.source = FileOrder(spec, source + b * block_bytes, n);
      put.quality = quality;
      const PutResult r = bench.context->Put(std::move(put));
      DYNA_RETURN_IF_ERROR(r.status);
      for (const auto& s : r.segments) best.stored += s.bytes;
      progress.Advance((2 * round) * uint64_t{blocks} + b);
    }
    best.put = std::max(best.put, bytes / 1e9 / Since(start));
    LookupRequest lookup;
    lookup.hashes = hashes;
    DYNA_ASSIGN_OR_RETURN(const Lease lease, bench.context->Lookup(std::move(lookup)));
    if (lease.run() == 0)
      return Status(StatusCode::kMiss, "nothing of what was put is held: the budget is too small");
    start = Clock::now();
    for (uint32_t b = 0; b < lease.run(); b += args.batch) {
      FetchRequest fetch;
      fetch.block_begin = b;
      fetch.block_count = std::min(args.batch, lease.run() - b);
      fetch.target = FileOrder(spec, target + b * block_bytes, fetch.block_count);
      fetch.form = args.as_stored ? wire::Form::kAsStored : wire::Form::kDecoded;
      const FetchResult r = bench.context->Fetch(lease, std::move(fetch));
      DYNA_RETURN_IF_ERROR(r.status);
      for (const auto& s : r.segments) best.nmse = std::max(best.nmse, static_cast<double>(s.nmse));
      progress.Advance((2 * round + 1) * uint64_t{blocks} + b);
    }
    const double got = static_cast<double>(block_bytes) * lease.run();
    best.get = std::max(best.get, got / 1e9 / Since(start));
    DYNA_RETURN_IF_ERROR(bench.context->Delete(hashes).status());
  }
  return best;
}

// One block's one layer, one call at a time: microseconds, sorted.
Result<std::vector<double>> Latencies(Workbench& bench, const ContextSpec& spec, uint32_t calls,
                                      std::byte* data) {
  DYNA_ASSIGN_OR_RETURN(auto hashes, BlockNames("", fmt::format("latency {}", getpid()), 1));
  PutRequest put;
  put.hashes = hashes;
  put.source = FileOrder(spec, data, 1);
  DYNA_RETURN_IF_ERROR(bench.context->Put(std::move(put)).status);
  LookupRequest lookup;
  lookup.hashes = hashes;
  DYNA_ASSIGN_OR_RETURN(const Lease lease, bench.context->Lookup(std::move(lookup)));
  ContextSpec one = spec;
  one.layers.resize(1);
  std::vector<double> us;
  for (uint32_t i = 0; i < calls; ++i) {
    FetchRequest fetch;
    fetch.layer_count = 1;
    fetch.target = FileOrder(one, data, 1);
    const auto start = Clock::now();
    DYNA_RETURN_IF_ERROR(bench.context->Fetch(lease, std::move(fetch)).status);
    us.push_back(1e6 * Since(start));
  }
  DYNA_RETURN_IF_ERROR(bench.context->Delete(hashes).status());
  std::sort(us.begin(), us.end());
  return us;
}

int RunBench(const Globals& globals, const BenchArgs& args) {
  const auto given = args.context_file.empty() ? Result<ContextSpec>(DefaultSpec())
                                               : ReadSpecFile(args.context_file);
  if (!given.ok()) return Fail(globals, given.status());
  ContextSpec spec = *given;
  const uint64_t block_bytes = BlockBytes(spec);
  const auto blocks =
      static_cast<uint32_t>(std::clamp<uint64_t>((args.mib << 20) / block_bytes, 1, 4096));
  const uint64_t bytes = blocks * block_bytes;
  auto bench = OpenWorkbench(globals, spec, 2 * bytes);
  if (!bench.ok()) return Fail(globals, bench.status());
  std::byte *source = bench->data(), *target = source + bytes;
  FillNormal(spec, {source, bytes});
  std::memset(target, 0, bytes);
  const double copy = MemcpyRate({source, bytes}, {target, bytes}, args.rounds);
  Result<Rates> rates = Internal("");
  {
    Progress progress("bench", uint64_t{2} * args.rounds * blocks, globals.json);
    rates = Measure(*bench, spec, args, blocks, source, target, progress);
  }
  if (!rates.ok()) return Fail(globals, rates.status(), "bench");
  const auto us = Latencies(*bench, spec, args.calls, source);
  if (!us.ok()) return Fail(globals, us.status(), "bench (latency)");
  const double p50 = (*us)[us->size() / 2], p99 = (*us)[us->size() * 99 / 100];
  const double ratio =
      rates->stored > 0 ? static_cast<double>(bytes) / static_cast<double>(rates->stored) : 0;
  const std::string way =
      globals.bulk == "auto" ? (bench->region ? "region" : "socket") : globals.bulk;
  if (globals.json) {
    Print({{"blocks", blocks},
           {"raw_bytes", bytes},
           {"batch", args.batch},
           {"bulk", way},
           {"quality", args.quality},
           {"as_stored", args.as_stored},
           {"memcpy_gb_s", copy},
           {"put_gb_s", rates->put},
           {"get_gb_s", rates->get},
           {"put_of_memcpy", rates->put / copy},
           {"get_of_memcpy", rates->get / copy},
           {"ratio", ratio},
           {"nmse_worst", rates->nmse},
           {"fetch_one_us_p50", p50},
           {"fetch_one_us_p99", p99}});
    return kDone;
  }
  fmt::print("{} blocks of {}, {} a call, {}, class {}{}\n", blocks,
             Bytes(static_cast<double>(block_bytes)), args.batch, way, args.quality,
             args.as_stored ? ", as stored" : "");
  fmt::print("memcpy {:6.2f} GB/s (one thread, best of {})\n", copy, args.rounds);
  fmt::print("put    {:6.2f} GB/s = {:.2f} x memcpy, {:.2f} x smaller\n", rates->put,
             rates->put / copy, ratio);
  fmt::print("get    {:6.2f} GB/s = {:.2f} x memcpy, worst squared error {:.2e} of the energy\n",
             rates->get, rates->get / copy, rates->nmse);
  fmt::print(
      "one segment of {}, one call at a time: {:.0f} us (half of the calls), {:.0f} us (99 %)\n",
      Bytes(static_cast<double>(block_bytes) / static_cast<double>(spec.layers.size())), p50, p99);
  return kDone;
}

}  // namespace

Verb AddBench(CLI::App& app, const Globals& globals) {
  auto args = std::make_shared<BenchArgs>();
  CLI::App* verb = app.add_subcommand("bench", "put and get beside memcpy, in one run");
  verb->add_option("--context", args->context_file,
                   "shape of K and V (see --help-files); default: 4 layers, 8 heads, 128");
  verb->add_option("--mib", args->mib, "of K and V")
      ->check(CLI::Range(1u, 65536u))
      ->capture_default_str();
  verb->add_option("--batch", args->batch, "blocks a call")
      ->check(CLI::Range(1u, 4096u))
      ->capture_default_str();
  verb->add_option("--rounds", args->rounds, "the best one counts")
      ->check(CLI::Range(1u, 1000u))
      ->capture_default_str();
  verb->add_option("--calls", args->calls, "for the latency of one")
      ->check(CLI::Range(1u, 1000000u))
      ->capture_default_str();
  verb->add_option("--quality", args->quality, "class of the blocks")
      ->check(CLI::IsMember({"small", "balanced", "high", "exact"}))
      ->capture_default_str();
  verb->add_flag("--as-stored", args->as_stored, "move compressed bytes and decode here");
  return {verb, [&globals, args] { return RunBench(globals, *args); }};
}

}  // namespace dyna::cli
