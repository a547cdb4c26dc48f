#include "daemon/policy/basis/moments.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "kernels/rope.h"

namespace dyna {
namespace {

constexpr float kLargest = 1e6f;  // of a query's element: its square still sums in f32
constexpr float kLargestSum = 1e30f;

Status BadMoment(int layer, int head, const char* what) {
  return Invalid("moments of layer " + std::to_string(layer) + ", head " + std::to_string(head) +
                 ": " + what);
}

bool AllWithin(std::span<const float> values, float bound) {
  bool ok = true;
  for (float v : values) ok &= std::abs(v) <= bound;  // false for NaN
  return ok;
}

// Turns one query back to position 0.
void UndoRope(const RopeBlock& rope, int lane, float* q) {
  for (int p = 0; p < rope.pairs; ++p) {
    const bool half = rope.kind == RopeKind::kHalf;
    float& x = q[half ? p : 2 * p];
    float& y = q[half ? p + rope.pairs : 2 * p + 1];
    const float c = rope.cos[p][lane], s = rope.sin[p][lane], x0 = x;
    x = x0 * c + y * s;
    y = y * c - x0 * s;
  }
}

void AddOuter(const float* q, int d, float* triangle) {
  for (int i = 0; i < d; ++i) {
    const float qi = q[i];
    for (int j = i; j < d; ++j) triangle[j - i] += qi * q[j];
    triangle += d - i;
  }
}

}  // namespace

Frame FrameOf(const ContextSpec& spec, int layer) {
  const LayerShape& shape = spec.layers[static_cast<size_t>(layer)];
  const bool turns =
      shape.rope < spec.ropes.size() && spec.ropes[shape.rope].kind != RopeKind::kNone;
  return spec.attend || !turns ? Frame::kPost : Frame::kPre;
}

size_t MomentsBytes(const ContextSpec& spec, int copies) {
  size_t bytes = 0;
  for (const LayerShape& layer : spec.layers) {
    const size_t d = layer.head_dim;
    bytes += layer.kv_heads *
             (2 * TriangleSize(layer.head_dim) * sizeof(float) + 8 * d + sizeof(CellMoments));
  }
  return bytes * static_cast<size_t>(copies);
}

LayerMoments::LayerMoments(int layer, int kv_heads, int head_dim, Frame frame)
    : layer_(layer), d_(head_dim), frame_(frame), cells_(static_cast<size_t>(kv_heads)) {
  for (CellMoments& cell : cells_) {
    cell.mean.resize(static_cast<size_t>(head_dim));
    cell.scatter.resize(TriangleSize(head_dim));
    cell.qq.resize(TriangleSize(head_dim));
  }
}

Status LayerMoments::AddTile(int head_begin, std::span<const uint32_t> count,
                             std::span<const float> sum, std::span<const float> scatter) {
  const size_t heads = count.size(), d = static_cast<size_t>(d_), t = TriangleSize(d_);
  if (head_begin < 0 || static_cast<size_t>(head_begin) + heads > cells_.size())
    return Invalid("moments.heads are not of layer " + std::to_string(layer_));
  if (sum.size() != heads * d || scatter.size() != heads * t)
    return Invalid("moments.sum or scatter has the wrong length");
  for (size_t h = 0; h < heads; ++h) {
    const int head = head_begin + static_cast<int>(h);
    if (count[h] > uint32_t{kBlockTokens}) return BadMoment(layer_, head, "more than a tile");
    if (!AllWithin(sum.subspan(h * d, d), kLargestSum) ||
        !AllWithin(scatter.subspan(h * t, t), kLargestSum))
      return BadMoment(layer_, head, "not finite or too large");
  }
  for (size_t h = 0; h < heads; ++h) {
    if (count[h] == 0) continue;
    CellMoments& cell = cells_[static_cast<size_t>(head_begin) + h];
    const double n = count[h], share = n / (static_cast<double>(cell.tokens) + n);
    for (size_t c = 0; c < d; ++c)
      cell.mean[c] += (double{sum[h * d + c]} / n - cell.mean[c]) * share;
    for (size_t i = 0; i < t; ++i) cell.scatter[i] += scatter[h * t + i];
    cell.tokens += count[h];
  }
  return {};
}

Status LayerMoments::AddQueries(int head_begin, int heads, std::span<const float> queries,
                                int window, int q_heads, uint32_t first_position,
                                const Rope* rope) {
  if (head_begin < 0 || heads < 1 || static_cast<size_t>(head_begin + heads) > cells_.size())
    return Invalid("queries.heads are not of layer " + std::to_string(layer_));
  if (window < 1 || window > kBlockTokens) return Invalid("queries.window is not 1..64");
  if (q_heads < heads || q_heads % heads != 0)
    return Invalid("queries.q_heads is no multiple of the kv heads");
  const size_t d = static_cast<size_t>(d_), per_token = static_cast<size_t>(q_heads) * d;
  if (queries.size() != static_cast<size_t>(window) * per_token)
    return Invalid("queries.values: " + std::to_string(queries.size()) + " of " +
                   std::to_string(static_cast<size_t>(window) * per_token));
  for (size_t i = 0; i < queries.size(); ++i) {
    if (!(std::abs(queries[i]) <= kLargest))
      return Invalid("queries of layer " + std::to_string(layer_) + ", token " +
                     std::to_string(i / per_token) + ", head " + std::to_string(i % per_token / d) +
                     ": not finite or too large");
  }

  std::unique_ptr<RopeBlock> turn;
  if (frame_ == Frame::kPre && rope && rope->kind != RopeKind::kNone) {
    turn = std::make_unique<RopeBlock>();
    RopeTable(*rope).Fill(first_position, turn.get());
  }
  const int group = q_heads / heads;
  std::vector<float> q(d);
  for (int h = 0; h < heads; ++h) {
    CellMoments& cell = cells_[static_cast<size_t>(head_begin + h)];
    for (int w = 0; w < window; ++w) {
      for (int g = 0; g < group; ++g) {
        const float* from = queries.data() + static_cast<size_t>(w) * per_token +
                            static_cast<size_t>(h * group + g) * d;
        std::copy(from, from + d, q.begin());
        if (turn) UndoRope(*turn, w, q.data());
        AddOuter(q.data(), d_, cell.qq.data());
      }
    }
    cell.queries += static_cast<uint32_t>(window * group);
  }
  return {};
}

Status LayerMoments::AddQuerySums(int head_begin, std::span<const uint32_t> count,
                                  std::span<const float> second) {
  const size_t heads = count.size(), t = TriangleSize(d_);
  if (head_begin < 0 || heads == 0 || static_cast<size_t>(head_begin) + heads > cells_.size())
    return Invalid("queries.heads are not of layer " + std::to_string(layer_));
  if (second.size() != heads * t) return Invalid("queries.second has the wrong length");
  if (!AllWithin(second, kLargestSum))
    return BadMoment(layer_, head_begin, "queries not finite or too large");
  for (size_t h = 0; h < heads; ++h) {
    CellMoments& cell = cells_[static_cast<size_t>(head_begin) + h];
    for (size_t i = 0; i < t; ++i) cell.qq[i] += second[h * t + i];
    cell.queries += count[h];
  }
  return {};
}

void LayerMoments::Halve() {
  for (CellMoments& cell : cells_) {
    // An odd count would part the count from its sums: both take the same share.
    const auto half = [](uint32_t* n, std::vector<float>* sums) {
      if (*n == 0) return;
      const float share = static_cast<float>(*n / 2) / static_cast<float>(*n);
      for (float& v : *sums) v *= share;
      *n /= 2;
    };
    half(&cell.tokens, &cell.scatter);
    half(&cell.queries, &cell.qq);
  }
}

uint32_t LayerMoments::tokens() const {
  uint32_t least = 0;
  for (const CellMoments& cell : cells_)
    if (cell.tokens > 0) least = least ? std::min(least, cell.tokens) : cell.tokens;
  return least;
}

uint32_t LayerMoments::queries() const {
  uint32_t least = UINT32_MAX;
  for (const CellMoments& cell : cells_)
    if (cell.tokens > 0) least = std::min(least, cell.queries);
  return least == UINT32_MAX ? 0 : least;
}

size_t LayerMoments::memory_bytes() const {
  size_t bytes = 0;
  for (const CellMoments& cell : cells_)
    bytes += sizeof cell + cell.mean.size() * sizeof(double) +
             (cell.scatter.size() + cell.qq.size()) * sizeof(float);
  return bytes;
}

}  // namespace dyna
