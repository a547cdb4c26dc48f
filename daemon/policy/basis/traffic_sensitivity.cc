#include "daemon/policy/basis/traffic_sensitivity.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

namespace dyna {
namespace {

constexpr uint32_t kQueries = 8;       // of a window
constexpr uint32_t kFirstWindows = 4;  // before there is an omega at all
// K's error on text that a learned basis has not seen, over what its own variances promise: about
// this much, measured on tuning passages. With 1 the bits go to V (RESULTS.md).
constexpr float kOptimism = 2;
constexpr double kLeast = 1e-6;  // of a layer's mean: a head that nobody minds is not free

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using View = Eigen::Map<const Matrix>;

// Of the logits of one query: the variance within a tile, mean over the whole tiles [from, to).
double TileVariance(const float* logits, uint32_t from, uint32_t to) {
  double sum = 0;
  for (uint32_t tile = from; tile < to; ++tile) {
    const Eigen::Map<const Eigen::ArrayXf> x(logits + size_t{tile} * kBlockTokens, kBlockTokens);
    sum += (x - x.mean()).square().mean();
  }
  return sum / (to - from);
}

}  // namespace

Result<WindowSensitivity> MeasureWindow(const QueryWindow& in) {
  const int group = in.q_heads / in.kv_heads, d = in.head_dim;
  const auto width = static_cast<size_t>(in.q_heads) * static_cast<size_t>(d);
  const auto given = static_cast<uint32_t>(in.queries.size() / width);
  const uint32_t step = std::max(given / kQueries, 1u);
  const uint32_t old = std::min(in.first_position, in.tokens);  // tokens before the window
  const uint32_t whole = old / kBlockTokens;
  const auto heads = static_cast<size_t>(in.kv_heads);
  WindowSensitivity out{std::vector<double>(heads), std::vector<double>(heads),
                        std::vector<double>(heads)};
  if (given == 0 || whole < 2) return Invalid("sensitivity: no whole tile before the window");

  const size_t tile = size_t{in.tokens} * static_cast<size_t>(d);
  Matrix logits(1, in.tokens);
  Eigen::ArrayXf a(in.tokens);
  for (size_t h = 0; h < heads; ++h) {
    const View k(in.k.data() + h * tile, in.tokens, d), v(in.v.data() + h * tile, in.tokens, d);
    const Eigen::ArrayXf v2 = v.rowwise().squaredNorm();
    uint32_t count = 0;
    for (uint32_t q = 0; q < given; q += step, ++count) {
      const uint32_t position = in.first_position + q;
      const uint32_t end = std::min(position + 1, in.tokens);
      const uint32_t begin = in.sliding != 0 && end > in.sliding ? end - in.sliding : 0;
      const uint32_t from = std::max(begin / kBlockTokens + 1, 1u);  // the pins' tile is left out
      if (from >= whole) return Invalid("sensitivity: no whole tile before the window");
      for (int g = 0; g < group; ++g) {
        const auto at =
            size_t{q} * width +
            (h * static_cast<size_t>(group) + static_cast<size_t>(g)) * static_cast<size_t>(d);
        const View query(in.queries.data() + at, 1, d);
        logits.noalias() = in.scale * (query * k.transpose());
        const double variance = TileVariance(logits.data(), from, whole);
        a.setZero();
        const auto seen = logits.row(0).segment(begin, end - begin).array();
        a.segment(begin, end - begin) = (seen - seen.maxCoeff()).exp();
        a /= a.sum();
        const Eigen::RowVectorXf o = a.matrix().transpose() * v;
        a.head(kPinnedTokens).setZero();
        a.tail(in.tokens - old).setZero();
        a = a.square();
        const Eigen::ArrayXf away =
            (v2 - 2 * (v * o.transpose()).array() + o.squaredNorm()).max(0.0f);
        out.value[h] += double{(a * v2).sum()};
        out.key[h] += variance * double{(a * away).sum()};
        out.output[h] += double{o.squaredNorm()};
      }
    }
    for (auto* sum : {&out.value[h], &out.key[h], &out.output[h]}) {
      *sum /= count;
      if (!std::isfinite(*sum)) return Invalid("sensitivity: a sum is not finite");
    }
  }
  return out;
}

TrafficSensitivity::TrafficSensitivity(const ContextSpec& spec, uint32_t windows)
    : most_(windows), next_(std::min(kFirstWindows, windows)) {
  for (const LayerShape& layer : spec.layers) {
    layers_.emplace_back(layer.kv_heads);
    // Of a layer that nobody can ask nothing is learned, and so of none: they share one price.
    if (layer.kind == LayerKind::kOpaque || layer.q_heads == 0 || layer.kv_heads == 0) most_ = 0;
  }
}

bool TrafficSensitivity::Wants(int layer, uint32_t tokens) const {
  if (tokens < kFewestTokens || tokens > kMostTokens) return false;
  const auto& cells = layers_[static_cast<size_t>(layer)];
  return std::any_of(cells.begin(), cells.end(), [&](const Cell& c) { return c.windows < most_; });
}

void TrafficSensitivity::Add(int layer, int head_begin, const WindowSensitivity& measured) {
  auto& cells = layers_[static_cast<size_t>(layer)];
  for (size_t h = 0; h < measured.key.size(); ++h) {
    Cell& cell = cells[static_cast<size_t>(head_begin) + h];
    cell.key += measured.key[h];
    cell.value += measured.value[h];
    cell.output += measured.output[h];
    ++cell.windows;
  }
}

uint32_t TrafficSensitivity::Seen() const {
  uint32_t least = ~0u;
  for (const auto& cells : layers_)
    for (const Cell& cell : cells) least = std::min(least, cell.windows);
  return least;
}

bool TrafficSensitivity::Due() const { return next_ != 0 && most_ != 0 && Seen() >= next_; }

std::optional<std::vector<std::vector<CellSensitivity>>> TrafficSensitivity::Take(
    std::span<const std::shared_ptr<const Basis>> bases) {
  std::vector<std::vector<CellSensitivity>> out;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Basis* basis = bases[l].get();
    if (basis == nullptr) return std::nullopt;
    const size_t heads = layers_[l].size();
    double output = 0, key = 0, value = 0;
    for (const Cell& cell : layers_[l]) {
      output += cell.output / cell.windows;
      key += cell.key / cell.windows / static_cast<double>(heads);
      value += cell.value / cell.windows / static_cast<double>(heads);
    }
    auto& to = out.emplace_back();
    for (size_t h = 0; h < heads; ++h) {
      const Cell& cell = layers_[l][h];
      const int head = static_cast<int>(h);
      if (!basis->seen(head)) return std::nullopt;
      const auto omega = [&](double sum, double mean) {
        return static_cast<float>(std::max(sum / cell.windows, kLeast * mean) / output);
      };
      to.push_back({kOptimism * omega(cell.key, key), omega(cell.value, value),
                    static_cast<float>(basis->relative_error(head, basis->LevelOf(4))),
                    static_cast<float>(basis->relative_error(head, basis->LevelOf(2)))});
    }
  }
  next_ = next_ < most_ ? most_ : 0;
  return out;
}

}  // namespace dyna
