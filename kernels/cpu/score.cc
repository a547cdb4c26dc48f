// Window attention over the held blocks (policy 1), without a full matrix: one pass over the chain
// for each query's denominator, one for the weights, each with a tile's logits at hand.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/jobs.h"
#include "kernels/score_plan.h"

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
    DYNA_ASSIGN_OR_RETURN(plan_, ScorePlan::Of(job_));
    d_ = plan_.d;
    for (int head = 0; head < plan_.kv_heads; ++head) {
      GatherQueries(head);
      FindDenominators(head);
      AddWeights(head);
    }
    return {};
  }

 private:
  // Queries of a head's group, scaled: [W][group][d], padded to a multiple of 4 rows.
  void GatherQueries(int head) {
    const int rows = plan_.queries * plan_.group;
    q_.assign(static_cast<size_t>((rows + 3) / 4 * 4 * d_), 0.0f);
    for (int w = 0; w < plan_.queries; ++w) {
      const float* from =
          &job_.queries[static_cast<size_t>((w * job_.q_heads + head * plan_.group) * d_)];
      float* to = &q_[static_cast<size_t>(w * plan_.group * d_)];
      for (int i = 0; i < plan_.group * d_; ++i) to[i] = job_.scale * from[i];
    }
    logits_.resize(static_cast<size_t>((rows + 3) / 4 * 4));
  }

  // Lanes of `block` that query w sees: [begin, end).
  struct Lanes {
    int begin, end;
  };
  Lanes Visible(size_t block, int w, bool sinks) const {
    const int64_t start = static_cast<int64_t>(block) * kBlockTokens;
    const ScorePlan::Tokens seen = plan_.Visible(w, sinks);
    const auto clamp = [start](int64_t t) {
      return static_cast<int>(std::clamp<int64_t>(t - start, 0, kBlockTokens));
    };
    return {clamp(seen.begin), clamp(seen.end)};
  }

  // K of a tile with its pins, then the logits of all the group's queries.
  void Logits(size_t block, int head) {
    const SegmentView& view = plan_.views[block];
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
    const size_t rows = static_cast<size_t>(plan_.queries * plan_.group);
    max_.assign(rows, kNoMass);
    sum_.assign(rows, 0.0f);
    lse_.assign(rows, kNoMass);
    const bool given = !job_.lse.empty();
    const size_t blocks = given ? 1 : plan_.views.size();  // given: only what the sinks take of it
    for (size_t block = 0; block < blocks; ++block) {
      if (!plan_.Seen(block)) continue;
      Logits(block, head);
      for (size_t r = 0; r < rows; ++r) {
        const Lanes lanes = Visible(block, static_cast<int>(r) / plan_.group, given);
        ops_.softmax_reduce(logits_[r].lanes, lanes.begin, lanes.end, &max_[r], &sum_[r]);
      }
    }
    for (size_t r = 0; r < rows; ++r) {
      const float mass = sum_[r] > 0 ? max_[r] + std::log(sum_[r]) : kNoMass;
      if (!given) {
        // Of dropped tokens alone it would give them their weight back.
        lse_[r] = max_[r] > .5f * kUnseen ? mass : 0;
        continue;
      }
      const size_t w = r / static_cast<size_t>(plan_.group),
                   g = r % static_cast<size_t>(plan_.group);
      const float lse = job_.lse[w * job_.q_heads + static_cast<size_t>(head * plan_.group) + g];
      // A query that gives the sinks everything says nothing about the rest: bounded below.
      lse_[r] = lse + std::log(std::max(1.0f - std::exp(mass - lse), 1e-4f));
    }
  }

  void AddWeights(int head) {
    const size_t length = plan_.views.size() * kBlockTokens;
    float* out = &job_.relative[static_cast<size_t>(head) * length];
    std::fill_n(out, length, 0.0f);
    for (size_t block = 0; block < plan_.views.size(); ++block) {
      if (!plan_.Seen(block)) continue;
      Logits(block, head);
      float sum[kLanes] = {};
      int count[kLanes] = {};
      for (int w = 0; w < plan_.queries; ++w) {
        const Lanes lanes = Visible(block, w, false);
        if (lanes.begin == lanes.end) continue;
        float weight[kLanes] = {};
        for (int g = 0; g < plan_.group; ++g) {
          const size_t r = static_cast<size_t>(w * plan_.group + g);
          ops_.softmax_max(logits_[r].lanes, lanes.begin, lanes.end, lse_[r], weight);
        }
        const float visible = plan_.VisibleCount(w, job_.lse.empty());
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
  ScorePlan plan_;
  std::vector<float> q_, max_, sum_, lse_;
  std::vector<Plane> logits_;
  int d_ = 0;
};

}  // namespace

void Score(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, ScoreJob& job) {
  job.status = Scorer(ops, scratch, rope, job).Run();
}

}  // namespace dyna::cpu
