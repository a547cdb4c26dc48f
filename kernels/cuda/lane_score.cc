// Window attention for chains in host memory: their K tiles to the device, decoded there a part of
// the chain at a time, scored, and only the scores back.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cuda/host_rows.h"
#include "kernels/cuda/lane.h"
#include "kernels/cuda/score_kernels.h"
#include "kernels/score_plan.h"
#include "kernels/segment_layout.h"

namespace dyna::cuda {
namespace {

// Decoded K on the device at once.
constexpr size_t kDecodedBytes = size_t{64} << 20;

// Blocks that the window sees: one after the other.
struct SeenBlocks {
  size_t begin = 0, end = 0;
};
SeenBlocks BlocksOf(const ScorePlan& plan) {
  SeenBlocks seen;
  seen.end = plan.views.size();
  while (seen.end > 0 && !plan.Seen(seen.end - 1)) --seen.end;
  while (seen.begin < seen.end && !plan.Seen(seen.begin)) ++seen.begin;
  return seen;
}

// What a segment needs for its K: header, directory and pins as they are, then K's tiles alone.
size_t BytesOfK(SegmentPlace* place) {
  size_t at = place->bytes;
  for (const SegmentPlace::Tile& tile : place->tiles)
    if (tile.k_bytes > 0) at = std::min<size_t>(at, tile.k_at);
  for (SegmentPlace::Tile& tile : place->tiles) at += tile.k_bytes;
  return at;
}

}  // namespace

// The arrays of one job, staged.
struct Lane::Scoring {
  ScorePlan plan;
  ScoreRows rows;
  std::vector<SegmentPlace> places;  // of the blocks seen; tiles of K close to each other
  std::vector<size_t> at;            // in staging
  SeenBlocks seen;
  const TokenRange *sinks = nullptr, *others = nullptr;
  const float *given = nullptr, *visible = nullptr;
  const uint64_t* alive = nullptr;  // [blocks seen][heads]
  size_t blocks_at_once = 1;
};

Status Lane::StageScore(const ScoreJob& job, Scoring* s) {
  const ScorePlan& plan = s->plan;
  const auto heads = static_cast<size_t>(plan.kv_heads), d = static_cast<size_t>(plan.d);
  const auto slots = std::bit_ceil(static_cast<unsigned>(plan.group));
  const size_t rows = (static_cast<size_t>(plan.queries) * slots + 15) / 16 * 16;
  const size_t positions = rows / slots, blocks = s->seen.end - s->seen.begin;
  size_t bytes = Staging::RoundUp(heads * rows * d * 4) + Staging::RoundUp(heads * rows * 4) +
                 2 * Staging::RoundUp(positions * sizeof(TokenRange)) +
                 Staging::RoundUp(positions * 4) + Staging::RoundUp(blocks * heads * 8);
  for (size_t b = s->seen.begin; b < s->seen.end; ++b) {
    s->places.push_back(PlaceOf(plan.views[b]));
    bytes += Staging::RoundUp(BytesOfK(&s->places.back()));
  }
  DYNA_RETURN_IF_ERROR(in_.Begin(bytes));
  const auto take = [&](size_t size) {
    const size_t at = in_.Take(size);
    std::memset(in_.host(at), 0, size);
    return at;
  };
  const size_t q_at = take(heads * rows * d * 4), given_at = take(heads * rows * 4);
  const size_t sinks_at = take(positions * sizeof(TokenRange));
  const size_t others_at = take(positions * sizeof(TokenRange));
  const size_t visible_at = take(positions * 4), alive_at = take(blocks * heads * 8);
  auto* q = reinterpret_cast<float*>(in_.host(q_at));
  auto* given = reinterpret_cast<float*>(in_.host(given_at));
  const auto group = static_cast<size_t>(plan.group);
  for (size_t w = 0; w < static_cast<size_t>(plan.queries); ++w) {
    const auto range = [&](bool sinks) {
      const ScorePlan::Tokens t = plan.Visible(static_cast<int>(w), sinks);
      return TokenRange{static_cast<int32_t>(std::min(t.begin, plan.length())),
                        static_cast<int32_t>(std::min(t.end, plan.length()))};
    };
    reinterpret_cast<TokenRange*>(in_.host(sinks_at))[w] = range(true);
    reinterpret_cast<TokenRange*>(in_.host(others_at))[w] = range(false);
    reinterpret_cast<float*>(in_.host(visible_at))[w] =
        plan.VisibleCount(static_cast<int>(w), job.lse.empty());
    for (size_t h = 0; h < heads; ++h)
      for (size_t g = 0; g < group; ++g) {
        const size_t row = h * rows + w * slots + g, from = w * job.q_heads + h * group + g;
        for (size_t c = 0; c < d; ++c) q[row * d + c] = job.scale * job.queries[from * d + c];
        if (!job.lse.empty()) given[row] = job.lse[from];
      }
  }
  auto* alive = reinterpret_cast<uint64_t*>(in_.host(alive_at));
  for (size_t b = 0; b < blocks; ++b) {
    SegmentPlace& place = s->places[b];
    const std::byte* from = plan.views[s->seen.begin + b].bytes().data();
    const size_t size = BytesOfK(&place);
    s->at.push_back(in_.Take(size));
    size_t end = size;
    for (const SegmentPlace::Tile& tile : place.tiles) end -= tile.k_bytes;
    std::byte* to = in_.host(s->at.back());
    std::memcpy(to, from, end);
    for (size_t h = 0; h < heads; ++h) {
      SegmentPlace::Tile& tile = place.tiles[h];
      std::memcpy(to + end, from + tile.k_at, tile.k_bytes);
      tile.k_at = static_cast<uint32_t>(end);
      end += tile.k_bytes;
      alive[b * heads + h] = tile.plan.live | place.pins;
    }
  }
  s->rows = {reinterpret_cast<const float*>(in_.device(q_at)),
             static_cast<int>(rows),
             static_cast<int>(slots),
             plan.group,
             plan.kv_heads,
             plan.d,
             nullptr};
  s->sinks = reinterpret_cast<const TokenRange*>(in_.device(sinks_at));
  s->others = reinterpret_cast<const TokenRange*>(in_.device(others_at));
  s->visible = reinterpret_cast<const float*>(in_.device(visible_at));
  if (!job.lse.empty()) s->given = reinterpret_cast<const float*>(in_.device(given_at));
  s->alive = reinterpret_cast<const uint64_t*>(in_.device(alive_at));
  s->blocks_at_once = std::max<size_t>(1, kDecodedBytes / (heads * kBlockTokens * d * 4));
  return in_.In(stream_.get());
}

// K of blocks first .. first + count of those seen, into decoded_.
Status Lane::DecodeForScore(const ScoreJob& job, const Scoring& s, size_t first, size_t count) {
  const size_t tile = static_cast<size_t>(kBlockTokens * s.plan.d) * 4;
  const auto heads = static_cast<size_t>(s.plan.kv_heads);
  DYNA_RETURN_IF_ERROR(decoded_.Reserve(count * heads * tile));
  std::vector<DeviceDecode> batch(count);
  for (size_t i = 0; i < count; ++i) {
    const ScoreJob::Block& block = job.chain[s.seen.begin + first + i];
    const SegmentPlace& place = s.places[first + i];
    DeviceDecode& d = batch[i];
    d.place = &place;
    d.segment = in_.device(s.at[first + i]);
    DYNA_ASSIGN_OR_RETURN(d.basis, cache_.Get(block.basis));
    DYNA_ASSIGN_OR_RETURN(d.rope, cache_.Get(block.rope));
    d.head_begin = place.id.head0;
    d.head_end = static_cast<uint16_t>(place.id.head0 + place.id.kv_heads);
    d.k_only = true;
    d.target.dtype = DType::kF32;
    d.target.k.base = decoded_.data() + i * heads * tile;
    d.target.k.token_stride = s.plan.d * 4;
    d.target.k.head_stride = static_cast<int64_t>(tile);
  }
  // The last plan's upload is over: every plan is followed by a wait.
  batch_.PlanDecode(batch);
  for (const DeviceDecode& d : batch) DYNA_RETURN_IF_ERROR(d.status);
  DYNA_RETURN_IF_ERROR(batch_.Upload(stream_.get()));
  return batch_.Launch(stream_.get());
}

// Calls use(blocks) for the blocks seen below `end`, a part at a time, K decoded.
template <typename Use>
Status Lane::InParts(const ScoreJob& job, const Scoring& s, size_t end, const Use& use) {
  for (size_t first = 0; first < end; first += s.blocks_at_once) {
    const size_t count = std::min(s.blocks_at_once, end - first);
    DYNA_RETURN_IF_ERROR(DecodeForScore(job, s, first, count));
    ScoreBlocks blocks;
    blocks.k = reinterpret_cast<const float*>(decoded_.data());
    blocks.alive = s.alive + first * static_cast<size_t>(s.plan.kv_heads);
    blocks.first = static_cast<int>(s.seen.begin + first);
    blocks.count = static_cast<int>(count);
    DYNA_RETURN_IF_ERROR(use(blocks));
    DYNA_RETURN_IF_ERROR(WaitFor(stream_.get()));
  }
  return {};
}

Status Lane::ScoreOne(ScoreJob* job) {
  Scoring s;
  auto plan = ScorePlan::Of(*job);
  job->status = plan.status();
  if (!plan.ok()) return {};
  s.plan = std::move(*plan);
  s.seen = BlocksOf(s.plan);
  DYNA_RETURN_IF_ERROR(StageScore(*job, &s));
  const size_t blocks = s.seen.end - s.seen.begin;
  const auto row_count = static_cast<size_t>(s.rows.heads) * static_cast<size_t>(s.rows.rows);
  DYNA_RETURN_IF_ERROR(out_.Begin(job->relative.size_bytes()));
  const size_t out = out_.Take(job->relative.size_bytes());
  DYNA_RETURN_IF_ERROR(out_.Zero(stream_.get()));  // blocks that nobody sees
  DYNA_RETURN_IF_ERROR(mass_.Begin(row_count * sizeof(Mass)));
  const size_t mass_at = mass_.Take(row_count * sizeof(Mass));
  std::fill_n(reinterpret_cast<Mass*>(mass_.host(mass_at)), row_count,
              Mass{-std::numeric_limits<float>::infinity(), 0});
  DYNA_RETURN_IF_ERROR(mass_.In(stream_.get()));
  auto* mass = reinterpret_cast<Mass*>(mass_.device(mass_at));
  DYNA_RETURN_IF_ERROR(
      partial_.Reserve(std::min(blocks, s.blocks_at_once) * row_count * sizeof(Mass)));
  // Given a denominator, only what the sinks take of it is looked for.
  const bool given = s.given != nullptr;
  s.rows.seen = given ? s.sinks : s.others;
  const size_t with_mass = !given ? blocks : s.seen.begin == 0 ? std::min<size_t>(1, blocks) : 0;
  DYNA_RETURN_IF_ERROR(InParts(*job, s, with_mass, [&](const ScoreBlocks& part) -> Status {
    if (LaunchScoreMass(s.rows, part, reinterpret_cast<Mass*>(partial_.data()), mass,
                        stream_.get()))
      return {};
    return LastError("launch of score");
  }));
  s.rows.seen = s.others;
  DYNA_RETURN_IF_ERROR(InParts(*job, s, blocks, [&](const ScoreBlocks& part) -> Status {
    if (LaunchScoreWeights(s.rows, part, mass, s.given, s.visible,
                           reinterpret_cast<float*>(out_.device(out)),
                           static_cast<int>(s.plan.length()), stream_.get()))
      return {};
    return LastError("launch of score");
  }));
  DYNA_RETURN_IF_ERROR(out_.Out(stream_.get()));
  DYNA_RETURN_IF_ERROR(WaitFor(stream_.get()));
  std::memcpy(job->relative.data(), out_.host(out), job->relative.size_bytes());
  return {};
}

Status Lane::Score(std::span<ScoreJob*> jobs) {
  for (ScoreJob* job : jobs) DYNA_RETURN_IF_ERROR(ScoreOne(job));
  return {};
}

}  // namespace dyna::cuda
