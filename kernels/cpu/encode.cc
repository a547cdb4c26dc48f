// Encode: full precision in, a segment out.
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "kernels/cpu/jobs.h"

namespace dyna::cpu {
namespace {

// K or V of one head in the source.
struct Side {
  const std::byte* at;
  int64_t stride;
  bool v;
};

Side SideOf(const KvView& source, int index, bool v) {
  return v ? Side{source.v + index * source.v_head_stride, source.v_token_stride, true}
           : Side{source.k + index * source.k_head_stride, source.k_token_stride, false};
}

class Encoder {
 public:
  Encoder(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, EncodeJob& job)
      : ops_(ops),
        scratch_(scratch),
        rope_(rope),
        job_(job),
        plan_(job.plan.begin(), job.plan.end()) {}

  Status Run() {
    const SegmentId& id = job_.id;
    DYNA_RETURN_IF_ERROR(CheckPlan(id, plan_, job_.basis));
    if (job_.source.dtype != id.dtype) return Invalid("source: dtype is not the context's");
    if (job_.source.k == nullptr || job_.source.v == nullptr) return Invalid("source: no memory");
    if (!job_.measure.empty() && job_.measure.size() != id.kv_heads)
      return Invalid("measure: not of kv_heads entries");
    // A level whose scale is above LOG8's top becomes plain8 (formats 2), which needs more room:
    // plan again. At most once for each head.
    for (;;) {
      job_.bytes = static_cast<uint32_t>(EncodedBytes(id, plan_, job_.pins, job_.basis));
      DYNA_ASSIGN_OR_RETURN(SegmentWriter writer,
                            SegmentWriter::Create(job_.out, id, plan_, job_.pins, job_.basis));
      bool replan = false;
      error_sum_ = 0;
      for (int i = 0; i < id.kv_heads && !replan; ++i)
        DYNA_RETURN_IF_ERROR(EncodeHead(i, &writer, &replan));
      if (replan) continue;
      job_.nmse = static_cast<float>(error_sum_ / (2 * id.kv_heads));
      writer.Finish(job_.nmse, 0);
      return {};
    }
  }

 private:
  Status EncodeHead(int i, SegmentWriter* writer, bool* replan) {
    TilePlan& tile = plan_[static_cast<size_t>(i)];
    TileEnv env{ops_, scratch_, job_.id.head_dim, job_.id.head0 + i, job_.basis, nullptr};
    if (kind::IsLevel(tile.k_kind) && job_.basis->info().frame == Frame::kPre)
      env.rope = rope_.Get(job_.rope, uint64_t{job_.id.block_index} * kBlockTokens);
    TileError k, v;
    DYNA_RETURN_IF_ERROR(EncodeSide(env, tile.k_kind, tile.live, i, false, writer, &k, replan));
    if (*replan) {
      tile.k_kind = kind::kPlain8;
      return {};
    }
    DYNA_RETURN_IF_ERROR(EncodeSide(env, tile.v_kind, tile.live, i, true, writer, &v, replan));
    if (!job_.measure.empty())
      job_.measure[static_cast<size_t>(i)] = {k.energy, k.error, v.energy, v.error};
    return {};
  }

  Status EncodeSide(const TileEnv& env, uint8_t tile_kind, uint64_t live, int i, bool v,
                    SegmentWriter* writer, TileError* error, bool* replan) {
    const SegmentId& id = job_.id;
    const Side side = SideOf(job_.source, i, v);
    if (tile_kind == kind::kRaw || tile_kind == kind::kNone) {
      if (tile_kind == kind::kNone) error_sum_ += 1;
      CopyRaw(side, tile_kind, live, i, writer);
      return {};
    }
    const char* name = v ? "V" : "K";
    float* x = scratch_.x;
    const int bad = ops_.load(side.at, side.stride, id.dtype, id.head_dim, x);
    if (bad >= 0) return AtToken(id, env.head, bad, std::string(name) + " is not finite");
    // From the loaded copy: exact, since its values came from this dtype.
    int rank = 0;
    for (uint64_t left = job_.pins; left != 0; left &= left - 1)
      GetLane(x, std::countr_zero(left), writer->pin_row(rank++, i, v), id.dtype, id.head_dim);
    int8_t v_exp = 0;
    const QuantiseResult result =
        v ? EncodeV(env, tile_kind, live, job_.pins, x, writer->v(i), &v_exp, error)
          : EncodeK(env, tile_kind, live, job_.pins, x, writer->k(i), error);
    if (result == QuantiseResult::kAboveLog8) {
      *replan = true;
      return {};
    }
    if (result == QuantiseResult::kNotF16) return NotCodable(id, env.head, name, x, id.head_dim);
    if (v) writer->set_v_exp(i, v_exp);
    if (error->energy > 0) error_sum_ += error->error / error->energy;
    return {};
  }

  void CopyRaw(const Side& side, uint8_t tile_kind, uint64_t live, int i, SegmentWriter* writer) {
    const size_t row = static_cast<size_t>(job_.id.head_dim * DTypeBytes(job_.id.dtype));
    int rank = 0;
    for (uint64_t left = job_.pins; left != 0; left &= left - 1)
      std::memcpy(writer->pin_row(rank++, i, side.v),
                  side.at + std::countr_zero(left) * side.stride, row);
    if (tile_kind == kind::kNone) return;
    const std::span<std::byte> out = side.v ? writer->v(i) : writer->k(i);
    if (live == ~uint64_t{0} && side.stride == static_cast<int64_t>(row)) {
      std::memcpy(out.data(), side.at, out.size());
      return;
    }
    std::byte* to = out.data();
    for (uint64_t left = live; left != 0; left &= left - 1, to += row)
      std::memcpy(to, side.at + std::countr_zero(left) * side.stride, row);
    std::fill(to, out.data() + out.size(), std::byte{0});
  }

  const TileOps& ops_;
  Scratch& scratch_;
  RopeOfBlock& rope_;
  EncodeJob& job_;
  std::vector<TilePlan> plan_;
  double error_sum_ = 0;  // of error / energy
};

}  // namespace

void Encode(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, EncodeJob& job) {
  job.status = Encoder(ops, scratch, rope, job).Run();
}

}  // namespace dyna::cpu
