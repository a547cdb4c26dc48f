// What the verbs of `dynacompress` share: options, exit codes, output. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "client/client.h"

namespace CLI {
class App;
}

namespace dyna::cli {

// Exit codes, part of the interface (scripts test them).
enum Exit : int {
  kDone = 0,
  kFailed = 1,    // the call was made and failed
  kUsage = 2,     // options or input files
  kNoDaemon = 3,  // nobody listens, or not allowed to connect
  kMissing = 4,   // not held
};

struct Globals {
  std::string endpoint;
  std::string bulk = "auto";
  uint32_t deadline_ms = 30'000;
  bool json = false;
};

// A verb: adds itself to the program; main runs `run` of the one that was given.
struct Verb {
  CLI::App* app = nullptr;
  std::function<int()> run;
};
Verb AddStatus(CLI::App& app, const Globals& globals);
Verb AddTop(CLI::App& app, const Globals& globals);
Verb AddPut(CLI::App& app, const Globals& globals);
Verb AddGet(CLI::App& app, const Globals& globals);
Verb AddInspect(CLI::App& app, const Globals& globals);
Verb AddBank(CLI::App& app, const Globals& globals);
Verb AddBench(CLI::App& app, const Globals& globals);

Result<std::unique_ptr<Client>> ConnectClient(const Globals& globals);

// Says on stderr what went wrong and what to do about it; answers the exit code.
int Fail(const Globals& globals, const Status& status, const std::string& doing = {});
Status BadUsage(std::string message);  // an INVALID that exits with kUsage

// The answer of a Query, parsed.
Result<nlohmann::json> Ask(Client& client, wire::QueryKind kind, Fingerprint context = 0,
                           std::vector<BlockHash> hashes = {}, uint32_t limit = 1024);
void Print(const nlohmann::json& json);

// "1.5 GiB", "812 B"
std::string Bytes(double n);
std::string Hex(const BlockHash& hash);
Result<BlockHash> ParseHash(const std::string& hex);
Result<Fingerprint> ParseContext(const std::string& hex);  // "" is 0: all

}  // namespace dyna::cli
