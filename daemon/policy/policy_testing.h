// What the policy's tests share: a small context, a basis with falling variances, a seed.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "daemon/policy/ladder_set.h"
#include "kernels/basis.h"
#include "schemas/context.h"

namespace dyna::testing {

// From DYNA_SEED, else fixed; printed, so that a failure can be run again.
inline std::mt19937_64 Dice(const char* what, uint64_t seed = 20261124) {
  if (const char* given = std::getenv("DYNA_SEED")) seed = std::strtoull(given, nullptr, 10);
  std::cout << what << ": DYNA_SEED=" << seed << "\n";
  return std::mt19937_64(seed);
}

inline Rope HalfRope(int rotary_dim, double base = 10000) {
  Rope rope{RopeKind::kHalf, static_cast<uint16_t>(rotary_dim), {}};
  for (int i = 0; i < rotary_dim / 2; ++i)
    rope.inv_freq.push_back(static_cast<float>(std::pow(base, -2.0 * i / rotary_dim)));
  return rope;
}

inline ContextSpec SmallSpec(int layers = 2, int kv_heads = 2, int head_dim = 64) {
  ContextSpec spec;
  spec.model = "test";
  spec.ropes.push_back(HalfRope(head_dim));
  LayerShape shape;
  shape.kv_heads = static_cast<uint16_t>(kv_heads);
  shape.q_heads = static_cast<uint16_t>(3 * kv_heads);
  shape.head_dim = static_cast<uint16_t>(head_dim);
  shape.max_position = 8192;
  spec.layers.assign(static_cast<size_t>(layers), shape);
  return spec;
}

// Identity coordinates with variances falling by `decay` a channel.
inline std::shared_ptr<const Basis> FallingBasis(int kv_heads, int head_dim, double decay = 0.85,
                                                 Fingerprint fingerprint = 7, int layer = 0) {
  BasisInfo info;
  info.fingerprint = fingerprint;
  info.layer = static_cast<uint16_t>(layer);
  info.kv_heads = static_cast<uint16_t>(kv_heads);
  info.head_dim = static_cast<uint16_t>(head_dim);
  info.run = static_cast<uint8_t>(DefaultRun(head_dim));
  const auto d = static_cast<size_t>(head_dim);
  BasisHeadParts head;
  head.mu.assign(d, 0);
  head.a.assign(d * d, 0);
  for (size_t c = 0; c < d; ++c) {
    head.a[c * d + c] = 1;
    head.variances.push_back(std::pow(decay, static_cast<double>(c)));
  }
  head.b = head.a;
  std::vector<BasisHeadParts> heads(static_cast<size_t>(kv_heads), head);
  auto basis = Basis::Build(info, heads);
  EXPECT_TRUE(basis.ok()) << basis.status().ToString();
  return basis.ok() ? *basis : nullptr;
}

}  // namespace dyna::testing
