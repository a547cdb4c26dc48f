// Synthetic K and queries for the tests of the learned basis.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "daemon/policy/basis/moments.h"
#include "schemas/types.h"

namespace dyna::testing {

// Rows x = mean + L g with g normal: covariance L L', any conditioning.
struct Source {
  int d = 64;
  std::vector<double> mean;  // [d]
  std::vector<double> l;     // [d][d]

  // Random mixture whose singular values fall by `decay` a channel.
  Source(int head_dim, double decay, double mean_size, std::mt19937_64& dice)
      : d(head_dim),
        mean(static_cast<size_t>(head_dim)),
        l(static_cast<size_t>(head_dim * head_dim)) {
    std::normal_distribution<double> normal;
    for (double& m : mean) m = mean_size * normal(dice);
    for (int i = 0; i < d; ++i)
      for (int j = 0; j < d; ++j)
        l[static_cast<size_t>(i * d + j)] = normal(dice) / std::sqrt(d) * std::pow(decay, j);
  }
  void Row(std::mt19937_64& dice, float* x) const {
    std::normal_distribution<double> normal;
    std::vector<double> g(static_cast<size_t>(d));
    for (double& v : g) v = normal(dice);
    for (int i = 0; i < d; ++i) {
      double sum = mean[static_cast<size_t>(i)];
      for (int j = 0; j < d; ++j)
        sum += l[static_cast<size_t>(i * d + j)] * g[static_cast<size_t>(j)];
      x[i] = static_cast<float>(sum);
    }
  }
  double Covariance(int i, int j) const {
    double sum = 0;
    for (int k = 0; k < d; ++k)
      sum += l[static_cast<size_t>(i * d + k)] * l[static_cast<size_t>(j * d + k)];
    return sum;
  }
};

// What a MomentsJob (backend.h) answers for one tile of one head.
struct TileSums {
  uint32_t count = kBlockTokens;
  std::vector<float> sum, scatter;
};
inline TileSums SumsOf(const std::vector<float>& x, int d) {  // [64][d]
  TileSums out;
  std::vector<double> mean(static_cast<size_t>(d));
  for (size_t i = 0; i < x.size(); ++i) mean[i % static_cast<size_t>(d)] += double{x[i]};
  for (double& m : mean) {
    out.sum.push_back(static_cast<float>(m));
    m /= kBlockTokens;
  }
  for (int i = 0; i < d; ++i) {
    for (int j = i; j < d; ++j) {
      double s = 0;
      for (int t = 0; t < kBlockTokens; ++t)
        s += (double{x[static_cast<size_t>(t * d + i)]} - mean[static_cast<size_t>(i)]) *
             (double{x[static_cast<size_t>(t * d + j)]} - mean[static_cast<size_t>(j)]);
      out.scatter.push_back(static_cast<float>(s));
    }
  }
  return out;
}

// Feeds `tiles` tiles of K and as many windows of 64 queries (one query head a kv head) to head 0.
inline void Feed(LayerMoments* moments, const Source& keys, const Source& queries, int tiles,
                 std::mt19937_64& dice, int head = 0) {
  const auto d = static_cast<size_t>(keys.d);
  std::vector<float> x(kBlockTokens * d), q(kBlockTokens * d);
  for (int tile = 0; tile < tiles; ++tile) {
    for (int t = 0; t < kBlockTokens; ++t) {
      keys.Row(dice, x.data() + static_cast<size_t>(t) * d);
      queries.Row(dice, q.data() + static_cast<size_t>(t) * d);
    }
    const TileSums sums = SumsOf(x, keys.d);
    (void)moments->AddTile(head, {&sums.count, 1}, sums.sum, sums.scatter);
    (void)moments->AddQueries(head, 1, q, kBlockTokens, 1, 0, nullptr);
  }
}

}  // namespace dyna::testing
