// The inner loops of the CPU backend: one table of functions per instruction set, over ONE tile.
// Everything above it (segments, plans, pins, measures, jobs) is written once, in cpu_*.cc.
//
// Working form of a tile: f32 planes[d][64], channel-major, lane = row (a token, or after packing
// the r-th live token), 64-byte aligned. The functions keep no state and allocate nothing.
//
// What must be bit-exact (formats 2) is marked EXACT: the same bytes as the scalar table from equal
// planes, including the order of every sum (pairwise trees over position: add lane i + 32 to lane
// i, then 16, 8, 4, 2, 1; excluded rows count as +0) and IEEE division. The others are held to
// 2^-10 of their row's rms. `rows` is a mask over lanes: the rows that count (live and unpinned).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/rope.h"
#include "schemas/types.h"

namespace dyna {

inline constexpr int kLanes = kBlockTokens;

// What a quantiser answers besides bytes.
enum class QuantiseResult : int {
  kOk = 0,
  kNotF16 = 1,     // a value, scale or offset is outside f16 (or not finite): the put is INVALID
  kAboveLog8 = 2,  // a scale is above the top of LOG8: the tile stays plain8 (formats 2)
};

// Sums over the rows that count, f32, any order: for measuring only, never part of a tile.
struct ErrorSums {
  float error = 0;   // squared difference of decoded and given (f16-rounded) values
  float energy = 0;  // K: squared difference from the channel's mean; V: sum of z^2
};

struct TileOps {
  std::string_view name;  // "scalar", "AVX2", ...

  // 64 rows of d elements of `dtype` (f32, f16, bf16) at `src + t * stride` -> planes. Returns the
  // first token with a non-finite element, or -1. Reads each element once. src needs no alignment
  // beyond the element's own, and must not be trusted to stay constant.
  int (*load)(const std::byte* src, int64_t stride, DType dtype, int d, float* planes);
  // The inverse, rounding to nearest even (f32, f16, bf16; too large becomes infinity).
  void (*store)(const float* planes, int d, std::byte* dst, int64_t stride, DType dtype);

  // Turns the pairs of `rope` by +angle, or by -angle (undo). kNone: nothing.
  void (*rotate)(float* planes, const RopeBlock& rope, bool undo);
  // planes[c] += sign * value[c] for c < d.
  void (*shift)(float* planes, int d, const float* value, float sign);
  // y[o] = bias[o] + sum over i < in of m[o * ld + i] x[i], for o < out. bias may be null (0).
  // out and in are multiples of 4; x and y do not overlap. The hot loop: A, B, queries, probes.
  void (*transform)(const float* m, int ld, int out, int in, const float* bias, const float* x,
                    float* y);
  // y[o] = bias[o] + sum over i < in of m[o * ld + i] x[i]: one vector (means of dead channels).
  void (*matvec)(const float* m, int ld, int out, int in, const float* bias, const float* x,
                 float* y);
  // Orthonormal Walsh-Hadamard over d, natural order, block-diagonal with the largest power of two
  // that divides d; in place; its own inverse.
  void (*hadamard)(float* planes, int d);

  // mean[c] over `rows`: pairwise tree, then IEEE division by their number; 0 for no rows. EXACT.
  void (*mean)(const float* planes, int d, uint64_t rows, float* mean);
  // Sum over channels and `rows` of (x - mean)^2 (mean null: of x^2).
  float (*energy)(const float* planes, int d, uint64_t rows, const float* mean);

  // Quantises `channels` planes (a run, or several runs of one width; a multiple of 8) at width 0,
  // 2, 4 or 8. First rounds y to f16. Writes m[channels] (f16), scales (LOG8 bytes for 2, f16 for
  // 4 and 8, none for 0) and the codes of planes as formats 3 cuts a run of `run` channels; adds
  // to *sums. codes of rows that do not count are 0. EXACT in m, scales, codes.
  QuantiseResult (*quantise_k)(const float* y, int channels, int run, int width, uint64_t rows,
                               uint16_t* m, std::byte* scales, std::byte* codes, ErrorSums* sums);
  // y' (rounded to f16, as f32) in every lane; a row that did not count gets m. EXACT.
  void (*dequantise_k)(const uint16_t* m, const std::byte* scales, const std::byte* codes,
                       int channels, int run, int width, float* y);

  // Quantises z (rotated planes; first rounds to f16) at 1, 2, 4 or 8 bits. Writes 64 gains (u8;
  // f16 for 8 bits), the codes of formats 4, v_exp; adds to *sums. EXACT.
  QuantiseResult (*quantise_v)(const float* z, int d, int bits, uint64_t rows, std::byte* gains,
                               std::byte* codes, int8_t* v_exp, ErrorSums* sums);
  // z' (rounded to f16, as f32) in every lane. A row that did not count has gain 0: +-0. EXACT.
  void (*dequantise_v)(const std::byte* gains, const std::byte* codes, int d, int bits,
                       int8_t v_exp, float* z);

  // upper[k] += sum over lanes of x[i] x[j] for i <= j, row after row of the upper triangle. Lanes
  // that do not count hold 0.
  void (*rank64)(const float* planes, int d, float* upper);

  // Attention of one query to the lanes [begin, end) of a tile: scores[64] are logits.
  // *max, *sum: running maximum and sum of exp(score - *max).
  void (*softmax_reduce)(const float* scores, int begin, int end, float* max, float* sum);
  // weight[t] = max(weight[t], exp(scores[t] - lse)) for t in [begin, end).
  void (*softmax_max)(const float* scores, int begin, int end, float lse, float* weight);
};

const TileOps& ScalarTileOps();

}  // namespace dyna
