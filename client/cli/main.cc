// `dynacompress`: talks to the daemon from the command line. A verb that it does not know is a
// program of its own on the path: `dynacompress-VERB`.
#include <unistd.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>

#include "client/base/log.h"
#include "client/cli/cli.h"

namespace dyna::cli {
namespace {

constexpr const char* kFiles = R"(Files of put, get and bank export
  --context FILE  a model, in JSON:
      { "model": "SmolLM2-135M", "dtype": "f16",
        "ropes":  [ { "kind": "half", "rotary_dim": 64, "theta": 100000 } ],
        "layers": [ { "count": 30, "kv_heads": 3, "q_heads": 9, "head_dim": 64, "rope": 0,
                      "max_position": 8192 } ] }
    also: revision, adapter, attend, masks; of a rope: kind (none, half, interleaved), inv_freq;
    of layers: kind (full, sliding), window.
  K and V         raw values in dtype: [block][layer][kv_head][K, V][token 0..63][head_dim]
Exit codes: 0 done, 1 failed, 2 usage, 3 no daemon or not allowed, 4 not held)";

// Levenshtein, for "did you mean".
size_t Distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

// Only comes back when there is no such program.
int RunExternal(char** argv, const std::vector<Verb>& verbs) {
  const std::string verb = argv[1], program = "dynacompress-" + verb;
  execvp(program.c_str(), argv + 1);
  if (errno != ENOENT) {
    fmt::print(stderr, "dynacompress: {}: {}\n", program, std::strerror(errno));
    return kFailed;
  }
  std::string nearest = "status";
  for (const Verb& v : verbs)
    if (Distance(v.app->get_name(), verb) < Distance(nearest, verb)) nearest = v.app->get_name();
  fmt::print(stderr,
             "dynacompress: no verb '{}', and no program '{}' on the path. Did you mean '{}'? "
             "`dynacompress --help` lists them.\n",
             verb, program, nearest);
  return kUsage;
}

int Main(int argc, char** argv) {
  SetLogLevel(LogLevel::kWarn);
  CLI::App app("Compressed KV cache of this node: status, files in and out, benchmarks",
               "dynacompress");
  Globals globals;
  app.add_option("--socket", globals.endpoint,
                 "socket of the daemon: a path or HOST:PORT [DYNACOMPRESS_SOCKET, then " +
                     DefaultEndpoint() + "]");
  app.add_option("--bulk", globals.bulk, "how K and V travel")
      ->check(CLI::IsMember({"auto", "region", "ucx", "socket"}))
      ->capture_default_str();
  app.add_option("--deadline", globals.deadline_ms, "ms a call may take")->capture_default_str();
  app.add_flag("--json", globals.json, "print JSON, errors too");
  bool files = false;
  app.add_flag("--help-files", files, "describe the files of put and get");
  app.fallthrough();
  app.require_subcommand(0, 1);
  const std::vector<Verb> verbs = {
      AddStatus(app, globals),  AddTop(app, globals),  AddPut(app, globals),  AddGet(app, globals),
      AddInspect(app, globals), AddBank(app, globals), AddBench(app, globals)};
  if (argc > 1 && argv[1][0] != '-' && std::none_of(verbs.begin(), verbs.end(), [&](const Verb& v) {
        return v.app->get_name() == argv[1];
      }))
    return RunExternal(argv, verbs);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? kDone : kUsage;
  }
  if (files) {
    fmt::print("{}\n", kFiles);
    return kDone;
  }
  for (const Verb& v : verbs)
    if (v.app->parsed()) return v.run();
  fmt::print("{}", app.help());
  return kUsage;
}

}  // namespace
}  // namespace dyna::cli

int main(int argc, char** argv) { return dyna::cli::Main(argc, argv); }
