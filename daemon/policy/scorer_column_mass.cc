// column_mass and tile_mass: the engine summed its attention columns itself (policy 1).
//
//   column_mass  a_i = mass_i / queries; the sinks' share is taken out: a' = a / (1 - a_sinks)
//   tile_mass    a tile's share, sum exp(logit - max) exp(max - lse), is laid over its 64 tokens
//                alike. The first tile holds the sinks and cannot be told from them: its share is
//                taken out and its tokens stay uncovered (NaN)
#include <algorithm>
#include <cmath>
#include <limits>

#include "daemon/policy/scorer_methods.h"

namespace dyna {
namespace {

constexpr double kMostSinks = 0.999;  // of all attention; what is left is rounding
constexpr double kMaxMass = 1024;     // of one query: a group's heads, summed
constexpr float kMaxLogit = 1e5f;

float Relative(double share, double sinks, uint32_t tokens) {
  const double rest = 1 - std::min(sinks, kMostSinks);
  return static_cast<float>(std::min(share / rest * tokens, double{kMaxRelative}));
}

class ColumnMass final : public Scorer {
 public:
  std::string_view name() const override { return "column_mass"; }
  uint64_t ValuesOf(int kv_heads, uint32_t tokens) const override {
    return static_cast<uint64_t>(kv_heads) * tokens;
  }
  Status Score(const AttentionReport& report, std::span<float> x) const override {
    DYNA_RETURN_IF_ERROR(CheckShape(*this, report, x));
    if (report.queries == 0) return Invalid("report.queries is 0: nothing was summed");
    const size_t tokens = report.tokens;
    for (size_t i = 0; i < report.values.size(); ++i) {
      const float mass = report.values[i];
      if (!(mass >= 0 && double{mass} <= kMaxMass * report.queries))
        return BadValue(report, i / tokens, i % tokens, "token");
    }
    const size_t pinned = std::min<size_t>(kPinnedTokens, tokens);
    for (size_t head = 0; head < static_cast<size_t>(report.kv_heads); ++head) {
      const float* mass = report.values.data() + head * tokens;
      double sinks = 0;
      for (size_t i = 0; i < pinned; ++i) sinks += double{mass[i]} / report.queries;
      for (size_t i = 0; i < tokens; ++i) {
        x[head * tokens + i] =
            i < pinned ? 0.0f : Relative(double{mass[i]} / report.queries, sinks, report.tokens);
      }
    }
    return {};
  }
};

class TileMass final : public Scorer {
 public:
  std::string_view name() const override { return "tile_mass"; }
  uint64_t ValuesOf(int kv_heads, uint32_t tokens) const override {
    return static_cast<uint64_t>(kv_heads) * (tokens / kBlockTokens) * 3;
  }
  Status Score(const AttentionReport& report, std::span<float> x) const override {
    DYNA_RETURN_IF_ERROR(CheckShape(*this, report, x));
    if (report.tokens % kBlockTokens != 0) return Invalid("report.tokens is not whole tiles");
    const size_t tiles = report.tokens / kBlockTokens;
    for (size_t i = 0; i < report.values.size(); i += 3) {
      const float *v = &report.values[i], most = kMaxLogit;
      if (!(std::abs(v[0]) <= most && v[1] >= 0 && v[1] <= kBlockTokens * 1.01f &&
            std::abs(v[2]) <= most))
        return BadValue(report, i / 3 / tiles, i / 3 % tiles, "tile");
    }
    for (size_t head = 0; head < static_cast<size_t>(report.kv_heads); ++head) {
      const float* v = report.values.data() + head * tiles * 3;
      const double first = tiles ? Share(v) : 0;
      for (size_t tile = 0; tile < tiles; ++tile) {
        const float value =
            tile == 0 ? std::numeric_limits<float>::quiet_NaN()
                      : Relative(Share(v + tile * 3) / kBlockTokens, first, report.tokens);
        std::fill_n(x.begin() + static_cast<std::ptrdiff_t>((head * tiles + tile) * kBlockTokens),
                    kBlockTokens, value);
      }
    }
    return {};
  }

 private:
  static double Share(const float* v) {
    return std::min(double{v[1]} * std::exp(std::min(double{v[0]} - double{v[2]}, 0.0)), 1.0);
  }
};

}  // namespace

const Scorer* ColumnMassScorer() {
  static const ColumnMass kScorer;
  return &kScorer;
}

const Scorer* TileMassScorer() {
  static const TileMass kScorer;
  return &kScorer;
}

}  // namespace dyna
