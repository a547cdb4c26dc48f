// dynacompress get: K and V of the cache into a file.
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>

#include "client/cli/files.h"
#include "client/cli/progress.h"

namespace dyna::cli {
namespace {

struct GetArgs {
  ChainArgs chain;
  uint64_t blocks = 0;
  std::string min_quality = "small";
  float max_nmse = 0;
  bool as_stored = false, partial = false;
};

int RunGet(const Globals& globals, const GetArgs& args) {
  const auto spec = ReadSpecFile(args.chain.context_file);
  if (!spec.ok()) return Fail(globals, spec.status());
  if (args.chain.tokens_file.empty() && args.blocks == 0)
    return Fail(globals, BadUsage("--blocks says how many, where there is no --tokens"));
  const auto hashes = BlockNames(args.chain.tokens_file, args.chain.name, args.blocks);
  if (!hashes.ok()) return Fail(globals, hashes.status());
  const uint64_t block_bytes = BlockBytes(*spec),
                 at_once = BlocksAtOnce(block_bytes, hashes->size());
  auto bench = OpenWorkbench(globals, *spec, at_once * block_bytes);
  if (!bench.ok()) return Fail(globals, bench.status());

  LookupRequest lookup;
  lookup.hashes = *hashes;
  lookup.max_nmse = args.max_nmse;
  for (auto q :
       {QualityClass::kSmall, QualityClass::kBalanced, QualityClass::kHigh, QualityClass::kExact})
    if (QualityName(q) == args.min_quality) lookup.min_quality = q;
  lookup.ttl = std::chrono::milliseconds(globals.deadline_ms);
  auto lease = bench->context->Lookup(std::move(lookup));
  if (!lease.ok()) return Fail(globals, lease.status(), "lookup");
  if (lease->run() == 0 || (lease->run() < hashes->size() && !args.partial))
    return Fail(globals, Status(StatusCode::kMiss,
                                fmt::format("{} of {} blocks are held at that quality{}",
                                            lease->run(), hashes->size(),
                                            lease->run() > 0 ? " (--partial takes them)" : "")));

  std::ofstream out(args.chain.path, std::ios::binary | std::ios::trunc);
  if (!out) return Fail(globals, BadUsage(args.chain.path + ": cannot be written"));
  Progress progress("get", lease->run(), globals.json);
  std::map<std::string, uint64_t> tiers;
  double nmse = 0;
  uint64_t segments = 0, received = 0;
  const bool slides =
      std::any_of(spec->layers.begin(), spec->layers.end(),
                  [](const LayerShape& layer) { return layer.kind == LayerKind::kSliding; });
  const auto start = std::chrono::steady_clock::now();
  for (uint32_t b = 0; b < lease->run(); b += static_cast<uint32_t>(at_once)) {
    FetchRequest fetch;
    fetch.block_begin = b;
    fetch.block_count = static_cast<uint32_t>(std::min<uint64_t>(at_once, lease->run() - b));
    fetch.target = FileOrder(*spec, bench->data(), fetch.block_count);
    fetch.form = args.as_stored ? wire::Form::kAsStored : wire::Form::kDecoded;
    const uint32_t n = fetch.block_count;
    if (slides) std::fill_n(bench->data(), n * block_bytes, std::byte{0});
    const FetchResult r = bench->context->Fetch(*lease, std::move(fetch));
    if (!r.status.ok())
      return Fail(globals, r.status, fmt::format("fetch of blocks {}..{}", b, b + n - 1));
    for (size_t s = 0; s < r.segments.size(); ++s) {
      if (r.segments[s].status != StatusCode::kOk) continue;  // a window has left it behind
      ++tiers[std::string(TierName(r.tiers[s]))];
      nmse += r.segments[s].nmse;
      ++segments;
    }
    received += r.bytes_received;
    if (!out.write(reinterpret_cast<const char*>(bench->data()),
                   static_cast<long>(n * block_bytes)))
      return Fail(globals, Internal("the disk is full"), args.chain.path);
    progress.Advance(b + n);
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const double raw = static_cast<double>(lease->run()) * static_cast<double>(block_bytes);
  nmse /= static_cast<double>(std::max<uint64_t>(segments, 1));
  if (globals.json) {
    Print({{"blocks", lease->run()},
           {"wanted", hashes->size()},
           {"bytes", raw},
           {"seconds", seconds},
           {"nmse", nmse},
           {"segments_by_tier", tiers},
           {"payload_bytes", received}});
    return kDone;
  }
  std::string from;
  for (const auto& [tier, n] : tiers)
    from += fmt::format("{}{} {}", from.empty() ? "" : ", ", n, tier);
  fmt::print(
      "{} of {} blocks ({}) in {:.2f} s, {:.2f} GB/s; segments from: {}; squared error {:.2e} of "
      "the energy\n",
      lease->run(), hashes->size(), Bytes(raw), seconds, raw / 1e9 / seconds, from, nmse);
  return kDone;
}

}  // namespace

Verb AddGet(CLI::App& app, const Globals& globals) {
  auto args = std::make_shared<GetArgs>();
  CLI::App* verb = app.add_subcommand(
      "get", "read K and V into a file; of sliding layers what their windows reach, else zeros");
  AddChainOptions(*verb, args->chain, true);
  verb->add_option("--blocks", args->blocks, "how many; 0: all of --tokens")
      ->check(CLI::Range(size_t{0}, wire::kMaxBlocksPerMessage));  // of one lookup
  verb->add_option("--min-quality", args->min_quality, "what is below it is a miss")
      ->check(CLI::IsMember({"small", "balanced", "high", "exact"}))
      ->capture_default_str();
  verb->add_option("--max-nmse", args->max_nmse, "largest squared error over energy; 0: any");
  verb->add_flag("--as-stored", args->as_stored, "move compressed bytes and decode here");
  verb->add_flag("--partial", args->partial, "take the leading run that is there");
  verb->add_option("file", args->chain.path, "is overwritten")->required();
  return {verb, [&globals, args] { return RunGet(globals, *args); }};
}

}  // namespace dyna::cli
