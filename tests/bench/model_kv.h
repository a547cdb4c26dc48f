// For benchmarks of the whole daemon: one model's K and V (32 layers, 8 kv heads, 128 channels,
// bf16), what became of them, and the small things that such programs share.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "kernels/codec_math.h"
#include "kernels/test_data.h"
#include "schemas/context.h"

namespace dyna::bench {

using Clock = std::chrono::steady_clock;
inline constexpr int kLayers = 32, kHeads = 8, kDim = 128;
inline constexpr size_t kPoolRows = 1024;  // of K and of V, a head; the same row comes back turned
inline constexpr uint64_t kBlockBytes = uint64_t{2} * kLayers * kHeads * kBlockTokens * kDim * 2;

inline double Since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}
template <typename T>
T Must(Result<T> r, const char* what) {
  if (r.ok()) return std::move(r.value());
  std::fprintf(stderr, "%s: %s\n", what, r.status().ToString().c_str());
  std::exit(1);
}
inline void Must(const Status& s, const char* what) {
  if (s.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, s.ToString().c_str());
  std::exit(1);
}
template <typename Work>  // Work(begin, end) of 0..n
void InThreads(uint32_t n, const Work& work) {
  const uint32_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> pool;
  for (uint32_t t = 0; t < threads; ++t)
    pool.emplace_back([&, t] { work(n * t / threads, n * (t + 1) / threads); });
  for (std::thread& t : pool) t.join();
}

// The number behind `key` in the object `section` of the daemon's status.
inline double Number(const std::string& json, const std::string& section, const std::string& key) {
  size_t at = json.find("\"" + section + "\":");
  if (at != json.npos) at = json.find("\"" + key + "\":", at);
  return at == json.npos ? -1 : std::atof(json.c_str() + at + key.size() + 3);
}
inline size_t Count(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(what, at)) != text.npos; at += what.size()) ++n;
  return n;
}

// K of a spectrum that falls off, turned by RoPE; V normal. [block][layer][head][K, V][token][d].
class Source {
 public:
  Source() : rope_(testing::MakeRope(kDim)) {
    std::mt19937 random(11);
    testing::Model model;
    model.d = kDim;
    model.kv_heads = kHeads;
    (void)model.MakeBasis(random);
    std::normal_distribution<float> normal;
    for (int h = 0; h < kHeads; ++h) {
      for (size_t r = 0; r < kPoolRows; r += kBlockTokens)
        for (const double x : model.SampleX(h, random)) k_.push_back(static_cast<float>(x));
      for (size_t i = 0; i < kPoolRows * kDim; ++i) v_.push_back(codec::F32ToBf16(normal(random)));
    }
  }
  const Rope& rope() const { return rope_; }

  // Blocks first .. first + blocks of the sequence, dense, at `to`.
  void Fill(std::span<std::byte> to, uint32_t blocks, uint32_t first = 0) const {
    InThreads(blocks, [&](uint32_t begin, uint32_t end) {
      for (uint32_t b = begin; b < end; ++b)
        for (uint32_t t = 0; t < kBlockTokens; ++t)
          FillToken(to.data() + b * kBlockBytes, first + b, t);
    });
  }

 private:
  void FillToken(std::byte* to, uint32_t block, uint32_t t) const {
    float cosine[kDim / 2], sine[kDim / 2];
    const uint32_t position = block * kBlockTokens + t;
    for (size_t p = 0; p < kDim / 2; ++p) {
      const double angle = position * static_cast<double>(rope_.inv_freq[p]);
      cosine[p] = static_cast<float>(std::cos(angle));
      sine[p] = static_cast<float>(std::sin(angle));
    }
    uint16_t row[kDim];
    for (size_t l = 0; l < kLayers; ++l)
      for (size_t h = 0; h < kHeads; ++h) {
        const size_t r = h * kPoolRows + (position * 7919u + l * 104729u) % kPoolRows;
        const float* x = &k_[r * kDim];
        for (size_t p = 0; p < kDim / 2; ++p) {
          const float u = x[p], v = x[p + kDim / 2];
          row[p] = codec::F32ToBf16(u * cosine[p] - v * sine[p]);
          row[p + kDim / 2] = codec::F32ToBf16(v * cosine[p] + u * sine[p]);
        }
        const size_t tile = (l * kHeads + h) * 2;
        std::byte* at = to + (tile * kBlockTokens + t) * sizeof row;
        std::memcpy(at, row, sizeof row);
        std::memcpy(at + kBlockTokens * sizeof row, &v_[r * kDim], sizeof row);
      }
  }
  Rope rope_;
  std::vector<float> k_;
  std::vector<uint16_t> v_;
};

// The context that such a source is of.
inline ContextSpec SpecOf(const Source& source, const std::string& model) {
  ContextSpec spec;
  spec.model = model;
  spec.dtype = DType::kBf16;
  spec.ropes = {source.rope()};
  LayerShape shape;
  shape.kv_heads = kHeads;
  shape.head_dim = kDim;
  shape.max_position = 1u << 20;
  spec.layers.assign(kLayers, shape);
  return spec;
}

struct Errors {
  double k = 0, v = 0;  // squared error over energy
};
inline Errors Compare(std::span<const std::byte> want, std::span<const std::byte> got,
                      uint32_t blocks) {
  double sums[4] = {};
  const auto* a = reinterpret_cast<const uint16_t*>(want.data());
  const auto* b = reinterpret_cast<const uint16_t*>(got.data());
  const size_t stride = std::max<uint32_t>(1, blocks / 32);
  for (size_t block = 0; block < blocks; block += stride)
    for (size_t i = 0; i < kBlockBytes / 2; ++i) {
      const size_t at = block * (kBlockBytes / 2) + i;
      const double x = codec::Bf16ToF32(a[at]), e = x - codec::Bf16ToF32(b[at]);
      const size_t v = i / (kBlockTokens * kDim) % 2;
      sums[v] += e * e;
      sums[2 + v] += x * x;
    }
  return {sums[0] / sums[2], sums[1] / sums[3]};
}

}  // namespace dyna::bench
