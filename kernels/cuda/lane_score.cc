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
size_t BytesBeforeK(const SegmentPlace& place) {
  size_t at = place.bytes;
  for (const SegmentPlace::Tile& tile : place.tiles)
    if (tile.k_bytes > 0) at = std::min<size_t>(at, tile.k_at);
  return at;
}
size_t BytesOfK(const SegmentPlace& place) {
  size_t at = BytesBeforeK(place);
  for (const SegmentPlace::Tile& tile : place.tiles) at += tile.k_bytes;
  return at;
}
// Copies that much, and says where the tiles are now.
void MoveK(const std::byte* from, std::byte* to, SegmentPlace* place) {
  size_t end = BytesBeforeK(*place);
  std::memcpy(to, from, end);
  for (SegmentPlace::Tile& tile : place->tiles) {
    std::memcpy(to + end, from + tile.k_at, tile.k_bytes);
    tile.k_at = static_cast<uint32_t>(end);
    end += tile.k_bytes;
  }
}

}  // namespace

// The arrays of one job, staged.
struct Lane::Scoring {
  ScorePlan plan;
  ScoreRows rows;
  std::vector<SegmentPlace> places;  // of the blocks seen; tiles of K close to each other
  SeenBlocks seen;
  const TokenRange *sinks = nullptr, *others = nullptr;
  const float *given = nullptr, *visible = nullptr;
  const uint64_t* alive = nullptr;  // [blocks seen][heads]
  size_t blocks_at_once = 1;

  size_t parts() const { return (places.size() + blocks_at_once - 1) / blocks_at_once; }
  // Of blocks seen; K as it is decoded at `k`.
  ScoreBlocks Part(size_t part, const std::byte* k) const {
    const size_t first = part * blocks_at_once;
    ScoreBlocks blocks;
    blocks.k = reinterpret_cast<const float*>(k);
    blocks.alive = alive + first * static_cast<size_t>(plan.kv_heads);
    blocks.first = static_cast<int>(seen.begin + first);
    blocks.count = static_cast<int>(std::min(blocks_at_once, places.size() - first));
    return blocks;
  }
};

