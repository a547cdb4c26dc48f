#include "daemon/tier/rocks/spill_pool.h"

#include <algorithm>
#include <string>

#include "client/base/os.h"

namespace dyna {

SpillPool::SpillPool(int threads, size_t capacity) : queue_(capacity) {
  for (int i = 0; i < std::max(threads, 1); ++i) {
    threads_.emplace_back([this, i] {
      SetThreadName("dyna-spill-" + std::to_string(i));
      while (auto job = queue_.Pop()) (*job)();
    });
  }
}

SpillPool::~SpillPool() {
  queue_.Close();
  for (std::thread& thread : threads_) thread.join();
}

}  // namespace dyna
