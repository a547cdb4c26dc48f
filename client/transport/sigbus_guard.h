// Owns SIGBUS: a fault inside a guarded range is answered with zero pages and marks the range
// poisoned; any other fault goes to the handler that was there before (by default: a crash).
//
// InstallSigbusHandler() once from main, before other threads. Guards: any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "schemas/status.h"

namespace dyna {

inline constexpr size_t kMaxSigbusGuards = 4096;

Status InstallSigbusHandler();

// A registration of [begin, begin + size); size is a multiple of the page size.
class SigbusGuard {
 public:
  SigbusGuard() = default;
  SigbusGuard(std::byte* begin, size_t size);
  ~SigbusGuard() { Release(); }
  SigbusGuard(const SigbusGuard&) = delete;
  SigbusGuard& operator=(const SigbusGuard&) = delete;

  // False when all kMaxSigbusGuards slots are taken: the range is not protected.
  bool active() const { return slot_ >= 0; }
  bool poisoned() const;
  // REQUIRES no access to the range any more; before it is unmapped.
  void Release();

 private:
  int slot_ = -1;
};

}  // namespace dyna