// Everything but the blocks, and room for those.
Status Lane::StageWindow(const ScoreJob& job, Scoring* s) {
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
    bytes += Staging::RoundUp(BytesOfK(s->places.back()));
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
  for (const SegmentPlace& place : s->places)
    for (const SegmentPlace::Tile& tile : place.tiles) *alive++ = tile.plan.live | place.pins;
  DYNA_RETURN_IF_ERROR(queries_.Reserve(heads * rows * d * 4));
  auto* parts = reinterpret_cast<QueryPart*>(queries_.data());
  s->rows = {reinterpret_cast<const float*>(in_.device(q_at)),
             parts,
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
  DYNA_RETURN_IF_ERROR(in_.In(stream_.get()));
  if (!LaunchSplitQueries(s->rows, parts, stream_.get())) return LastError("launch of score");
  return {};
}

// K of a part's blocks on its way to the device, and a batch (parts_) that decodes it to decoded_.
// While the device is at one part, the host copies the next.
Status Lane::StageBlocks(const ScoreJob& job, size_t part, Scoring* s) {
  const size_t tile_bytes = static_cast<size_t>(kBlockTokens * s->plan.d) * 4;
  const auto heads = static_cast<size_t>(s->plan.kv_heads);
  const size_t first = part * s->blocks_at_once, since = in_.used();
  std::vector<DeviceDecode> decodes(std::min(s->blocks_at_once, s->places.size() - first));
  DYNA_RETURN_IF_ERROR(decoded_.Reserve(decodes.size() * heads * tile_bytes));
  for (size_t i = 0; i < decodes.size(); ++i) {
    const ScoreJob::Block& block = job.chain[s->seen.begin + first + i];
    SegmentPlace& place = s->places[first + i];
    const size_t at = in_.Take(BytesOfK(place));
    MoveK(block.segment.data(), in_.host(at), &place);
    DeviceDecode& d = decodes[i];
    d.place = &place;
    d.segment = in_.device(at);
    DYNA_ASSIGN_OR_RETURN(d.basis, cache_.Get(block.basis));
    DYNA_ASSIGN_OR_RETURN(d.rope, cache_.Get(block.rope));
    d.head_begin = place.id.head0;
    d.head_end = static_cast<uint16_t>(place.id.head0 + place.id.kv_heads);
    d.k_only = true;
    d.target.dtype = DType::kF32;
    d.target.k.base = decoded_.data() + i * heads * tile_bytes;
    d.target.k.token_stride = s->plan.d * 4;
    d.target.k.head_stride = static_cast<int64_t>(tile_bytes);
  }
  DYNA_RETURN_IF_ERROR(in_.InSince(since, stream_.get()));
  if (parts_.size() == part) parts_.push_back(std::make_unique<DeviceBatch>(plain_));
  parts_[part]->PlanDecode(decodes);
  for (const DeviceDecode& d : decodes) DYNA_RETURN_IF_ERROR(d.status);
  return parts_[part]->Upload(stream_.get());
}

Status Lane::ScoreOne(ScoreJob* job) {
  Scoring s;
  auto plan = ScorePlan::Of(*job);
  job->status = plan.status();
  if (!plan.ok()) return {};
  s.plan = std::move(*plan);
  s.seen = BlocksOf(s.plan);
  DYNA_RETURN_IF_ERROR(StageWindow(*job, &s));
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
      partial_.Reserve(std::min(s.places.size(), s.blocks_at_once) * row_count * sizeof(Mass)));
  const auto add_mass = [&](const ScoreBlocks& blocks) -> Status {
    if (LaunchScoreMass(s.rows, blocks, reinterpret_cast<Mass*>(partial_.data()), mass,
                        stream_.get()))
      return {};
    return LastError("launch of score");
  };
  const auto weigh = [&](const ScoreBlocks& blocks) -> Status {
    s.rows.seen = s.others;
    if (LaunchScoreWeights(s.rows, blocks, mass, s.given, s.visible,
                           reinterpret_cast<float*>(out_.device(out)),
                           static_cast<int>(s.plan.length()), stream_.get()))
      return {};
    return LastError("launch of score");
  };
  // Given a denominator, only what the sinks take of it is looked for: they are in the first block,
  // and all is done in one pass.
  const bool given = s.given != nullptr;
  for (size_t part = 0; part < s.parts(); ++part) {
    DYNA_RETURN_IF_ERROR(StageBlocks(*job, part, &s));
    DYNA_RETURN_IF_ERROR(parts_[part]->Launch(stream_.get()));
    ScoreBlocks blocks = s.Part(part, decoded_.data());
    s.rows.seen = given ? s.sinks : s.others;
    if (!given) {
      DYNA_RETURN_IF_ERROR(add_mass(blocks));
      continue;
    }
    if (blocks.first == 0) {
      ScoreBlocks sinks = blocks;
      sinks.count = 1;
      DYNA_RETURN_IF_ERROR(add_mass(sinks));
    }
    DYNA_RETURN_IF_ERROR(weigh(blocks));
  }
  // Else once more, backwards: the last part is decoded still.
  for (size_t left = given ? 0 : s.parts(); left-- > 0;) {
    if (left + 1 < s.parts()) DYNA_RETURN_IF_ERROR(parts_[left]->Launch(stream_.get()));
    DYNA_RETURN_IF_ERROR(weigh(s.Part(left, decoded_.data())));
  }
  DYNA_RETURN_IF_ERROR(out_.Out(stream_.get()));
  DYNA_RETURN_IF_ERROR(WaitFor(stream_.get()));
  std::memcpy(job->relative.data(), out_.host(out), job->relative.size_bytes());
  return {};
}

Status Lane::Score(std::span<ScoreJob*> jobs) {
  for (ScoreJob* job : jobs) {
    const Status s = ScoreOne(job);
    if (s.ok()) continue;
    (void)WaitFor(stream_.get());  // what is on its way reads memory that the next call fills
    return s;
  }
  return {};
}

}  // namespace dyna::cuda
