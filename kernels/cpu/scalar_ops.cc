#include "kernels/cpu/scalar_ops.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/codec_math.h"

namespace dyna {
namespace scalar {
namespace {

template <typename Element, typename ToF32>
int LoadAs(const std::byte* src, int64_t stride, int d, float* planes, ToF32 to_f32) {
  Element row[kMaxHeadDim];  // the private copy: what is checked is what is coded
  int bad = -1;
  for (int t = 0; t < kLanes; ++t) {
    std::memcpy(row, src + t * stride, sizeof(Element) * static_cast<size_t>(d));
    bool finite = true;
    for (int c = 0; c < d; ++c) {
      const float value = to_f32(row[c]);
      finite &= codec::IsFiniteBits(value);
      planes[c * kLanes + t] = value;
    }
    if (!finite && bad < 0) bad = t;
  }
  return bad;
}

template <typename Element, typename FromF32>
void StoreAs(const float* planes, int d, std::byte* dst, int64_t stride, FromF32 from_f32) {
  Element row[kMaxHeadDim];
  for (int t = 0; t < kLanes; ++t) {
    for (int c = 0; c < d; ++c) row[c] = from_f32(planes[c * kLanes + t]);
    std::memcpy(dst + t * stride, row, sizeof(Element) * static_cast<size_t>(d));
  }
}

}  // namespace

int Load(const std::byte* src, int64_t stride, DType dtype, int d, float* planes) {
  if (dtype == DType::kF16) return LoadAs<uint16_t>(src, stride, d, planes, codec::F16ToF32);
  if (dtype == DType::kBf16) return LoadAs<uint16_t>(src, stride, d, planes, codec::Bf16ToF32);
  return LoadAs<float>(src, stride, d, planes, [](float v) { return v; });
}

void Store(const float* planes, int d, std::byte* dst, int64_t stride, DType dtype) {
  if (dtype == DType::kF16) return StoreAs<uint16_t>(planes, d, dst, stride, codec::F32ToF16);
  if (dtype == DType::kBf16) return StoreAs<uint16_t>(planes, d, dst, stride, codec::F32ToBf16);
  StoreAs<float>(planes, d, dst, stride, [](float v) { return v; });
}

void Rotate(float* planes, const RopeBlock& rope, bool undo) {
  if (rope.kind == RopeKind::kNone) return;
  const bool half = rope.kind == RopeKind::kHalf;
  const float sign = undo ? -1.0f : 1.0f;
  for (int p = 0; p < rope.pairs; ++p) {
    float* x = planes + (half ? p : 2 * p) * kLanes;
    float* y = planes + (half ? p + rope.pairs : 2 * p + 1) * kLanes;
    for (int t = 0; t < kLanes; ++t) {
      const float c = rope.cos[p][t], s = sign * rope.sin[p][t];
      const float u = x[t], v = y[t];
      x[t] = u * c - v * s;
      y[t] = v * c + u * s;
    }
  }
}

void Shift(float* planes, int d, const float* value, float sign) {
  for (int c = 0; c < d; ++c)
    for (int t = 0; t < kLanes; ++t) planes[c * kLanes + t] += sign * value[c];
}

void Transform(const float* m, int ld, int out, int in, const float* bias, const float* x,
               float* y) {
  for (int o = 0; o < out; ++o) {
    float* to = y + o * kLanes;
    std::fill_n(to, kLanes, bias != nullptr ? bias[o] : 0.0f);
    for (int i = 0; i < in; ++i) {
      const float w = m[o * ld + i];
      const float* from = x + i * kLanes;
      for (int t = 0; t < kLanes; ++t) to[t] += w * from[t];
    }
  }
}

void Matvec(const float* m, int ld, int out, int in, const float* bias, const float* x, float* y) {
  for (int o = 0; o < out; ++o) {
    float sum = bias != nullptr ? bias[o] : 0.0f;
    for (int i = 0; i < in; ++i) sum += m[o * ld + i] * x[i];
    y[o] = sum;
  }
}

void Hadamard(float* planes, int d) {
  const int n = codec::HadamardSize(d);
  for (int block = 0; block < d; block += n) {
    for (int h = 1; h < n; h *= 2) {
      for (int c = block; c < block + n; ++c) {
        if ((c & h) != 0) continue;
        float* x = planes + c * kLanes;
        float* y = x + h * kLanes;
        for (int t = 0; t < kLanes; ++t) {
          const float u = x[t], v = y[t];
          x[t] = u + v;
          y[t] = u - v;
        }
      }
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(n));
  for (int i = 0; i < d * kLanes; ++i) planes[i] *= scale;
}

void Mean(const float* planes, int d, uint64_t rows, float* mean) {
  const int n = std::popcount(rows);
  for (int c = 0; c < d; ++c) {
    const float* x = planes + c * kLanes;
    const float sum =
        codec::TreeSum(kLanes, [&](int t) { return (rows >> t & 1) != 0 ? x[t] : 0.0f; });
    mean[c] = n == 0 ? 0.0f : sum / static_cast<float>(n);
  }
}

float Energy(const float* planes, int d, uint64_t rows, const float* mean) {
  float lanes[kLanes] = {};
  for (int c = 0; c < d; ++c) {
    const float from = mean != nullptr ? mean[c] : 0.0f;
    for (int t = 0; t < kLanes; ++t) {
      const float e = planes[c * kLanes + t] - from;
      lanes[t] += e * e;
    }
  }
  float sum = 0;
  for (int t = 0; t < kLanes; ++t) sum += (rows >> t & 1) != 0 ? lanes[t] : 0.0f;
  return sum;
}

void Rank64(const float* planes, int d, float* upper) {
  for (int i = 0; i < d; ++i) {
    for (int j = i; j < d; ++j) {
      float lanes[8] = {};
      for (int t = 0; t < kLanes; t += 8)
        for (int l = 0; l < 8; ++l)
          lanes[l] += planes[i * kLanes + t + l] * planes[j * kLanes + t + l];
      float sum = 0;
      for (float v : lanes) sum += v;
      *upper++ += sum;
    }
  }
}

void SoftmaxReduce(const float* scores, int begin, int end, float* max, float* sum) {
  if (begin >= end) return;
  const float top = std::max(*max, *std::max_element(scores + begin, scores + end));
  float total = *sum == 0 ? 0.0f : *sum * std::exp(*max - top);
  for (int t = begin; t < end; ++t) total += std::exp(scores[t] - top);
  *max = top;
  *sum = total;
}

void SoftmaxMax(const float* scores, int begin, int end, float lse, float* weight) {
  for (int t = begin; t < end; ++t) weight[t] = std::max(weight[t], std::exp(scores[t] - lse));
}

}  // namespace scalar

const TileOps& ScalarTileOps() {
  static constexpr TileOps kOps = {
      .name = "scalar",
      .load = scalar::Load,
      .store = scalar::Store,
      .rotate = scalar::Rotate,
      .shift = scalar::Shift,
      .transform = scalar::Transform,
      .matvec = scalar::Matvec,
      .hadamard = scalar::Hadamard,
      .mean = scalar::Mean,
      .energy = scalar::Energy,
      .quantise_k = scalar::QuantiseK,
      .dequantise_k = scalar::DequantiseK,
      .quantise_v = scalar::QuantiseV,
      .dequantise_v = scalar::DequantiseV,
      .rank64 = scalar::Rank64,
      .softmax_reduce = scalar::SoftmaxReduce,
      .softmax_max = scalar::SoftmaxMax,
  };
  return kOps;
}

}  // namespace dyna
