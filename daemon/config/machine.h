// Defaults that fit the machine: fills in what an operator left at 0 or "".
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "daemon/config/options.h"

namespace dyna::config {

struct Machine {
  uint64_t memory_bytes = 0;  // what this process may use: physical, or its cgroup's limit
  uint32_t cores = 1;         // that it may run on
  uint32_t uid = 0;
  // Of the environment, "" where unset; the last two are systemd's.
  std::string home, xdg_state_home, xdg_runtime_dir, state_directory, runtime_directory;
  std::function<uint64_t(const std::string& path)> disk_free;  // of the nearest existing folder
};
// Its disks are asked once each: what a reload resolves is what the start did.
Machine ThisMachine();

// Absolute paths, byte counts and threads: nothing is 0 or "" that means "fits the machine".
Options Resolve(Options options, const Machine& machine);

}  // namespace dyna::config
