#include "client/base/fork_guard.h"

#include <pthread.h>

#include <atomic>

namespace dyna {
namespace {

std::atomic<uint64_t> generation{0};

void InChild() { generation.fetch_add(1, std::memory_order_relaxed); }

}  // namespace

uint64_t ForkGeneration() {
  static const int registered = ::pthread_atfork(nullptr, nullptr, &InChild);
  (void)registered;
  return generation.load(std::memory_order_relaxed);
}

Status ForkGuard::Check() const {
  if (!forked()) return Status::Ok();
  return Unsupported("this client was made before fork(); make a new one in the child");
}

}  // namespace dyna
