// The inputs of goldens.txt: inputs.py in C++, integers only. Pure functions.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>
#include <vector>

namespace dyna::golden {

// The i-th output (from 1) of splitmix64.
inline uint64_t SplitMix64(uint64_t seed, uint64_t i) {
  uint64_t z = seed + i * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// integer * 2^exponent as f16 bits; |integer| < 2048 and exponent >= -24 make it exact.
inline uint16_t ExactF16(int integer, int exponent) {
  if (integer == 0) return 0;
  const uint32_t sign = integer < 0 ? 0x8000u : 0u;
  const uint32_t magnitude = static_cast<uint32_t>(integer < 0 ? -integer : integer);
  const int top = std::bit_width(magnitude) - 1 + exponent;  // the leading bit's power of two
  if (top < -14) return static_cast<uint16_t>(sign | magnitude << (exponent + 24));
  const uint32_t mantissa = (magnitude << (10 - (std::bit_width(magnitude) - 1))) & 0x3FFu;
  return static_cast<uint16_t>(sign | static_cast<uint32_t>(top + 15) << 10 | mantissa);
}

// Number of a distribution, -1 for an unknown name.
inline int InputKind(std::string_view name) {
  constexpr std::string_view kNames[] = {"decay",     "outlier", "constant", "zero_rows",
                                         "subnormal", "ties",    "peaky",    "any"};
  for (int i = 0; i < 8; ++i)
    if (kNames[i] == name) return i;
  return -1;
}

inline uint16_t InputValue(int kind, uint64_t r, int t, int c, int d) {
  const auto field = [r](int shift, int bits) {
    return static_cast<int>(r >> shift & ((uint64_t{1} << bits) - 1));
  };
  const int bell = field(0, 10) + field(10, 10) + field(20, 10) + field(30, 10) - 2046;
  switch (kind) {
    case 0:
      return ExactF16(bell, -10 - 10 * c / d);
    case 1:
      return ExactF16(bell, field(40, 6) == 0 ? -5 : -10);
    case 2: {
      int i = c % 3 == 0 ? bell : (c * 37) % 2048;
      if (c % 3 == 2 && t == 17) i += i == 2047 ? -1 : 1;
      const uint16_t sign = c % 12 == 7 ? 0x8000 : 0;
      return static_cast<uint16_t>(ExactF16(i, -10) | sign);
    }
    case 3:
      return static_cast<uint16_t>(ExactF16(t % 3 == 0 ? 0 : 1024 + field(0, 10), -10) |
                                   field(50, 1) << 15);
    case 4:
      return ExactF16(field(0, 8) - 128, -24);
    case 5: {
      const int top = c % 2 == 0 ? 30 : 510;
      const int i = static_cast<int>((r & 0xFFFFFFFFu) % static_cast<uint32_t>(top + 1));
      return ExactF16(t == 5 ? 0 : t == 9 ? top : i, -1);
    }
    case 6:
      return ExactF16(field(40, 6) == 0 ? bell : field(0, 3) - 4, -8);
    default: {
      const int bits = field(0, 16);
      return static_cast<uint16_t>((bits & 0x7000) == 0x7000 ? bits ^ 0x4000 : bits);
    }
  }
}

// f16 bits [64][d]; REQUIRES a known name.
inline std::vector<uint16_t> MakeInput(std::string_view name, uint64_t seed, int d) {
  const int kind = InputKind(name);
  std::vector<uint16_t> out(static_cast<size_t>(64 * d));
  const uint64_t stream =
      seed * 1000003u + static_cast<uint64_t>(kind) * 7919u + static_cast<uint64_t>(d);
  for (int t = 0; t < 64; ++t)
    for (int c = 0; c < d; ++c) {
      const auto at = static_cast<uint64_t>(t * d + c);
      out[at] = InputValue(kind, SplitMix64(stream, at + 1), t, c, d);
    }
  return out;
}

}  // namespace dyna::golden
