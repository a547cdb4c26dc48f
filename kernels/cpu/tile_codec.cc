#include "kernels/cpu/tile_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/codec_math.h"

namespace dyna::cpu {
namespace {

constexpr int kPlainRun = 16;

constexpr std::array<uint8_t, kMaxHeadDim / kPlainRun> Filled(uint8_t width) {
  std::array<uint8_t, kMaxHeadDim / kPlainRun> widths{};
  widths.fill(width);
  return widths;
}
constexpr auto kEights = Filled(8), kFours = Filled(4);

// Groups neighbouring runs of one width, and walks a K tile's lists beside them.
struct RunCursor {
  RunCursor(int head_dim, std::span<const uint8_t> all, int run_channels)
      : widths(all), run(run_channels) {
    size_t scales = 0;
    for (const uint8_t w : widths) scales += ScaleBytes(w, 1);
    scale_at = 2 * static_cast<size_t>(head_dim);
    code_at = scale_at + (scales + 15) / 16 * 16;
    padding_at = scale_at + scales;
  }
  size_t ScaleBytes(int w, int runs) const {
    return static_cast<size_t>(w == 0 ? 0 : (w == 2 ? 1 : 2) * run * runs);
  }
  // The next group, of at most `limit` channels in all. False at the end.
  bool Next(int limit) {
    scale_at += ScaleBytes(width, channels / run);
    code_at += static_cast<size_t>(8 * channels * width);
    first += channels;
    if (first >= limit) return false;
    const size_t at = static_cast<size_t>(first / run);
    width = widths[at];
    size_t end = at + 1;
    while (end < widths.size() && widths[end] == width) ++end;
    channels = std::min(static_cast<int>(end) * run, limit) - first;
    return true;
  }
  std::span<const uint8_t> widths;
  int run;
  int first = 0, channels = 0, width = 0;
  size_t scale_at = 0, code_at = 0, padding_at = 0;
};

QuantiseResult EncodeFp8(const TileEnv& env, uint64_t rows, const float* x_rows,
                         std::span<std::byte> out, TileError* error) {
  float amax = 0;
  for (int c = 0; c < env.d; ++c)
    for (int r = 0; r < kLanes; ++r)
      if ((rows >> r & 1) != 0) amax = std::max(amax, std::abs(x_rows[c * kLanes + r]));
  const float scale = codec::Fp8Scale(amax);
  std::memset(out.data(), 0, out.size());
  std::memcpy(out.data(), &scale, sizeof scale);
  for (int r = 0; r < kLanes; ++r) {
    if ((rows >> r & 1) == 0) continue;
    for (int c = 0; c < env.d; ++c) {
      const float x = x_rows[c * kLanes + r];
      const uint8_t code = codec::F32ToE4m3(x / scale);
      out[static_cast<size_t>(16 + r * env.d + c)] = static_cast<std::byte>(code);
      const float e = x - codec::E4m3ToF32(code) * scale;
      error->error += e * e;
    }
  }
  return QuantiseResult::kOk;
}

void DecodeFp8(int d, std::span<const std::byte> bytes, float* x_rows) {
  float scale;
  std::memcpy(&scale, bytes.data(), sizeof scale);
  const std::byte* code = bytes.data() + 16;
  for (int r = 0; r < kLanes; ++r)
    for (int c = 0; c < d; ++c)
      x_rows[c * kLanes + r] = scale * codec::E4m3ToF32(static_cast<uint8_t>(*code++));
}

QuantiseResult PutMeans(const float* mean, int n, std::byte* out) {
  for (int c = 0; c < n; ++c) {
    const uint16_t m = codec::MeanOffset(mean[c]);
    if (!codec::IsFiniteBits(codec::F16ToF32(m))) return QuantiseResult::kNotF16;
    std::memcpy(out + 2 * c, &m, 2);
  }
  return QuantiseResult::kOk;
}

QuantiseResult EncodeLevel(const TileEnv& env, int level, uint64_t live, uint64_t rows, float* x,
                           std::span<std::byte> out, TileError* error) {
  const TileOps& ops = env.ops;
  const Basis& basis = *env.basis;
  const int d = env.d, kept = basis.live_channels(env.head, level);
  float* mean = env.scratch.mean;
  float* y = env.scratch.y;
  if (env.rope != nullptr && basis.info().frame == Frame::kPre) ops.rotate(x, *env.rope, true);
  ops.shift(x, d, basis.mu(env.head), -1.0f);
  PackLanes(x, d, live);
  ops.mean(x, d, rows, mean);
  error->energy = ops.energy(x, d, rows, mean);
  ErrorSums sums;
  if (kept > 0) {
    ops.transform(basis.a(env.head), d, kept, d, nullptr, x, y);
    const QuantiseResult result = QuantiseRuns(ops, y, kept, basis.widths(env.head, level),
                                               basis.info().run, rows, out, &sums);
    if (result != QuantiseResult::kOk) return result;
  }
  if (kept < d) {
    // Channels without codes: their means go through A with the mean of x, and what they lose is
    // estimated by projections of the tile (Basis::probes).
    float* dead = env.scratch.bias;
    ops.matvec(basis.a(env.head) + kept * d, d, d - kept, d, nullptr, mean, dead);
    const QuantiseResult result = PutMeans(dead, d - kept, out.data() + 2 * kept);
    if (result != QuantiseResult::kOk) return result;
    float probe_mean[Basis::kProbes];
    ops.transform(basis.probes(env.head, level), d, Basis::kProbes, d, nullptr, x, y);
    ops.mean(y, Basis::kProbes, rows, probe_mean);
    const float lost = ops.energy(y, Basis::kProbes, rows, probe_mean);
    sums.error += lost;
    sums.energy += lost;
  }
  error->error = sums.energy > 0 ? error->energy * (sums.error / sums.energy) : 0.0f;
  return QuantiseResult::kOk;
}

void DecodeLevel(const TileEnv& env, int level, const TileView& tile, uint64_t rows, float* x) {
  const TileOps& ops = env.ops;
  const Basis& basis = *env.basis;
  const int d = env.d, kept = basis.live_channels(env.head, level);
  float* y = env.scratch.y;
  float* bias = env.scratch.bias;
  float dead[kMaxHeadDim];
  for (int c = kept; c < d; ++c) {
    uint16_t m;
    std::memcpy(&m, tile.k.data() + 2 * c, 2);
    dead[c - kept] = codec::F16ToF32(m);
  }
  ops.matvec(basis.b(env.head) + kept, d, d, d - kept, basis.mu(env.head), dead, bias);
  if (kept > 0) {
    DequantiseRuns(ops, tile.k, d, kept, basis.widths(env.head, level), basis.info().run, y);
    ops.mean(y, kept, rows, env.scratch.mean);
    UnpackLanes(y, kept, tile.live, env.scratch.mean);
  }
  ops.transform(basis.b(env.head), d, d, kept, bias, y, x);
  if (env.rope != nullptr && basis.info().frame == Frame::kPre) ops.rotate(x, *env.rope, false);
}

// Rows of a tile that is not in a basis -> tokens.
void FinishRows(const TileEnv& env, uint64_t live, uint64_t rows, float* x) {
  if (live == ~uint64_t{0}) return;
  env.ops.mean(x, env.d, rows, env.scratch.mean);
  UnpackLanes(x, env.d, live, env.scratch.mean);
}

void LoadRows(const TileEnv& env, std::span<const std::byte> bytes, DType dtype, float* x) {
  env.ops.load(bytes.data(), env.d * DTypeBytes(dtype), dtype, env.d, x);
}

}  // namespace

uint64_t Compress(uint64_t mask, uint64_t within) {
  if (within == ~uint64_t{0}) return mask;
  uint64_t out = 0;
  for (int r = 0; within != 0; within &= within - 1, ++r)
    out |= (mask >> std::countr_zero(within) & 1) << r;
  return out;
}

uint64_t CountedRows(uint64_t live, uint64_t pins) { return Compress(live & ~pins, live); }

void PackLanes(float* planes, int d, uint64_t live) {
  if (live == ~uint64_t{0}) return;
  for (int c = 0; c < d; ++c) {
    float* x = planes + c * kLanes;
    int r = 0;
    for (uint64_t left = live; left != 0; left &= left - 1) x[r++] = x[std::countr_zero(left)];
    std::fill(x + r, x + kLanes, 0.0f);
  }
}

void UnpackLanes(float* planes, int d, uint64_t live, const float* fill) {
  if (live == ~uint64_t{0}) return;
  for (int c = 0; c < d; ++c) {
    float* x = planes + c * kLanes;
    int r = std::popcount(live);
    for (int t = kLanes - 1; t >= 0; --t) x[t] = (live >> t & 1) != 0 ? x[--r] : fill[c];
  }
}

std::span<const uint8_t> WidthsOf(const TileEnv& env, uint8_t k_kind, int* run) {
  *run = kPlainRun;
  const size_t runs = static_cast<size_t>(env.d / kPlainRun);
  if (k_kind == kind::kPlain8) return std::span(kEights).first(runs);
  if (k_kind == kind::kPlain4) return std::span(kFours).first(runs);
  *run = env.basis->info().run;
  return env.basis->widths(env.head, k_kind - kind::kLevel0);
}

QuantiseResult QuantiseRuns(const TileOps& ops, const float* y_rows, int channels,
                            std::span<const uint8_t> widths, int run, uint64_t rows,
                            std::span<std::byte> packed, ErrorSums* sums) {
  RunCursor at(static_cast<int>(widths.size()) * run, widths, run);
  auto* m = reinterpret_cast<uint16_t*>(packed.data());
  const size_t padding = at.code_at - at.padding_at;
  std::fill_n(packed.data() + at.padding_at, padding, std::byte{0});
  while (at.Next(channels)) {
    const QuantiseResult result =
        ops.quantise_k(y_rows + at.first * kLanes, at.channels, run, at.width, rows, m + at.first,
                       packed.data() + at.scale_at, packed.data() + at.code_at, sums);
    if (result != QuantiseResult::kOk) return result;
  }
  return QuantiseResult::kOk;
}

void DequantiseRuns(const TileOps& ops, std::span<const std::byte> packed, int d, int channels,
                    std::span<const uint8_t> widths, int run, float* y_rows) {
  RunCursor at(d, widths, run);
  const auto* m = reinterpret_cast<const uint16_t*>(packed.data());
  while (at.Next(channels)) {
    ops.dequantise_k(m + at.first, packed.data() + at.scale_at, packed.data() + at.code_at,
                     at.channels, run, at.width, y_rows + at.first * kLanes);
  }
}

QuantiseResult EncodeK(const TileEnv& env, uint8_t k_kind, uint64_t live, uint64_t pins, float* x,
                       std::span<std::byte> out, TileError* error) {
  const uint64_t rows = CountedRows(live, pins);
  if (kind::IsLevel(k_kind))
    return EncodeLevel(env, k_kind - kind::kLevel0, live, rows, x, out, error);
  PackLanes(x, env.d, live);
  if (k_kind == kind::kFp8) {
    env.ops.mean(x, env.d, rows, env.scratch.mean);
    error->energy = env.ops.energy(x, env.d, rows, env.scratch.mean);
    return EncodeFp8(env, rows, x, out, error);
  }
  int run;
  const auto widths = WidthsOf(env, k_kind, &run);
  ErrorSums sums;
  const QuantiseResult result = QuantiseRuns(env.ops, x, env.d, widths, run, rows, out, &sums);
  *error = {sums.energy, sums.error};
  return result;
}

QuantiseResult EncodeV(const TileEnv& env, uint8_t v_kind, uint64_t live, uint64_t pins, float* x,
                       std::span<std::byte> out, int8_t* v_exp, TileError* error) {
  const uint64_t rows = CountedRows(live, pins);
  *v_exp = 0;
  PackLanes(x, env.d, live);
  if (v_kind == kind::kFp8) {
    error->energy = env.ops.energy(x, env.d, rows, nullptr);
    return EncodeFp8(env, rows, x, out, error);
  }
  if (v_kind == kind::VBits(0)) {
    env.ops.mean(x, env.d, rows, env.scratch.mean);
    error->energy = env.ops.energy(x, env.d, rows, nullptr);
    error->error = env.ops.energy(x, env.d, rows, env.scratch.mean);
    return PutMeans(env.scratch.mean, env.d, out.data());
  }
  const int bits = v_kind - kind::VBits(0);
  env.ops.hadamard(x, env.d);
  ErrorSums sums;
  const QuantiseResult result = env.ops.quantise_v(x, env.d, bits, rows, out.data(),
                                                   out.data() + GainBytes(bits), v_exp, &sums);
  *error = {sums.energy, sums.error};
  return result;
}

void DecodeK(const TileEnv& env, const TileView& tile, DType dtype, uint64_t pins, float* x) {
  const uint64_t rows = CountedRows(tile.live, pins);
  if (kind::IsLevel(tile.k_kind))
    return DecodeLevel(env, tile.k_kind - kind::kLevel0, tile, rows, x);
  if (tile.k_kind == kind::kRaw) {
    LoadRows(env, tile.k, dtype, x);
  } else if (tile.k_kind == kind::kFp8) {
    DecodeFp8(env.d, tile.k, x);
  } else {
    int run;
    const auto widths = WidthsOf(env, tile.k_kind, &run);
    DequantiseRuns(env.ops, tile.k, env.d, env.d, widths, run, x);
  }
  FinishRows(env, tile.live, rows, x);
}

void DecodeV(const TileEnv& env, const TileView& tile, DType dtype, uint64_t pins, float* x) {
  const uint64_t rows = CountedRows(tile.live, pins);
  if (tile.v_kind == kind::VBits(0)) {
    for (int c = 0; c < env.d; ++c) {
      uint16_t m;
      std::memcpy(&m, tile.v.data() + 2 * c, 2);
      std::fill_n(x + c * kLanes, kLanes, codec::F16ToF32(m));
    }
    return;
  }
  if (tile.v_kind == kind::kRaw) {
    LoadRows(env, tile.v, dtype, x);
  } else if (tile.v_kind == kind::kFp8) {
    DecodeFp8(env.d, tile.v, x);
  } else {
    const int bits = tile.v_kind - kind::VBits(0);
    env.ops.dequantise_v(tile.v.data(), tile.v.data() + GainBytes(bits), env.d, bits, tile.v_exp,
                         x);
    env.ops.hadamard(x, env.d);
  }
  FinishRows(env, tile.live, rows, x);
}

}  // namespace dyna::cpu
