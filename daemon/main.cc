// dynacompressd: reads the command line and the configuration, then runs the server.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <optional>
#include <string>

#include "client/base/log.h"
#include "daemon/config/config.h"
#include "daemon/config/machine.h"
#include "daemon/server/backend_choice.h"
#include "daemon/server/server.h"
#include "daemon/server/store_mapping.h"

#ifndef DYNA_VERSION
#define DYNA_VERSION "0.0.0"
#endif

namespace dyna {
namespace {

// Exit codes, as in sysexits.h: 78 is a configuration error, 75 a lost device (start it again:
// server.h), 1 anything else that stops a start.
constexpr int kExitConfig = 78;

struct Arguments {
  std::string config, socket, state_dir, arena, budget, backend, log_level;
  std::optional<int> admin_port;
  bool check = false, print = false;
};

Result<config::Options> OptionsFrom(const Arguments& a, const config::Machine& machine) {
  config::Options options;
  if (!a.config.empty()) {
    DYNA_ASSIGN_OR_RETURN(options, config::Load(a.config));
  }
  const std::pair<const char*, const std::string*> keys[] = {
      {"server.socket", &a.socket},   {"server.state_dir", &a.state_dir},
      {"arena.bytes", &a.arena},      {"budget.bytes", &a.budget},
      {"server.backend", &a.backend}, {"log.level", &a.log_level}};
  for (const auto& [key, value] : keys)
    if (!value->empty()) DYNA_RETURN_IF_ERROR(config::Set(options, key, *value));
  if (a.admin_port)
    DYNA_RETURN_IF_ERROR(config::Set(options, "admin.port", std::to_string(*a.admin_port)));
  DYNA_RETURN_IF_ERROR(config::Validate(options));
  DYNA_RETURN_IF_ERROR(CheckPolicy(options));
  DYNA_RETURN_IF_ERROR(CheckBackend(options));
  return config::Resolve(options, machine);
}

int Main(int argc, char** argv) {
  Arguments a;
  CLI::App app(
      "dynacompressd: keeps the KV caches of this node's inference workers compressed.\n"
      "Without a configuration file the defaults fit the machine.");
  app.set_version_flag("--version", DYNA_VERSION);
  app.add_option("-c,--config", a.config,
                 "TOML file (deploy/dynacompressd.toml documents every key)");
  app.add_option("--socket", a.socket, "control socket (server.socket)");
  app.add_option("--state-dir", a.state_dir, "where spill and bank live (server.state_dir)");
  app.add_option("--arena", a.arena, "memory for encoded blocks, e.g. 8GiB (arena.bytes)");
  app.add_option("--budget", a.budget, "bytes that blocks may hold of it (budget.bytes)");
  app.add_option("--backend", a.backend, "auto, cpu or cuda (server.backend)");
  app.add_option("--admin-port", a.admin_port,
                 "port of the admin page, 0: any free one (admin.port)");
  app.add_option("--log-level", a.log_level, "debug, info, warn or error (log.level)");
  app.add_flag("--check-config", a.check, "check the configuration and exit");
  app.add_flag("--print-config", a.print, "print the configuration as it would be used and exit");
  CLI11_PARSE(app, argc, argv);

  const config::Machine machine = config::ThisMachine();
  auto options = OptionsFrom(a, machine);
  if (!options.ok()) {
    fmt::print(stderr, "dynacompressd: {}\n", options.status().message());
    return kExitConfig;
  }
  if (a.print) fmt::print("{}", config::Print(*options));
  if (a.check) fmt::print(stderr, "dynacompressd: the configuration is valid\n");
  if (a.print || a.check) return 0;

  LogOptions log;
  if (auto level = ParseLogLevel(options->log.level); level.ok()) log.level = *level;
  if (auto format = ParseLogFormat(options->log.format); format.ok()) log.format = *format;
  log.file = options->log.file;
  if (const Status started = StartLog(log); !started.ok()) {
    fmt::print(stderr, "dynacompressd: {}\n", started.ToString());
    return 1;
  }
  std::function<Result<config::Options>()> reload;
  if (!a.config.empty()) reload = [a, machine] { return OptionsFrom(a, machine); };
  int code = 1;
  auto backend = ChooseBackend(*options);
  auto server = backend.ok() ? Server::Build(*options, std::move(*backend), std::move(reload))
                             : Result<std::unique_ptr<Server>>(backend.status());
  if (!server.ok()) {
    LogError("cannot start: {}", server.status().ToString());
  } else {
    code = (*server)->Run();
    server->reset();
  }
  StopLog();
  return code;
}

}  // namespace
}  // namespace dyna

int main(int argc, char** argv) { return dyna::Main(argc, argv); }
