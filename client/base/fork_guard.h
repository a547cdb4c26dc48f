// Tells a forked child that what it inherited is dead: sockets and worker threads belong to the
// parent. Any thread.
#pragma once

#include <cstdint>

#include "schemas/status.h"

namespace dyna {

// Counts the forks between the first process and this one.
uint64_t ForkGeneration();

// Remembers in which process it was made.
class ForkGuard {
 public:
  ForkGuard() : generation_(ForkGeneration()) {}
  bool forked() const { return generation_ != ForkGeneration(); }
  // UNSUPPORTED in a child of the process that made it.
  Status Check() const;

 private:
  uint64_t generation_;
};

}  // namespace dyna
