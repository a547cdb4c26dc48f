// Durations in powers of two from 10 us to 5 s: what latency metrics are made of. Plain values,
// one writer; copy it to read it elsewhere.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace dyna {

struct Histogram {
  static constexpr size_t kBounds = 20;
  std::array<uint64_t, kBounds + 1> counts{};  // the last one: above every bound
  double sum_seconds = 0;

  static constexpr double BoundSeconds(size_t i) {
    return 10e-6 * static_cast<double>(uint64_t{1} << i);
  }
  void Observe(double seconds) {
    size_t i = 0;
    while (i < kBounds && seconds > BoundSeconds(i)) ++i;
    ++counts[i];
    sum_seconds += seconds;
  }
};

}  // namespace dyna
