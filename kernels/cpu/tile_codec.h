// One tile between its planes and its bytes, every kind: written once over the table of inner
// loops. Planes of a tile are in token order (lane = token) unless a name says rows.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/basis.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile_ops.h"
#include "kernels/segment.h"

namespace dyna::cpu {

// What coding of one kv head's tiles depends on besides their bytes.
struct TileEnv {
  const TileOps& ops;
  Scratch& scratch;
  int d;
  int head = 0;                     // absolute: of the basis
  const Basis* basis = nullptr;     // REQUIRED for levels
  const RopeBlock* rope = nullptr;  // null: nothing to undo (also with a `post` basis)
};

// Which packed rows count: live and not pinned.
uint64_t CountedRows(uint64_t live, uint64_t pins);
// Bits of `mask` at the places of `within`, closed up.
uint64_t Compress(uint64_t mask, uint64_t within);

// Lane of the r-th bit of `live` -> lane r; later lanes become 0. In place.
void PackLanes(float* planes, int d, uint64_t live);
// The inverse; lanes that are not live get `fill[c]`.
void UnpackLanes(float* planes, int d, uint64_t live, const float* fill);

struct TileError {
  float energy = 0, error = 0;  // see TileMeasure
};

// ---- encode: planes in `x` (token order) are consumed.
QuantiseResult EncodeK(const TileEnv& env, uint8_t k_kind, uint64_t live, uint64_t pins, float* x,
                       std::span<std::byte> out, TileError* error);
QuantiseResult EncodeV(const TileEnv& env, uint8_t v_kind, uint64_t live, uint64_t pins, float* x,
                       std::span<std::byte> out, int8_t* v_exp, TileError* error);

// ---- decode: planes in token order; dropped tokens get the mean of the tile's counted rows.
// Not for kNone. Pins are the caller's.
void DecodeK(const TileEnv& env, const TileView& tile, DType dtype, uint64_t pins, float* x);
void DecodeV(const TileEnv& env, const TileView& tile, DType dtype, uint64_t pins, float* x);

// ---- the coded domain, in rows: what demotion and the golden tests use.
// `widths` of a level (or of a plain kind); `packed` is the whole K tile.
QuantiseResult QuantiseRuns(const TileOps& ops, const float* y_rows, int d,
                            std::span<const uint8_t> widths, int run, uint64_t rows,
                            std::span<std::byte> packed, ErrorSums* sums);
// Channels [0, channels) only.
void DequantiseRuns(const TileOps& ops, std::span<const std::byte> packed, int d, int channels,
                    std::span<const uint8_t> widths, int run, float* y_rows);
// Widths of a coded K kind: plain8, plain4 or a level of env.basis.
std::span<const uint8_t> WidthsOf(const TileEnv& env, uint8_t k_kind, int* run);

// The bytes of a V tile's gains; its codes follow.
constexpr size_t GainBytes(int bits) { return bits == 8 ? 128 : 64; }

}  // namespace dyna::cpu
