// Transcode: fewer bits. Within a basis, and between widths of V, in the coded domain: decoded to
// y' or z' and quantised again, no transform. From raw, fp8 and plain to a level: decode, encode.
#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cpu/jobs.h"

namespace dyna::cpu {
namespace {

bool IsPlain(uint8_t k) { return k == kind::kPlain8 || k == kind::kPlain4; }
bool IsCodedV(uint8_t v) { return v >= kind::VBits(1) && v <= kind::VBits(8); }

class Transcoder {
 public:
  Transcoder(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, TranscodeJob& job)
      : ops_(ops),
        scratch_(scratch),
        rope_(rope),
        job_(job),
        plan_(job.plan.begin(), job.plan.end()) {}

  Status Run() {
    DYNA_ASSIGN_OR_RETURN(view_, ParseSegment(job_.segment, job_.basis));
    id_ = view_.id();
    if (id_.basis == 0 && job_.basis != nullptr) id_.basis = job_.basis->name();
    DYNA_RETURN_IF_ERROR(CheckPlan(id_, plan_, job_.basis));
    if (!job_.measure.empty() && job_.measure.size() != id_.kv_heads)
      return Invalid("measure: not of kv_heads entries");
    for (int i = 0; i < id_.kv_heads; ++i)
      DYNA_RETURN_IF_ERROR(CheckFewer(i, view_.tile(i), plan_[static_cast<size_t>(i)]));
    for (;;) {  // again where a level is not possible and its tile stays as it was (formats 2)
      job_.bytes = static_cast<uint32_t>(EncodedBytes(id_, plan_, view_.pins(), job_.basis));
      DYNA_ASSIGN_OR_RETURN(SegmentWriter writer,
                            SegmentWriter::Create(job_.out, id_, plan_, view_.pins(), job_.basis));
      bool replan = false;
      added_ = 0;
      for (int i = 0; i < id_.kv_heads && !replan; ++i)
        DYNA_RETURN_IF_ERROR(RecodeHead(i, &writer, &replan));
      if (replan) continue;
      CopyPins(&writer);
      job_.nmse = view_.nmse() + static_cast<float>(added_ / (2 * id_.kv_heads));
      const bool estimate = added_ > 0 || view_.error_is_estimate();
      writer.Finish(job_.nmse, estimate ? kSegmentErrorIsEstimate : 0);
      return {};
    }
  }

 private:
  Status CheckFewer(int i, const TileView& now, const TilePlan& plan) const {
    const auto bad = [&](const std::string& what) {
      return Invalid("layer " + std::to_string(id_.layer) + ", head " +
                     std::to_string(id_.head0 + i) + ": " + what);
    };
    if ((plan.live & ~now.live) != 0) return bad("a dropped token cannot come back");
    if (plan.k_kind != now.k_kind) {
      const bool levels = kind::IsLevel(plan.k_kind) && kind::IsLevel(now.k_kind);
      const size_t bytes =
          *KTileBytes(plan.k_kind, id_.head_dim, id_.dtype, job_.basis, id_.head0 + i);
      if (levels ? plan.k_kind > now.k_kind : bytes >= now.k.size())
        return bad("K would not get fewer bits");
    }
    if (plan.v_kind != now.v_kind) {
      if (*VTileBytes(plan.v_kind, id_.head_dim, id_.dtype) >= now.v.size())
        return bad("V would not get fewer bits");
    }
    return {};
  }

  Status RecodeHead(int i, SegmentWriter* writer, bool* replan) {
    const TileView now = view_.tile(i);
    TilePlan& plan = plan_[static_cast<size_t>(i)];
    TileEnv env{ops_, scratch_, id_.head_dim, id_.head0 + i, job_.basis, nullptr};
    TileError k, v;
    const bool same_live = plan.live == now.live;
    if (plan.k_kind == now.k_kind && (same_live || plan.k_kind == kind::kNone)) {
      std::memcpy(writer->k(i).data(), now.k.data(), now.k.size());
    } else {
      const QuantiseResult result = RecodeK(&env, now, plan, writer->k(i), &k);
      if (result == QuantiseResult::kNotF16)
        return NotCodable(id_, env.head, "K", scratch_.x, id_.head_dim);
      if (result == QuantiseResult::kAboveLog8) {
        if (plan.k_kind == now.k_kind)  // fewer rows at one level: nothing left to stay on
          return NotCodable(id_, env.head, "a scale of K", scratch_.x, id_.head_dim);
        plan.k_kind = now.k_kind;
        *replan = true;
        return {};
      }
    }
    if (plan.v_kind == now.v_kind && (same_live || plan.v_kind == kind::kNone)) {
      std::memcpy(writer->v(i).data(), now.v.data(), now.v.size());
      writer->set_v_exp(i, now.v_exp);
    } else {
      int8_t v_exp = 0;
      const QuantiseResult result = RecodeV(env, now, plan, writer->v(i), &v_exp, &v);
      if (result != QuantiseResult::kOk)
        return NotCodable(id_, env.head, "V", scratch_.x, id_.head_dim);
      writer->set_v_exp(i, v_exp);
    }
    for (const TileError& e : {k, v})
      if (e.energy > 0) added_ += e.error / e.energy;
    if (!job_.measure.empty())
      job_.measure[static_cast<size_t>(i)] = {k.energy, k.error, v.energy, v.error};
    return {};
  }

