#include "daemon/config/machine.h"

#include <sched.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>

#include "schemas/types.h"

namespace dyna::config {
namespace {

constexpr uint64_t kSpillBytes = 20'000'000'000;  // design 9
constexpr uint64_t kMinArenaBytes = 64ull << 20;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

uint64_t MemoryBytes() {
  uint64_t bytes =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    uint64_t limit = 0;
    if (std::ifstream file(path); file >> limit)
      bytes = std::min(bytes, limit);  // "max": no number
  }
  return bytes;
}

uint32_t Cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return static_cast<uint32_t>(std::max(1, CPU_COUNT(&set)));
}

uint64_t DiskFree(const std::string& path) {
  struct statvfs info {};
  for (std::string folder = path; !folder.empty();) {
    if (statvfs(folder.c_str(), &info) == 0)
      return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
    const size_t slash = folder.rfind('/');
    if (slash == folder.npos) break;
    folder = slash == 0 && folder.size() > 1 ? "/" : folder.substr(0, slash);
  }
  return 0;
}

std::string StateDir(const Machine& m) {
  if (!m.state_directory.empty()) return m.state_directory;
  if (m.uid == 0) return "/var/lib/dynacompress";
  if (!m.xdg_state_home.empty()) return m.xdg_state_home + "/dynacompress";
  return m.home + "/.local/state/dynacompress";
}

std::string Socket(const Machine& m) {
  if (!m.runtime_directory.empty()) return m.runtime_directory + "/dynacompress.sock";
  if (m.uid == 0) return "/run/dynacompress/dynacompress.sock";
  if (!m.xdg_runtime_dir.empty()) return m.xdg_runtime_dir + "/dynacompress.sock";
  return "/tmp/dynacompress-" + std::to_string(m.uid) + "/dynacompress.sock";
}

uint64_t DiskShare(const Machine& m, const std::string& dir) {
  return std::min(kSpillBytes, m.disk_free ? m.disk_free(dir) / 10 : kSpillBytes);
}

}  // namespace

Machine ThisMachine() {
  Machine m;
  m.memory_bytes = MemoryBytes();
  m.cores = Cores();
  m.uid = geteuid();
  m.home = Environment("HOME");
  m.xdg_state_home = Environment("XDG_STATE_HOME");
  m.xdg_runtime_dir = Environment("XDG_RUNTIME_DIR");
  m.state_directory = Environment("STATE_DIRECTORY");
  m.runtime_directory = Environment("RUNTIME_DIRECTORY");
  m.disk_free = [known =
                     std::make_shared<std::map<std::string, uint64_t>>()](const std::string& path) {
    const auto [at, fresh] = known->try_emplace(path, 0);
    if (fresh) at->second = DiskFree(path);
    return at->second;
  };
  return m;
}

Options Resolve(Options o, const Machine& m) {
  if (o.server.socket.empty()) o.server.socket = Socket(m);
  if (o.server.state_dir.empty()) o.server.state_dir = StateDir(m);
  if (o.server.codec_threads == 0) o.server.codec_threads = m.cores;
  if (o.server.uids.empty()) {
    o.server.uids = {0};
    if (m.uid != 0) o.server.uids.push_back(m.uid);
  }
  if (o.arena.bytes == 0) o.arena.bytes = std::max(m.memory_bytes / 4, kMinArenaBytes);
  o.arena.bytes = (o.arena.bytes + kArenaUnit - 1) / kArenaUnit * kArenaUnit;
  if (o.budget.bytes == 0 || o.budget.bytes > o.arena.bytes) o.budget.bytes = o.arena.bytes;
  if (o.spill.dir.empty()) o.spill.dir = o.server.state_dir + "/spill";
  if (o.bank.dir.empty()) o.bank.dir = o.server.state_dir + "/bank";
  if (o.spill.bytes == 0) o.spill.bytes = DiskShare(m, o.spill.dir);
  if (o.bank.bytes == 0) o.bank.bytes = DiskShare(m, o.bank.dir);
  return o;
}

}  // namespace dyna::config
