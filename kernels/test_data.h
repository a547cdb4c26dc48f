// For tests and benchmarks: synthetic K and V, and bases that fit them. All from one seed.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "kernels/codec_math.h"

namespace dyna::testing {

// An orthogonal matrix [d][d]: a product of random reflections.
inline std::vector<double> RandomOrthogonal(int d, std::mt19937& random) {
  const size_t n = static_cast<size_t>(d);
  std::vector<double> q(n * n, 0.0);
  for (size_t i = 0; i < n; ++i) q[i * n + i] = 1;
  std::normal_distribution<double> normal;
  for (int k = 0; k < 4; ++k) {
    std::vector<double> u(n);
    double norm = 0;
    for (double& v : u) {
      v = normal(random);
      norm += v * v;
    }
    for (size_t i = 0; i < n; ++i) {
      double dot = 0;
      for (size_t j = 0; j < n; ++j) dot += q[i * n + j] * u[j];
      for (size_t j = 0; j < n; ++j) q[i * n + j] -= 2 * dot / norm * u[j];
    }
  }
  return q;
}

// A basis whose channels fall off by `decay`; A is a rotation with a scale for each channel of x
// (up to `stretch` between the largest and the smallest), B its inverse.
struct Model {
  int d = 64, kv_heads = 1;
  double decay = .93, stretch = 4, mean = 1;
  Frame frame = Frame::kPre;
  int run = 0;  // 0: the default

  std::vector<BasisHeadParts> heads;

  std::shared_ptr<const Basis> MakeBasis(std::mt19937& random, uint16_t layer = 0,
                                         uint16_t head0 = 0, Fingerprint fingerprint = 7) {
    const size_t n = static_cast<size_t>(d);
    heads.clear();
    std::normal_distribution<double> normal;
    for (int h = 0; h < kv_heads; ++h) {
      const std::vector<double> q = RandomOrthogonal(d, random);
      BasisHeadParts head;
      head.a.resize(n * n);
      head.b.resize(n * n);
      for (size_t j = 0; j < n; ++j) {
        const double scale =
            std::pow(stretch, static_cast<double>(j) / static_cast<double>(n) - .5);
        head.mu.push_back(codec::RoundF16(static_cast<float>(mean * normal(random))));
        for (size_t c = 0; c < n; ++c) {
          head.a[c * n + j] = q[c * n + j] * scale;
          head.b[j * n + c] = q[c * n + j] / scale;
        }
      }
      for (int c = 0; c < d; ++c) head.variances.push_back(std::pow(decay, c));
      heads.push_back(std::move(head));
    }
    BasisInfo info;
    info.fingerprint = fingerprint;
    info.layer = layer;
    info.head0 = head0;
    info.kv_heads = static_cast<uint16_t>(kv_heads);
    info.head_dim = static_cast<uint16_t>(d);
    info.frame = frame;
    info.run = static_cast<uint8_t>(run != 0 ? run : DefaultRun(d));
    info.tokens = 2048;
    info.queries = 256;
    auto basis = Basis::Build(info, heads);
    return basis.ok() ? *basis : nullptr;
  }