  // Drops rows of a tile in row order.
  void Narrow(float* planes, int d, const TileView& now, const TilePlan& plan) const {
    if (plan.live == now.live) return;
    PackLanes(planes, d, Compress(plan.live, now.live));
  }

  QuantiseResult RecodeK(TileEnv* env, const TileView& now, const TilePlan& plan,
                         std::span<std::byte> out, TileError* error) {
    const int d = env->d;
    const uint64_t rows = CountedRows(plan.live, view_.pins());
    if (plan.k_kind == kind::kNone) return Lost(error);
    if (plan.k_kind == kind::kRaw) return CopyRawRows(now.k, now, plan, out);
    const bool coded = (kind::IsLevel(now.k_kind) && kind::IsLevel(plan.k_kind)) ||
                       (IsPlain(now.k_kind) && IsPlain(plan.k_kind));
    if (!coded) {
      const bool level = kind::IsLevel(plan.k_kind) || kind::IsLevel(now.k_kind);
      if (level && job_.basis->info().frame == Frame::kPre)
        env->rope = rope_.Get(job_.rope, uint64_t{id_.block_index} * kBlockTokens);
      DecodeK(*env, now, id_.dtype, view_.pins(), scratch_.x);
      return EncodeK(*env, plan.k_kind, plan.live, view_.pins(), scratch_.x, out, error);
    }
    int run;
    const auto from = WidthsOf(*env, now.k_kind, &run);
    DequantiseRuns(ops_, now.k, d, d, from, run, scratch_.x);
    Narrow(scratch_.x, d, now, plan);
    const auto to = WidthsOf(*env, plan.k_kind, &run);
    ErrorSums sums;
    const QuantiseResult result = QuantiseRuns(ops_, scratch_.x, d, to, run, rows, out, &sums);
    *error = {sums.energy, sums.error};
    return result;
  }

  QuantiseResult RecodeV(const TileEnv& env, const TileView& now, const TilePlan& plan,
                         std::span<std::byte> out, int8_t* v_exp, TileError* error) {
    const uint64_t rows = CountedRows(plan.live, view_.pins());
    if (plan.v_kind == kind::kNone) return Lost(error);
    if (plan.v_kind == kind::kRaw) return CopyRawRows(now.v, now, plan, out);
    if (!IsCodedV(now.v_kind) || !IsCodedV(plan.v_kind)) {
      DecodeV(env, now, id_.dtype, view_.pins(), scratch_.x);
      return EncodeV(env, plan.v_kind, plan.live, view_.pins(), scratch_.x, out, v_exp, error);
    }
    const int bits = now.v_kind - kind::VBits(0), to = plan.v_kind - kind::VBits(0);
    ops_.dequantise_v(now.v.data(), now.v.data() + GainBytes(bits), env.d, bits, now.v_exp,
                      scratch_.x);
    Narrow(scratch_.x, env.d, now, plan);
    ErrorSums sums;
    const QuantiseResult result = ops_.quantise_v(scratch_.x, env.d, to, rows, out.data(),
                                                  out.data() + GainBytes(to), v_exp, &sums);
    *error = {sums.energy, sums.error};
    return result;
  }

  // A masked tile loses all that it held.
  static QuantiseResult Lost(TileError* error) {
    *error = {1, 1};
    return QuantiseResult::kOk;
  }

  QuantiseResult CopyRawRows(std::span<const std::byte> from, const TileView& now,
                             const TilePlan& plan, std::span<std::byte> out) const {
    const size_t row = out.size() / kBlockTokens;
    std::byte* to = out.data();
    for (uint64_t left = Compress(plan.live, now.live); left != 0; left &= left - 1, to += row)
      std::memcpy(to, from.data() + static_cast<size_t>(std::countr_zero(left)) * row, row);
    std::fill(to, out.data() + out.size(), std::byte{0});
    return QuantiseResult::kOk;
  }

  void CopyPins(SegmentWriter* writer) const {
    const int pins = std::popcount(view_.pins());
    const size_t row = static_cast<size_t>(id_.head_dim * DTypeBytes(id_.dtype));
    if (pins == 0) return;
    std::memcpy(writer->pin_row(0, 0, false), view_.pin_row(0, 0, false),
                static_cast<size_t>(pins * id_.kv_heads * 2) * row);
  }

  const TileOps& ops_;
  Scratch& scratch_;
  RopeOfBlock& rope_;
  TranscodeJob& job_;
  std::vector<TilePlan> plan_;
  SegmentView view_;
  SegmentId id_;
  double added_ = 0;  // sum of error / energy of what was recoded
};

}  // namespace

void Transcode(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, TranscodeJob& job) {
  job.status = Transcoder(ops, scratch, rope, job).Run();
}

}  // namespace dyna::cpu
