// dynacompress put: K and V of a file into the cache.
#include <sys/stat.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <chrono>
#include <fstream>

#include "client/cli/files.h"
#include "client/cli/progress.h"

namespace dyna::cli {
namespace {

struct PutArgs {
  ChainArgs chain;
  std::string quality = "balanced";
  bool persistent = false;
  uint64_t ttl_ms = 0;
};

QualityClass ClassOf(const std::string& name) {
  for (auto q : {QualityClass::kSmall, QualityClass::kBalanced, QualityClass::kHigh})
    if (QualityName(q) == name) return q;
  return QualityClass::kExact;
}

Result<uint64_t> FileBytes(const std::string& path) {
  struct stat st;
  if (stat(path.c_str(), &st) != 0) return BadUsage(path + ": cannot be read");
  return static_cast<uint64_t>(st.st_size);
}

int RunPut(const Globals& globals, const PutArgs& args) {
  const auto spec = ReadSpecFile(args.chain.context_file);
  if (!spec.ok()) return Fail(globals, spec.status());
  const auto bytes = FileBytes(args.chain.path);
  if (!bytes.ok()) return Fail(globals, bytes.status());
  const uint64_t block_bytes = BlockBytes(*spec);
  if (*bytes == 0 || *bytes % block_bytes != 0)
    return Fail(globals,
                BadUsage(fmt::format("{}: {} bytes are no whole number of blocks of {} bytes",
                                     args.chain.path, *bytes, block_bytes)));
  const uint64_t blocks = *bytes / block_bytes;
  const auto hashes = BlockNames(args.chain.tokens_file, args.chain.name, blocks);
  if (!hashes.ok()) return Fail(globals, hashes.status());
  const uint64_t at_once = BlocksAtOnce(block_bytes, blocks);
  auto bench = OpenWorkbench(globals, *spec, at_once * block_bytes);
  if (!bench.ok()) return Fail(globals, bench.status());

  std::ifstream in(args.chain.path, std::ios::binary);
  Progress progress("put", blocks, globals.json);
  uint64_t stored = 0, existed = 0, segments = 0;  // stored: of those that did not exist
  double nmse = 0;
  const auto start = std::chrono::steady_clock::now();
  for (uint64_t b = 0; b < blocks; b += at_once) {
    const auto n = static_cast<uint32_t>(std::min(at_once, blocks - b));
    if (!in.read(reinterpret_cast<char*>(bench->data()), static_cast<long>(n * block_bytes)))
      return Fail(globals, Internal("the file became shorter"), args.chain.path);
    PutRequest put;
    put.parent = b == 0 ? BlockHash{} : (*hashes)[b - 1];
    put.first_index = static_cast<uint32_t>(b);
    put.hashes.assign(hashes->begin() + static_cast<long>(b),
                      hashes->begin() + static_cast<long>(b + n));
    put.source = FileOrder(*spec, bench->data(), n);
    put.quality = ClassOf(args.quality);
    put.durability = args.persistent ? Durability::kPersistent : Durability::kVolatile;
    put.ttl = std::chrono::milliseconds(args.ttl_ms);
    const PutResult r = bench->context->Put(std::move(put));
    if (!r.status.ok())
      return Fail(globals, r.status, fmt::format("put of blocks {}..{}", b, b + n - 1));
    for (const auto& s : r.segments) {
      ++segments;
      if (s.status == StatusCode::kExists) {  // nothing was encoded: no bytes, no error
        ++existed;
        continue;
      }
      stored += s.bytes;
      nmse += s.nmse;
    }
    progress.Advance(b + n);
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  nmse /= static_cast<double>(std::max<uint64_t>(segments - existed, 1));
  // Every segment is as large (OpenWorkbench).
  const uint64_t raw = *bytes / std::max<uint64_t>(segments, 1) * (segments - existed);
  if (globals.json) {
    Print({{"context", fmt::format("{:016x}", bench->context->fingerprint())},
           {"blocks", blocks},
           {"segments", segments},
           {"segments_existed", existed},
           {"raw_bytes", *bytes},
           {"raw_bytes_encoded", raw},
           {"encoded_bytes", stored},
           {"nmse", nmse},
           {"seconds", seconds}});
    return kDone;
  }
  fmt::print("{} blocks ({}) in {:.2f} s, {:.2f} GB/s", blocks, Bytes(static_cast<double>(*bytes)),
             seconds, static_cast<double>(*bytes) / 1e9 / seconds);
  if (stored > 0)
    fmt::print("; stored in {}, {:.2f} x smaller, squared error {:.2e} of the energy",
               Bytes(static_cast<double>(stored)),
               static_cast<double>(raw) / static_cast<double>(stored), nmse);
  fmt::print("{}\n", existed > 0
                         ? fmt::format("; {} of {} segments were there already", existed, segments)
                         : "");
  return kDone;
}

}  // namespace

Verb AddPut(CLI::App& app, const Globals& globals) {
  auto args = std::make_shared<PutArgs>();
  CLI::App* verb = app.add_subcommand("put", "store K and V of a file");
  AddChainOptions(*verb, args->chain, true);
  verb->add_option("--quality", args->quality, "class of the blocks")
      ->check(CLI::IsMember({"small", "balanced", "high", "exact"}))
      ->capture_default_str();
  verb->add_flag("--persistent", args->persistent, "into the bank: survives restarts and crashes");
  verb->add_option("--ttl-ms", args->ttl_ms, "drop them after this time; 0: never");
  verb->add_option("file", args->chain.path,
                   "raw K and V: [block][layer][kv_head][K, V][token][head_dim]")
      ->required();
  return {verb, [&globals, args] { return RunPut(globals, *args); }};
}

}  // namespace dyna::cli
