// Window attention over the held blocks (policy 1), without a full matrix: one pass over the chain
// for each query's denominator, one for the weights, each with a tile's logits at hand.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cpu/jobs.h"

namespace dyna::cpu {
namespace {

struct alignas(64) Plane {  // as the table wants its results
  float lanes[kLanes];
};

constexpr float kUnseen = -1e30f;  // a logit whose exp is 0, and whose differences are numbers
constexpr float kNoMass = -std::numeric_limits<float>::infinity();

class Scorer {
 public:
  Scorer(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, ScoreJob& job)
      : ops_(ops), scratch_(scratch), rope_(rope), job_(job) {}

  Status Run() {
    DYNA_RETURN_IF_ERROR(Prepare());
    for (int head = 0; head < kv_heads_; ++head) {
      GatherQueries(head);
      FindDenominators(head);
      AddWeights(head);
    }
    return {};
  }

 private:
  Status Prepare() {
    if (job_.chain.empty()) return Invalid("chain: empty");
    for (size_t i = 0; i < job_.chain.size(); ++i) {
      DYNA_ASSIGN_OR_RETURN(SegmentView view,
                            ParseSegment(job_.chain[i].segment, job_.chain[i].basis));
      const SegmentId& id = view.id();
      if (id.block_index != i)
        return Invalid("chain: block " + std::to_string(id.block_index) + " where " +
                       std::to_string(i) + " belongs");
      if (!views_.empty()) {
        const SegmentId& first = views_[0].id();
        if (id.layer != first.layer || id.head0 != first.head0 || id.kv_heads != first.kv_heads ||
            id.head_dim != first.head_dim)
          return Invalid("chain: blocks of several layers or head ranges");
      }
      if (DTypeBytes(id.dtype) == 1) return Unsupported("chain: fp8 contexts are not scored");
      views_.push_back(view);
    }
    d_ = views_[0].id().head_dim;
    kv_heads_ = views_[0].id().kv_heads;
    const size_t row = static_cast<size_t>(job_.q_heads) * static_cast<size_t>(d_);
    if (job_.q_heads == 0 || job_.q_heads % kv_heads_ != 0)
      return Invalid("q_heads: not a multiple of kv_heads");
    if (job_.queries.empty() || job_.queries.size() % row != 0)
      return Invalid("queries: not [W][q_heads][head_dim]");
    const size_t window = job_.queries.size() / row;
    if (window > kBlockTokens) return TooLarge("queries: more than 64 positions");
    if (!job_.lse.empty() && job_.lse.size() != window * job_.q_heads)
      return Invalid("lse: not [W][q_heads]");
    if (job_.relative.size() != static_cast<size_t>(kv_heads_) * views_.size() * kBlockTokens)
      return Invalid("relative: not [kv_heads][chain * 64]");
    for (const float q : job_.queries)
      if (!std::isfinite(q)) return Invalid("queries: not finite");
    for (const float l : job_.lse)
      if (!std::isfinite(l)) return Invalid("lse: not finite");
    window_ = static_cast<int>(window);
    group_ = job_.q_heads / kv_heads_;
    return {};
  }

  // Queries of a head's group, scaled: [W][group][d], padded to a multiple of 4 rows.
  void GatherQueries(int head) {
    const int rows = window_ * group_;
    q_.assign(static_cast<size_t>((rows + 3) / 4 * 4 * d_), 0.0f);
    for (int w = 0; w < window_; ++w) {
      const float* from =
          &job_.queries[static_cast<size_t>((w * job_.q_heads + head * group_) * d_)];
      float* to = &q_[static_cast<size_t>(w * group_ * d_)];
      for (int i = 0; i < group_ * d_; ++i) to[i] = job_.scale * from[i];
    }
    logits_.resize(static_cast<size_t>((rows + 3) / 4 * 4));
  }

  int64_t Position(int w) const { return int64_t{job_.first_query_position} + w; }

  // Lanes of `block` that query w sees, without sinks: [begin, end).
  struct Lanes {
    int begin, end;
  };
  Lanes Visible(size_t block, int w, bool sinks) const {
    const int64_t start = static_cast<int64_t>(block) * kBlockTokens;
    int64_t begin = 0, end = Position(w) + 1 - start;
    if (job_.window != 0) begin = Position(w) + 1 - job_.window - start;
    if (block == 0) {
      if (sinks) {
        end = std::min<int64_t>(end, kPinnedTokens);
      } else {
        begin = std::max<int64_t>(begin, kPinnedTokens);
      }
    } else if (sinks) {
      end = 0;
    }
    const auto clamp = [](int64_t v) {
      return static_cast<int>(std::clamp<int64_t>(v, 0, kBlockTokens));
    };
    return {clamp(begin), std::max(clamp(begin), clamp(end))};
  }
  // Does any query of the window see a token of `block`?
  bool Seen(size_t block) const {
    const int64_t start = static_cast<int64_t>(block) * kBlockTokens;
    if (Position(window_ - 1) < start) return false;
    return job_.window == 0 || Position(0) + 1 - job_.window < start + kBlockTokens;
  }