  // x = B y + mu of one head, [64][d], y normal with the basis' variances: before RoPE.
  std::vector<double> SampleX(int head, std::mt19937& random) const {
    const size_t n = static_cast<size_t>(d);
    const BasisHeadParts& parts = heads[static_cast<size_t>(head)];
    std::normal_distribution<double> normal;
    std::vector<double> x(static_cast<size_t>(kBlockTokens) * n), y(n);
    for (size_t t = 0; t < kBlockTokens; ++t) {
      for (size_t c = 0; c < n; ++c) y[c] = std::sqrt(parts.variances[c]) * normal(random);
      for (size_t j = 0; j < n; ++j) {
        double sum = parts.mu[j];
        for (size_t c = 0; c < n; ++c) sum += parts.b[j * n + c] * y[c];
        x[t * n + j] = sum;
      }
    }
    return x;
  }
};

inline Rope MakeRope(int d, RopeKind rope_kind = RopeKind::kHalf, double theta = 10000) {
  Rope rope;
  rope.kind = rope_kind;
  rope.rotary_dim = static_cast<uint16_t>(d);
  for (int i = 0; i < d / 2; ++i)
    rope.inv_freq.push_back(static_cast<float>(std::pow(theta, -2.0 * i / d)));
  return rope;
}

// Turns one row by `position`, in double.
inline void TurnRow(const Rope& rope, double position, double* row, int sign = 1) {
  if (rope.kind == RopeKind::kNone) return;
  const size_t half = rope.rotary_dim / 2u;
  for (size_t p = 0; p < half; ++p) {
    const double angle = sign * position * static_cast<double>(rope.inv_freq[p]);
    const size_t i = rope.kind == RopeKind::kHalf ? p : 2 * p;
    const size_t j = rope.kind == RopeKind::kHalf ? p + half : 2 * p + 1;
    const double u = row[i], v = row[j];
    row[i] = u * std::cos(angle) - v * std::sin(angle);
    row[j] = v * std::cos(angle) + u * std::sin(angle);
  }
}

// K and V of some heads in a dtype, [head][K, V][64][d], with views of both kinds.
struct KvBuffer {
  KvBuffer(int heads_, int d_, DType dtype_)
      : heads(heads_),
        d(d_),
        dtype(dtype_),
        bytes(static_cast<size_t>(heads_ * 2 * kBlockTokens * d_ * DTypeBytes(dtype_)) + 64) {}
  std::byte* at(int head, bool v, int t, int c) {
    const int64_t row = (static_cast<int64_t>(head) * 2 + (v ? 1 : 0)) * kBlockTokens + t;
    return bytes.data() + (row * d + c) * DTypeBytes(dtype);
  }
  void Set(int head, bool v, int t, int c, double value) {
    const float f = static_cast<float>(value);
    const uint16_t bits = dtype == DType::kF16 ? codec::F32ToF16(f) : codec::F32ToBf16(f);
    if (dtype == DType::kF32) std::memcpy(at(head, v, t, c), &f, 4);
    if (dtype != DType::kF32) std::memcpy(at(head, v, t, c), &bits, 2);
  }
  float Get(int head, bool v, int t, int c) {
    float f;
    uint16_t bits;
    if (dtype == DType::kF32) {
      std::memcpy(&f, at(head, v, t, c), 4);
      return f;
    }
    std::memcpy(&bits, at(head, v, t, c), 2);
    return dtype == DType::kF16 ? codec::F16ToF32(bits) : codec::Bf16ToF32(bits);
  }
  void SetRows(int head, bool v, const std::vector<double>& rows) {
    for (int t = 0; t < kBlockTokens; ++t)
      for (int c = 0; c < d; ++c) Set(head, v, t, c, rows[static_cast<size_t>(t * d + c)]);
  }
  KvView view() {
    const int64_t row = d * DTypeBytes(dtype);
    return {at(0, false, 0, 0),
            at(0, true, 0, 0),
            row,
            2 * kBlockTokens * row,
            row,
            2 * kBlockTokens * row,
            dtype};
  }
  MutableKvView target() {
    const int64_t row = d * DTypeBytes(dtype);
    return {at(0, false, 0, 0),
            at(0, true, 0, 0),
            row,
            2 * kBlockTokens * row,
            row,
            2 * kBlockTokens * row,
            dtype};
  }
  int heads, d;
  DType dtype;
  std::vector<std::byte> bytes;
};

// Fills K (through the model and its rope at `block_index`) and V (normal).
inline void FillKv(const Model& model, const Rope& rope, uint32_t block_index, std::mt19937& random,
                   KvBuffer* kv) {
  std::normal_distribution<double> normal;
  for (int h = 0; h < kv->heads; ++h) {
    std::vector<double> x = model.SampleX(h, random);
    for (int t = 0; t < kBlockTokens; ++t)
      TurnRow(rope, block_index * double{kBlockTokens} + t, &x[static_cast<size_t>(t * kv->d)]);
    kv->SetRows(h, false, x);
    for (double& v : x) v = normal(random);
    kv->SetRows(h, true, x);
  }
}

inline SegmentId MakeId(int d, int kv_heads, DType dtype, const Basis* basis,
                        uint32_t block_index = 0) {
  SegmentId id;
  id.fingerprint = 7;
  id.basis = basis != nullptr ? basis->name() : 0;
  id.block.bytes.fill(0xab);
  id.block_index = block_index;
  id.kv_heads = static_cast<uint16_t>(kv_heads);
  id.head_dim = static_cast<uint16_t>(d);
  id.dtype = dtype;
  return id;
}

// 16-byte aligned bytes, as an arena would give them.
struct AlignedBytes {
  explicit AlignedBytes(size_t n) : units((n + 15) / 16), size(n) {}
  std::span<std::byte> span() { return {reinterpret_cast<std::byte*>(units.data()), size}; }
  struct alignas(16) Unit {
    std::byte b[16];
  };
  std::vector<Unit> units;
  size_t size;
};

}  // namespace dyna::testing
