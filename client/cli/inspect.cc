// dynacompress inspect: bits of every layer, head and block as a map of characters.
#include <unistd.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <map>

#include "client/cli/cli.h"

namespace dyna::cli {
namespace {

using nlohmann::json;

struct InspectArgs {
  std::string context;
  std::vector<std::string> hashes;
  uint32_t limit = 256;
  bool each_head = false;
};

// One character a cell: its bits, rounded; R is raw, . is a mean, space is nothing.
char Cell(double bits) {
  if (bits < 0) return ' ';
  if (bits > 9.5) return 'R';
  const long rounded = std::lround(bits);
  return bits == 0 ? '.' : static_cast<char>('0' + std::clamp(rounded, 1l, 9l));
}
std::string Colour(double bits) {  // cold to hot on a terminal of 256 colours
  static constexpr int kHeat[] = {236, 17, 19, 25, 31, 37, 71, 107, 143, 179};
  return fmt::format("\033[48;5;{}m",
                     bits > 9.5 ? 196 : kHeat[std::clamp(std::lround(bits), 0l, 9l)]);
}

// bits[layer, head][block]; head -1 is the mean of the layer's heads.
using Map = std::map<std::pair<int, int>, std::vector<double>>;

Map Collect(const json& blocks, const char* field, bool each_head) {
  Map map;
  for (size_t b = 0; b < blocks.size(); ++b)
    for (const json& row : blocks[b].value("rows", json::array())) {
      const int layer = row.value("layer", 0), head0 = row.value("head_begin", 0);
      const auto bits = row.value(field, std::vector<double>());
      double sum = 0;
      for (size_t h = 0; h < bits.size(); ++h) {
        sum += bits[h];
        if (!each_head) continue;
        auto& cells = map[{layer, head0 + static_cast<int>(h)}];
        cells.resize(blocks.size(), -1);
        cells[b] = bits[h];
      }
      if (each_head || bits.empty()) continue;
      auto& cells = map[{layer, -1}];
      cells.resize(blocks.size(), -1);
      cells[b] = sum / static_cast<double>(bits.size());
    }
  return map;
}

void PrintMap(const char* title, const Map& map, bool colour) {
  fmt::print("{}\n", title);
  for (const auto& [key, cells] : map) {
    std::string line;
    double sum = 0;
    size_t held = 0;
    for (double bits : cells) {
      if (colour && bits >= 0) line += Colour(bits);
      line += Cell(bits);
      if (colour && bits >= 0) line += "\033[0m";
      if (bits >= 0) {
        sum += bits;
        ++held;
      }
    }
    fmt::print("  {:>4}{} |{}| {:.2f}\n", key.first,
               key.second < 0 ? "   " : fmt::format(" h{:<1}", key.second), line,
               held > 0 ? sum / static_cast<double>(held) : 0.0);
  }
}

int RunInspect(const Globals& globals, const InspectArgs& args) {
  const auto context = ParseContext(args.context);
  if (!context.ok()) return Fail(globals, context.status());
  std::vector<BlockHash> hashes;
  for (const std::string& h : args.hashes) {
    const auto hash = ParseHash(h);
    if (!hash.ok()) return Fail(globals, hash.status());
    hashes.push_back(*hash);
  }
  const auto client = ConnectClient(globals);
  if (!client.ok()) return Fail(globals, client.status());
  auto answer = Ask(**client, wire::QueryKind::kInspect, *context, hashes, args.limit);
  if (!answer.ok()) return Fail(globals, answer.status(), "inspect");
  if (globals.json) {
    Print(*answer);
    return kDone;
  }
  json blocks = answer->value("blocks", json::array());
  if (blocks.empty()) {
    fmt::print("no block is held{}\n", args.context.empty() ? "" : " in that context");
    return kMissing;
  }
  std::stable_sort(blocks.begin(), blocks.end(), [](const json& a, const json& b) {
    return std::pair(a.value("context", ""), a.value("index", 0u)) <
           std::pair(b.value("context", ""), b.value("index", 0u));
  });
  const bool colour = isatty(STDOUT_FILENO) == 1;
  // One map a context, blocks from left to right in the order of their sequence.
  for (size_t begin = 0; begin < blocks.size();) {
    const std::string name = blocks[begin].value("context", "");
    size_t end = begin;
    while (end < blocks.size() && blocks[end].value("context", "") == name) ++end;
    const json part(std::vector<json>(blocks.begin() + static_cast<long>(begin),
                                      blocks.begin() + static_cast<long>(end)));
    double bytes = 0, nmse = 0;
    std::map<std::string, int> tiers, classes;
    for (const json& b : part) {
      bytes += b.value("bytes", 0.0);
      nmse += b.value("nmse", 0.0) / static_cast<double>(part.size());
      ++tiers[b.value("tier", "?")];
      ++classes[b.value("quality", "?")];
    }
    fmt::print("context {}: {} blocks, {}, squared error {:.2e} of the energy;", name, part.size(),
               Bytes(bytes), nmse);
    for (const auto& [tier, n] : tiers) fmt::print(" {} {}", n, tier);
    for (const auto& [quality, n] : classes) fmt::print(", {} {}", n, quality);
    fmt::print("\nbits by layer{}, blocks from left to right (R raw, . mean; mean at the right)\n",
               args.each_head ? " and head" : "");
    PrintMap("K", Collect(part, "k_bits", args.each_head), colour);
    PrintMap("V", Collect(part, "v_bits", args.each_head), colour);
    begin = end;
  }
  return kDone;
}

}  // namespace

Verb AddInspect(CLI::App& app, const Globals& globals) {
  auto args = std::make_shared<InspectArgs>();
  CLI::App* verb = app.add_subcommand("inspect", "bits of every layer, head and block");
  verb->add_option("--context", args->context, "as `status` prints it; without it: all");
  verb->add_option("--limit", args->limit, "blocks")
      ->check(CLI::Range(1u, 1u << 20))
      ->capture_default_str();
  verb->add_flag("--heads", args->each_head, "a row a head, not a layer");
  verb->add_option("hash", args->hashes, "these blocks only");
  return {verb, [&globals, args] { return RunInspect(globals, *args); }};
}

}  // namespace dyna::cli
