// What the fuzz targets share: a check that stops the target, and the small model their inputs are
// of. libFuzzer runs one input at a time on one thread.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "kernels/basis.h"
#include "schemas/context.h"
#include "schemas/types.h"

// True in every build; the message is the condition.
#define DYNA_FUZZ_CHECK(condition)                                                   \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                  \
    }                                                                                \
  } while (0)

namespace dyna::fuzz {

inline constexpr Fingerprint kModel = 7;
inline constexpr int kHeads = 2, kDim = 16;

// A copy of exactly the input's size on the heap: one byte beyond it is an ASan report.
inline std::vector<std::byte> Copy(const uint8_t* data, size_t size) {
  std::vector<std::byte> copy(size);
  if (size > 0) std::memcpy(copy.data(), data, size);
  return copy;
}

// Two layers of two heads of 16 channels: the smallest shape with everything in it.
inline ContextSpec Spec() {
  ContextSpec spec;
  spec.model = "fuzz";
  spec.dtype = DType::kF16;
  Rope rope{RopeKind::kHalf, kDim, {}};
  for (int i = 0; i < kDim / 2; ++i)
    rope.inv_freq.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / kDim)));
  spec.ropes = {rope};
  LayerShape shape;
  shape.kv_heads = kHeads;
  shape.q_heads = kHeads;
  shape.head_dim = kDim;
  shape.max_position = 8192;
  spec.layers.assign(2, shape);
  return spec;
}

// Identity coordinates whose variances fall: every level of the ladder differs.
inline std::shared_ptr<const Basis> MakeBasis(uint16_t layer = 0) {
  BasisInfo info;
  info.fingerprint = kModel;
  info.layer = layer;
  info.kv_heads = kHeads;
  info.head_dim = kDim;
  info.run = static_cast<uint8_t>(DefaultRun(kDim));
  BasisHeadParts head;
  head.mu.assign(kDim, 0.25);
  head.a.assign(size_t{kDim} * kDim, 0);
  for (size_t c = 0; c < kDim; ++c) {
    head.a[c * kDim + c] = 1;
    head.variances.push_back(std::pow(0.7, static_cast<double>(c)));
  }
  head.b = head.a;
  const std::vector<BasisHeadParts> heads(kHeads, head);
  auto basis = Basis::Build(info, heads);
  DYNA_FUZZ_CHECK(basis.ok());
  return *basis;
}

}  // namespace dyna::fuzz