  // How many tokens besides sinks query w sees: all of them, or the held ones.
  float VisibleCount(int w) const {
    int64_t end = Position(w) + 1;
    if (job_.lse.empty()) end = std::min(end, static_cast<int64_t>(views_.size()) * kBlockTokens);
    int64_t begin = kPinnedTokens;
    if (job_.window != 0) begin = std::max(begin, Position(w) + 1 - job_.window);
    return static_cast<float>(std::max<int64_t>(end - begin, 0));
  }

  // K of a tile with its pins, then the logits of all the group's queries.
  void Logits(size_t block, int head) {
    const SegmentView& view = views_[block];
    const TileView tile = view.tile(head);
    const Basis* basis = job_.chain[block].basis;
    TileEnv env{ops_, scratch_, d_, view.id().head0 + head, basis, nullptr};
    if (kind::IsLevel(tile.k_kind) && basis->info().frame == Frame::kPre)
      env.rope = rope_.Get(job_.chain[block].rope, block * uint64_t{kBlockTokens});
    if (tile.k_kind == kind::kNone) {
      std::fill_n(scratch_.x, d_ * kLanes, 0.0f);
    } else {
      DecodeK(env, tile, view.id().dtype, view.pins(), scratch_.x);
    }
    int rank = 0;
    for (uint64_t left = view.pins(); left != 0; left &= left - 1)
      SetLane(scratch_.x, std::countr_zero(left), view.pin_row(rank++, head, false),
              view.id().dtype, d_);
    ops_.transform(q_.data(), d_, static_cast<int>(q_.size()) / d_, d_, nullptr, scratch_.x,
                   logits_.data()->lanes);
    // A dropped token is not there: the mean that a decoder serves for it gets no attention.
    for (uint64_t gone = ~(tile.live | view.pins()); gone != 0; gone &= gone - 1)
      for (Plane& row : logits_) row.lanes[std::countr_zero(gone)] = kUnseen;
  }

  // lse_[w][g]: log of the sum of exp over every visible token but the sinks.
  void FindDenominators(int head) {
    const size_t rows = static_cast<size_t>(window_ * group_);
    max_.assign(rows, kNoMass);
    sum_.assign(rows, 0.0f);
    lse_.assign(rows, kNoMass);
    const bool given = !job_.lse.empty();
    const size_t blocks = given ? 1 : views_.size();  // given: only what the sinks take of it
    for (size_t block = 0; block < blocks; ++block) {
      if (!Seen(block)) continue;
      Logits(block, head);
      for (size_t r = 0; r < rows; ++r) {
        const Lanes lanes = Visible(block, static_cast<int>(r) / group_, given);
        ops_.softmax_reduce(logits_[r].lanes, lanes.begin, lanes.end, &max_[r], &sum_[r]);
      }
    }
    for (size_t r = 0; r < rows; ++r) {
      const float mass = sum_[r] > 0 ? max_[r] + std::log(sum_[r]) : kNoMass;
      if (!given) {
        lse_[r] = mass;
        continue;
      }
      const size_t w = r / static_cast<size_t>(group_), g = r % static_cast<size_t>(group_);
      const float lse = job_.lse[w * job_.q_heads + static_cast<size_t>(head * group_) + g];
      // A query that gives the sinks everything says nothing about the rest: bounded below.
      lse_[r] = lse + std::log(std::max(1.0f - std::exp(mass - lse), 1e-4f));
    }
  }

  void AddWeights(int head) {
    const size_t length = views_.size() * kBlockTokens;
    float* out = &job_.relative[static_cast<size_t>(head) * length];
    std::fill_n(out, length, 0.0f);
    for (size_t block = 0; block < views_.size(); ++block) {
      if (!Seen(block)) continue;
      Logits(block, head);
      float sum[kLanes] = {};
      int count[kLanes] = {};
      for (int w = 0; w < window_; ++w) {
        const Lanes lanes = Visible(block, w, false);
        if (lanes.begin == lanes.end) continue;
        float weight[kLanes] = {};
        for (int g = 0; g < group_; ++g) {
          const size_t r = static_cast<size_t>(w * group_ + g);
          ops_.softmax_max(logits_[r].lanes, lanes.begin, lanes.end, lse_[r], weight);
        }
        const float visible = VisibleCount(w);
        for (int t = lanes.begin; t < lanes.end; ++t) {
          sum[t] += weight[t] * visible;
          ++count[t];
        }
      }
      for (int t = 0; t < kLanes; ++t)
        if (count[t] > 0)
          out[block * kBlockTokens + static_cast<size_t>(t)] =
              sum[t] / static_cast<float>(count[t]);
    }
  }

  const TileOps& ops_;
  Scratch& scratch_;
  RopeOfBlock& rope_;
  ScoreJob& job_;
  std::vector<SegmentView> views_;
  std::vector<float> q_, max_, sum_, lse_;
  std::vector<Plane> logits_;
  int d_ = 0, kv_heads_ = 0, window_ = 0, group_ = 0;
};

}  // namespace

void Score(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, ScoreJob& job) {
  job.status = Scorer(ops, scratch, rope, job).Run();
}

}  // namespace dyna::cpu
