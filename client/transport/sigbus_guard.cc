#include "client/transport/sigbus_guard.h"

#include <signal.h>
#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <mutex>

#include "client/base/os.h"

namespace dyna {
namespace {

// Read by the handler without a lock: a slot is claimed by `end` and published by `begin`.
struct Slot {
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> poisoned{false};
};
Slot slots[kMaxSigbusGuards];
std::atomic<size_t> slots_used{0};  // high-water mark: bounds the handler's scan
std::mutex slots_mutex;

struct sigaction previous;
std::atomic<bool> installed{false};

Slot* Find(uintptr_t address) {
  const size_t n = slots_used.load(std::memory_order_acquire);
  for (size_t i = 0; i < n; ++i) {
    const uintptr_t begin = slots[i].begin.load(std::memory_order_acquire);
    if (begin != 0 && address >= begin && address < slots[i].end.load(std::memory_order_relaxed))
      return &slots[i];
  }
  return nullptr;
}

// Only calls that are a plain system call: mmap, sigaction.
void Handler(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  if (Slot* slot = Find(address)) {
    slot->poisoned.store(true, std::memory_order_release);
    const uintptr_t begin = slot->begin.load(std::memory_order_relaxed);
    // All of it, so that a region costs one fault and not one a page.
    void* zeros = ::mmap(reinterpret_cast<void*>(begin),
                         slot->end.load(std::memory_order_relaxed) - begin, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (zeros != MAP_FAILED) {
      errno = saved_errno;
      return;
    }
  }
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
  } else {
    ::signal(SIGBUS, SIG_DFL);  // returning repeats the access, which now ends the process
  }
  errno = saved_errno;
}

}  // namespace

Status InstallSigbusHandler() {
  std::lock_guard lock(slots_mutex);
  if (installed) return Status::Ok();
  struct sigaction action {};
  action.sa_sigaction = &Handler;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  if (::sigaction(SIGBUS, &action, &previous) != 0) return ErrnoStatus("SIGBUS handler", errno);
  installed = true;
  return Status::Ok();
}

SigbusGuard::SigbusGuard(std::byte* begin, size_t size) {
  std::lock_guard lock(slots_mutex);
  for (size_t i = 0; i < kMaxSigbusGuards; ++i) {
    if (slots[i].begin.load(std::memory_order_relaxed) != 0) continue;
    const auto address = reinterpret_cast<uintptr_t>(begin);
    slots[i].poisoned.store(false, std::memory_order_relaxed);
    slots[i].end.store(address + size, std::memory_order_relaxed);
    slots[i].begin.store(address, std::memory_order_release);
    if (i >= slots_used.load(std::memory_order_relaxed))
      slots_used.store(i + 1, std::memory_order_release);
    slot_ = static_cast<int>(i);
    return;
  }
}

bool SigbusGuard::poisoned() const {
  return slot_ >= 0 && slots[slot_].poisoned.load(std::memory_order_acquire);
}

void SigbusGuard::Release() {
  if (slot_ < 0) return;
  std::lock_guard lock(slots_mutex);
  slots[slot_].begin.store(0, std::memory_order_release);
  slot_ = -1;
}

}  // namespace dyna
