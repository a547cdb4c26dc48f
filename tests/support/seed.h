// The seed of a randomised test: DYNA_TEST_SEED repeats one, else it is another each time. Printed.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace dyna::testing {

inline uint64_t TestSeed() {
  const char* given = std::getenv("DYNA_TEST_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
  std::printf("DYNA_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

}  // namespace dyna::testing
