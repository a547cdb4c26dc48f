// dynacompress status, dynacompress top.
#include <fmt/format.h>
#include <unistd.h>
#include <CLI/CLI.hpp>
#include <chrono>
#include <thread>

#include "client/cli/cli.h"

namespace dyna::cli {
namespace {

using nlohmann::json;

// A number somewhere in the daemon's answer; 0 where this daemon does not say.
double Num(const json& root, const char* pointer) {
  const json::json_pointer p(pointer);
  return root.contains(p) && root[p].is_number() ? root[p].get<double>() : 0;
}
std::string Str(const json& root, const char* pointer) {
  const json::json_pointer p(pointer);
  return root.contains(p) && root[p].is_string() ? root[p].get<std::string>() : "";
}

std::string Duration(double s) {
  if (s < 120) return fmt::format("{:.0f} s", s);
  if (s < 7200) return fmt::format("{:.0f} min", s / 60);
  return s < 172800 ? fmt::format("{:.0f} h", s / 3600) : fmt::format("{:.0f} d", s / 86400);
}

std::string Tiles(const json& s, const char* pointer) {
  const json::json_pointer p(pointer);
  if (!s.contains(p) || !s[p].is_object()) return "none";
  double all = 0;
  for (const auto& [kind, n] : s[p].items()) all += n.get<double>();
  std::string out;
  for (const auto& [kind, n] : s[p].items())
    out += fmt::format("{}{} {:.0f} %", out.empty() ? "" : ", ", kind, 100 * n.get<double>() / all);
  return out.empty() ? "none" : out;
}

void PrintDisk(const json& s, const char* name) {
  const std::string at = std::string("/tiers/") + name;
  const json::json_pointer enabled(at + "/enabled");
  if (s.contains(enabled) && !s[enabled].get<bool>()) {
    fmt::print("{:9} off\n", name);
    return;
  }
  const std::string state = Str(s, (at + "/state").c_str());
  fmt::print("{:9} {:.0f} blocks, {} of {}{}\n", name, Num(s, (at + "/blocks").c_str()),
             Bytes(Num(s, (at + "/bytes").c_str())), Bytes(Num(s, (at + "/budget_bytes").c_str())),
             state.empty() ? "" : ", " + state);
}

void PrintStatus(const json& s, const std::string& endpoint) {
  fmt::print("dynacompressd {} at {}, up {}, {}{}\n", Str(s, "/version"), endpoint,
             Duration(Num(s, "/uptime_seconds")), Str(s, "/isa"),
             Str(s, "/not_ready").empty() ? "" : "; NOT READY: " + Str(s, "/not_ready"));
  const double budget = Num(s, "/budget/bytes"), charged = Num(s, "/budget/charged_bytes");
  fmt::print("budget    {} of {} ({:.0f} %), policy {}, price 2^{:.1f}\n", Bytes(charged),
             Bytes(budget), budget > 0 ? 100 * charged / budget : 0.0, Str(s, "/policy"),
             Num(s, "/budget/price_log2"));
  if (Num(s, "/tokens/budget") > 0)
    fmt::print("tokens    {:.0f} of a chain, summed over layers; the last keeps {:.0f}\n",
               Num(s, "/tokens/budget"), Num(s, "/tokens/kept"));
  fmt::print("host      {:.0f} blocks, {}\n", Num(s, "/tiers/host/blocks"),
             Bytes(Num(s, "/tiers/host/bytes")));
  PrintDisk(s, "spill");
  PrintDisk(s, "bank");
  fmt::print(
      "fidelity  {:.2f} x smaller, {:.2f} bits an element, squared error {:.2e} of the energy\n",
      Num(s, "/fidelity/ratio"), Num(s, "/fidelity/bits_per_element"), Num(s, "/fidelity/nmse"));
  fmt::print("tiles     K: {}; V: {}\n", Tiles(s, "/fidelity/k_tiles"),
             Tiles(s, "/fidelity/v_tiles"));
  const double hits =
      Num(s, "/lookups/hits_host") + Num(s, "/lookups/hits_spill") + Num(s, "/lookups/hits_bank");
  const double asked = hits + Num(s, "/lookups/misses");
  fmt::print("lookups   {:.0f} blocks hit of {:.0f} ({:.0f} %), from disk {:.0f}\n", hits, asked,
             asked > 0 ? 100 * hits / asked : 0.0,
             Num(s, "/lookups/hits_spill") + Num(s, "/lookups/hits_bank"));
  fmt::print(
      "pressure  {:.0f} segments demoted, {:.0f} blocks spilled, {:.0f} loaded, {:.0f} evicted, "
      "{:.0f} retries\n",
      Num(s, "/pressure/demoted_segments"), Num(s, "/pressure/spilled_blocks"),
      Num(s, "/pressure/loaded_blocks"), Num(s, "/pressure/evicted_blocks"),
      Num(s, "/pressure/retries"));
  fmt::print("clients   {:.0f} connected ({:.0f} over UCX), {:.0f} leases, {:.0f} regions of {}\n",
             Num(s, "/clients/connected"), Num(s, "/clients/ucx"), Num(s, "/clients/leases"),
             Num(s, "/clients/regions"), Bytes(Num(s, "/clients/region_bytes")));
  if (s.contains("contexts"))
    for (const json& c : s["contexts"])
      fmt::print("context   {} {}: {:.0f} blocks, {:.2f} x smaller; {} bases of {:.0f} tokens{}\n",
                 Str(c, "/context"), Str(c, "/model"), Num(c, "/blocks"), Num(c, "/ratio"),
                 c.contains("bases") ? c["bases"].size() : 0, Num(c, "/learned_tokens"),
                 c.contains("profile") && c["profile"].is_boolean() && c["profile"].get<bool>()
                     ? ", with a profile"
                 : c.contains("omega_learned") && c["omega_learned"] == true
                     ? ", sensitivities of its traffic"
                     : "");
}

int RunStatus(const Globals& globals) {
  const auto client = ConnectClient(globals);
  if (!client.ok()) return Fail(globals, client.status());
  const auto stats = Ask(**client, wire::QueryKind::kStats);
  if (!stats.ok()) return Fail(globals, stats.status(), "status");
  if (globals.json)
    Print(*stats);
  else
    PrintStatus(*stats, (*client)->info().endpoint);
  return kDone;
}

struct TopArgs {
  double interval = 1;
  uint64_t count = 0;
};

int RunTop(const Globals& globals, const TopArgs& args) {
  auto client = ConnectClient(globals);
  if (!client.ok()) return Fail(globals, client.status());
  const bool screen = isatty(STDOUT_FILENO) == 1 && !globals.json;
  json before;
  for (uint64_t i = 0; args.count == 0 || i < args.count; ++i) {
    auto now = Ask(**client, wire::QueryKind::kStats);
    if (!now.ok()) return Fail(globals, now.status(), "top");
    auto rate = [&](const char* p) {
      return before.is_null() ? 0.0 : (Num(*now, p) - Num(before, p)) / args.interval;
    };
    if (globals.json) {
      fmt::print("{}\n", now->dump(-1, ' ', false, json::error_handler_t::replace));
    } else {
      if (screen)
        fmt::print("\033[H\033[2J");
      else if (i > 0)
        fmt::print("\n");
      PrintStatus(*now, (*client)->info().endpoint);
      fmt::print(
          "per s     put {} raw -> {} stored, fetched {}; lookups {:.0f} hit, {:.0f} missed; "
          "demoted {:.0f}, "
          "spilled {:.0f}, evicted {:.0f}, retries {:.0f}\n",
          Bytes(rate("/traffic/put_raw_bytes")), Bytes(rate("/traffic/put_encoded_bytes")),
          Bytes(rate("/traffic/fetch_raw_bytes")),
          rate("/lookups/hits_host") + rate("/lookups/hits_spill") + rate("/lookups/hits_bank"),
          rate("/lookups/misses"), rate("/pressure/demoted_segments"),
          rate("/pressure/spilled_blocks"), rate("/pressure/evicted_blocks"),
          rate("/pressure/retries"));
    }
    std::fflush(stdout);
    before = std::move(*now);
    if (args.count == 0 || i + 1 < args.count)
      std::this_thread::sleep_for(std::chrono::duration<double>(args.interval));
  }
  return kDone;
}

}  // namespace

Verb AddStatus(CLI::App& app, const Globals& globals) {
  return {app.add_subcommand("status", "what the daemon holds and how well"),
          [&globals] { return RunStatus(globals); }};
}

Verb AddTop(CLI::App& app, const Globals& globals) {
  auto args = std::make_shared<TopArgs>();
  CLI::App* verb = app.add_subcommand("top", "the same, again and again, with rates");
  verb->add_option("--interval", args->interval, "seconds")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  verb->add_option("--count", args->count, "stop after so many; 0: never");
  return {verb, [&globals, args] { return RunTop(globals, *args); }};
}

}  // namespace dyna::cli
