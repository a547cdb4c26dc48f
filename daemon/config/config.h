// TOML text to Options and back. The one door to a configuration: everything is checked before
// anything is used, and every problem is reported, not the first alone. Pure functions; any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "daemon/config/options.h"
#include "schemas/status.h"

namespace dyna::config {

inline constexpr size_t kMaxConfigBytes = 1 << 20;

// `source` is the file's name for messages: "/etc/x.toml:12: unknown key arena.byts; did you mean
// arena.bytes?", one a line.
Result<Options> Parse(std::string_view toml, std::string_view source);
Result<Options> Load(const std::string& path);

// One key from the command line: Set(options, "arena.bytes", "4 GiB"). Call Validate afterwards.
Status Set(Options& options, std::string_view key, std::string_view value);

// What no single key can say: addresses, names, keys that contradict each other.
Status Validate(const Options& options);

// A whole file with the help of each key as its comment. Parse(Print(x)) == x.
std::string Print(const Options& options);

struct Change {
  std::string key;
  std::string from, to;
  bool applied = false;  // false: it needs a restart
};
// SIGHUP: `running` with what may change while it runs taken from `loaded`.
Options Reload(const Options& running, const Options& loaded, std::vector<Change>& changes);

}  // namespace dyna::config
