#include "client/transport/ucx_loader.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "client/base/scoped_env.h"

namespace dyna {
namespace {

constexpr char kName[] = "dyna_ucx.so";

std::vector<std::string> Places() {
  if (const char* path = std::getenv("DYNA_UCX_MODULE")) return {path};
  std::vector<std::string> places;
  const auto add = [&places](const std::string& file) {
    const size_t slash = file.rfind('/');
    if (slash == std::string::npos) return;
    for (const auto* from : {"/", "/../lib/", "/../lib/dynacompress/"})
      places.push_back(file.substr(0, slash) + from + kName);
  };
  // A shared library (the Python module) knows its own path; a program is only called argv[0].
  Dl_info info;
  if (::dladdr(reinterpret_cast<void*>(&LoadUcx), &info) && info.dli_fname) add(info.dli_fname);
  char program[4096] = {};
  if (::readlink("/proc/self/exe", program, sizeof program - 1) > 0) add(program);
  places.push_back(kName);
  return places;
}

Result<UcxModule> Load() {
  // Read by UCX's constructors: its signal handlers would hide a crash of the engine, its memory
  // hooks and its VFS thread are not ours to add to somebody's process.
  const ScopedEnv env({{"UCX_ERROR_SIGNALS", ""},
                       {"UCX_HANDLE_ERRORS", "none"},
                       {"UCX_MEM_MMAP_HOOK_MODE", "none"},
                       {"UCX_MEM_EVENTS", "n"},
                       {"UCX_VFS_ENABLE", "n"},
                       {"UCX_WARN_UNUSED_ENV_VARS", "n"}});
  std::string why;
  for (const std::string& place : Places()) {
    if (void* handle = ::dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL)) {
      if (void* symbol = ::dlsym(handle, kUcxCreateSymbol))
        return UcxModule{reinterpret_cast<UcxCreateFunction>(symbol)};
    }
    if (const char* error = ::dlerror()) why += std::string(why.empty() ? "" : "; ") + error;
  }
  return Unsupported("UCX is not available: " + why);
}

}  // namespace

Result<UcxModule> LoadUcx() {
  static std::mutex mutex;
  static UcxModule loaded;
  std::lock_guard lock(mutex);
  if (loaded.create == nullptr) {
    DYNA_ASSIGN_OR_RETURN(loaded, Load());
  }
  return loaded;
}

}  // namespace dyna
