// Logarithms in bytes: importance, energy, reuse and prices are counted in eighths of an octave,
// so that sums of them are exact integers and a histogram of them never drifts.
//
// Thread rule: pure functions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dyna {

inline constexpr int kEighths = 8;  // of an octave

// 8 log2(x) rounded to nearest; x <= 0 and NaN give the bottom. Saturates to -128..127.
inline int8_t Log2Byte(double x) {
  if (!(x > 0)) return -128;
  return static_cast<int8_t>(std::clamp(std::lround(kEighths * std::log2(x)), -128L, 127L));
}
inline double FromLog2Byte(int eighths) { return std::exp2(eighths / double{kEighths}); }

// A well mixed 64-bit hash of two words (splitmix64's finaliser): decisions by hash are the same
// on every run and on every machine.
constexpr uint64_t MixHash(uint64_t a, uint64_t b) {
  uint64_t x = a ^ (b * 0x9e3779b97f4a7c15u + 0x7f4a7c159e3779b9u);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace dyna
