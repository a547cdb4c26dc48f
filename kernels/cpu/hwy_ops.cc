#include "kernels/cpu/hwy_ops.h"

// One pass of this file a target. SSE2 is only there because Highway needs a baseline: its pass
// compiles nothing.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/hwy_ops.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
#include "kernels/cpu/hwy_load_store-inl.h"
#include "kernels/cpu/hwy_moments-inl.h"
#include "kernels/cpu/hwy_quantise_k-inl.h"
#include "kernels/cpu/hwy_quantise_v-inl.h"
#include "kernels/cpu/hwy_transform-inl.h"

HWY_BEFORE_NAMESPACE();
namespace dyna::HWY_NAMESPACE {

const TileOps& Table() {
  static constexpr TileOps kOps = {
      .name = HWY_TARGET == HWY_AVX2 ? "AVX2" : "AVX-512",
      .load = LoadTile,
      .store = StoreTile,
      .rotate = Rotate,
      .shift = Shift,
      .transform = Transform,
      .matvec = Matvec,
      .hadamard = Hadamard,
      .mean = Mean,
      .energy = Energy,
      .quantise_k = QuantiseK,
      .dequantise_k = DequantiseK,
      .quantise_v = QuantiseV,
      .dequantise_v = DequantiseV,
      .rank64 = Rank64,
      .softmax_reduce = SoftmaxReduce,
      .softmax_max = SoftmaxMax,
  };
  return kOps;
}

}  // namespace dyna::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace dyna {

const TileOps* HwyAvx2TileOps() {
#if HWY_TARGETS & HWY_AVX2
  if ((hwy::SupportedTargets() & HWY_AVX2) != 0) return &N_AVX2::Table();
#endif
  return nullptr;
}

const TileOps* HwyAvx512TileOps() {
#if HWY_TARGETS & HWY_AVX3
  if ((hwy::SupportedTargets() & HWY_AVX3) != 0) return &N_AVX3::Table();
#endif
  return nullptr;
}

}  // namespace dyna
#endif
