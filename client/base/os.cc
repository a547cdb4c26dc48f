#include "client/base/os.h"

#include <pthread.h>
#include <sys/random.h>

#include <cerrno>
#include <cstdlib>
#include <system_error>

namespace dyna {

void RandomBytes(std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t n = ::getrandom(out.data(), out.size(), 0);
    if (n < 0) {
      if (errno == EINTR) continue;
      std::abort();
    }
    out = out.subspan(static_cast<size_t>(n));
  }
}

uint64_t RandomU64() {
  uint64_t value = 0;
  RandomBytes(std::as_writable_bytes(std::span(&value, 1)));
  return value;
}

void SetThreadName(std::string_view name) {
  ::pthread_setname_np(::pthread_self(), std::string(name.substr(0, 15)).c_str());
}

Status ErrnoStatus(std::string_view what, int error, StatusCode code) {
  return {code, std::string(what) + ": " + std::generic_category().message(error)};
}

}  // namespace dyna
