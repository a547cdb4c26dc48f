// dynacompress bank list, export, drop: the durable blocks of the caller.
#include <sys/stat.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <fstream>

#include "client/cli/files.h"
#include "client/cli/progress.h"

namespace dyna::cli {
namespace {

using nlohmann::json;

constexpr uint32_t kMaxRows = (1u << 20) - 1;  // of one answer of the daemon, and one more

struct BankArgs {
  CLI::App *list = nullptr, *exported = nullptr, *drop = nullptr;
  std::string context, directory;
  ChainArgs chain;
  std::vector<std::string> hashes;
  uint32_t limit = 4096;
  bool all = false;
};

Result<json> Blocks(Client& client, Fingerprint context, uint32_t limit) {
  DYNA_ASSIGN_OR_RETURN(json answer, Ask(client, wire::QueryKind::kBankList, context, {}, limit));
  return answer.value("blocks", json::array());
}

int List(const Globals& globals, const BankArgs& args) {
  const auto context = ParseContext(args.context);
  if (!context.ok()) return Fail(globals, context.status());
  const auto client = ConnectClient(globals);
  if (!client.ok()) return Fail(globals, client.status());
  const auto blocks = Blocks(**client, *context, args.limit);
  if (!blocks.ok()) return Fail(globals, blocks.status(), "bank list");
  if (globals.json) {
    Print(*blocks);
    return kDone;
  }
  double bytes = 0;
  for (const json& b : *blocks) {
    bytes += b.value("bytes", 0.0);
    fmt::print("{} {} block {:<5} {:9} {:>10} {:5.2f} bits, squared error {:.2e}\n",
               b.value("context", "?"), b.value("hash", "?"), b.value("index", 0),
               b.value("quality", "?"), Bytes(b.value("bytes", 0.0)), b.value("mean_bits", 0.0),
               b.value("nmse", 0.0));
  }
  fmt::print("{} blocks, {}{}\n", blocks->size(), Bytes(bytes),
             blocks->size() == args.limit ? " (--limit reached)" : "");
  return kDone;
}

int Export(const Globals& globals, const BankArgs& args) {
  const auto spec = ReadSpecFile(args.chain.context_file);
  if (!spec.ok()) return Fail(globals, spec.status());
  const uint64_t bytes = BlockBytes(*spec);
  auto bench = OpenWorkbench(globals, *spec, bytes);
  if (!bench.ok()) return Fail(globals, bench.status());
  auto blocks = Blocks(*bench->client, bench->context->fingerprint(), args.limit + 1);
  if (!blocks.ok()) return Fail(globals, blocks.status(), "bank export");
  const bool cut = blocks->size() > args.limit;  // asked for one more, to know
  if (cut) blocks->erase(blocks->begin() + args.limit, blocks->end());
  if (mkdir(args.directory.c_str(), 0700) != 0 && errno != EEXIST)
    return Fail(globals, BadUsage(args.directory + ": cannot be made"));
  Progress progress("export", blocks->size(), globals.json);
  json index = json::array();
  uint64_t done = 0, missing = 0;
  for (json& b : *blocks) {
    const auto hash = ParseHash(b.value("hash", ""));
    if (!hash.ok()) return Fail(globals, hash.status());
    LookupRequest lookup;
    lookup.hashes = {*hash};
    const auto lease = bench->context->Lookup(std::move(lookup));
    if (!lease.ok()) return Fail(globals, lease.status(), "lookup");
    progress.Advance(++done);
    if (lease->run() == 0) {
      ++missing;
      continue;
    }
    FetchRequest fetch;
    fetch.target = FileOrder(*spec, bench->data(), 1);
    const FetchResult r = bench->context->Fetch(*lease, std::move(fetch));
    if (!r.status.ok()) return Fail(globals, r.status, "fetch of " + Hex(*hash));
    b["file"] = Hex(*hash) + ".kv";
    std::ofstream out(args.directory + "/" + Hex(*hash) + ".kv", std::ios::binary);
    if (!out.write(reinterpret_cast<const char*>(bench->data()), static_cast<long>(bytes)) ||
        !out.flush())
      return Fail(globals, BadUsage(args.directory + ": cannot be written (is the disk full?)"));
    index.push_back(std::move(b));
  }
  std::ofstream out(args.directory + "/index.json");
  if (!(out << index.dump(2) << "\n") || !out.flush())
    return Fail(globals, BadUsage(args.directory + "/index.json: cannot be written"));
  if (globals.json)
    Print({{"blocks", index.size()},
           {"missing", missing},
           {"limit_reached", cut},
           {"directory", args.directory}});
  else
    fmt::print("{} blocks of {} each in {} (index.json says which){}{}\n", index.size(),
               Bytes(static_cast<double>(bytes)), args.directory,
               missing > 0 ? fmt::format("; {} could not be read", missing) : "",
               cut ? fmt::format("; there are more than --limit {}", args.limit) : "");
  if (cut) return kFailed;
  return missing > 0 ? kMissing : kDone;
}

int Drop(const Globals& globals, const BankArgs& args) {
  const auto context = ParseContext(args.context);
  if (!context.ok()) return Fail(globals, context.status());
  if (*context == 0) return Fail(globals, BadUsage("--context says of which model"));
  if (args.hashes.empty() != args.all)
    return Fail(globals, BadUsage("either hashes, or --all for the whole context"));
  std::vector<BlockHash> hashes;
  for (const std::string& h : args.hashes) {
    const auto hash = ParseHash(h);
    if (!hash.ok()) return Fail(globals, hash.status());
    hashes.push_back(*hash);
  }
  const auto client = ConnectClient(globals);
  if (!client.ok()) return Fail(globals, client.status());
  const auto count = (*client)->BankDrop(*context, std::move(hashes));
  if (!count.ok()) return Fail(globals, count.status(), "bank drop");
  if (globals.json)
    Print({{"dropped", *count}});
  else
    fmt::print("{} blocks dropped\n", *count);
  return kDone;
}

}  // namespace

Verb AddBank(CLI::App& app, const Globals& globals) {
  auto args = std::make_shared<BankArgs>();
  CLI::App* verb = app.add_subcommand("bank", "the blocks that survive everything");
  verb->require_subcommand(1);
  args->list = verb->add_subcommand("list", "what is in it");
  args->list->add_option("--context", args->context, "as `status` prints it; without it: all");
  args->list->add_option("--limit", args->limit, "blocks")
      ->check(CLI::Range(1u, kMaxRows))
      ->capture_default_str();
  args->exported = verb->add_subcommand("export", "decode every block of a model into a directory");
  AddChainOptions(*args->exported, args->chain, false);
  args->exported->add_option("--limit", args->limit, "blocks")
      ->check(CLI::Range(1u, kMaxRows))
      ->capture_default_str();
  args->exported
      ->add_option("directory", args->directory, "is made; one file a block, and index.json")
      ->required();
  args->drop = verb->add_subcommand("drop", "take blocks out of it (operators)");
  args->drop->add_option("--context", args->context, "as `status` prints it");
  args->drop->add_flag("--all", args->all, "every block of the context");
  args->drop->add_option("hash", args->hashes, "these blocks");
  return {verb, [&globals, args] {
            if (args->exported->parsed()) return Export(globals, *args);
            return args->drop->parsed() ? Drop(globals, *args) : List(globals, *args);
          }};
}

}  // namespace dyna::cli
