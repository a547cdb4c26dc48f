// Where the store sends work that computes: threads in the daemon, the test's own hand in tests.
#pragma once

#include <cstddef>
#include <functional>

namespace dyna {

class CodecRunner {
 public:
  virtual ~CodecRunner() = default;
  // Runs `work` on some codec thread and destroys it there, then posts `done` to the loop; where
  // `bytes` (what it reads and writes) is small enough `work` may run inside this call. Work
  // touches only what it was given: never the store. What both closures share is dropped on the
  // loop.
  virtual void Run(size_t bytes, std::function<void()> work, std::function<void()> done) = 0;
};

}  // namespace dyna
