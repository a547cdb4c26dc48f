// Statistics: a report becomes relative attention on a codec thread, and folds into the history of
// every block of its chain in slices of the loop (policy 1, 3 and 4). Nothing waits for it.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "daemon/policy/log2_byte.h"
#include "daemon/policy/scorer.h"
#include "daemon/store/sensitivity_job.h"
#include "daemon/store/store_impl.h"
#include "kernels/codec_math.h"

namespace dyna {
namespace {

constexpr size_t kMaxFolds = 8;  // results that wait to be folded in

float ToFloat(const std::byte* p, DType dtype) {
  uint32_t u = 0;
  std::memcpy(&u, p, static_cast<size_t>(DTypeBytes(dtype)));
  switch (dtype) {
    case DType::kF32: {
      float f;
      std::memcpy(&f, &u, 4);
      return f;
    }
    case DType::kF16:
      return codec::F16ToF32(static_cast<uint16_t>(u));
    case DType::kBf16:
      return codec::Bf16ToF32(static_cast<uint16_t>(u));
    default:
      return 0;
  }
}

std::string_view ScorerOf(wire::ReportKind kind) {
  switch (kind) {
    case wire::ReportKind::kQueryWindow:
      return "query_window";
    case wire::ReportKind::kColumnMass:
      return "column_mass";
    case wire::ReportKind::kTileMass:
      return "tile_mass";
  }
  return "keys_only";
}

// Elements of one layer: queries (in `dtype`) or values (f32).
uint64_t LayerValues(const wire::Report& r, const LayerShape& shape, uint32_t blocks) {
  const uint64_t heads = uint64_t{r.head_end} - r.head_begin;
  const uint64_t group = shape.kv_heads == 0 ? 0 : shape.q_heads / shape.kv_heads;
  switch (r.kind) {
    case wire::ReportKind::kQueryWindow:
      return r.queries * heads * group * shape.head_dim;
    case wire::ReportKind::kColumnMass:
      return heads * blocks * kBlockTokens;
    case wire::ReportKind::kTileMass:
      return heads * blocks * 3;
  }
  return 0;
}

// What can be said of a report without reading its values.
Status CheckShape(const wire::Report& r, const StoreContext* ctx, const Block* leaf,
                  uint64_t payload) {
  if (ctx == nullptr) return {StatusCode::kContextUnknown, "open the context first"};
  if (r.layer_count == 0 || r.layer_begin + size_t{r.layer_count} > ctx->spec.layers.size())
    return Invalid("report: layer range is empty or beyond the context's layers");
  if (leaf == nullptr || !leaf->visible())
    return {StatusCode::kMiss, "report: the leaf block is not held"};
  uint64_t expected = 0;
  for (int l = r.layer_begin; l < r.layer_begin + r.layer_count; ++l) {
    const LayerShape& shape = ctx->spec.layers[static_cast<size_t>(l)];
    const std::string where = "report: layer " + std::to_string(l) + ": ";
    if (shape.kind == LayerKind::kOpaque) return Unsupported(where + "is opaque");
    if (r.head_begin >= r.head_end || r.head_end > shape.kv_heads)
      return Invalid(where + "head range");
    const uint64_t values = LayerValues(r, shape, leaf->index + 1);
    if (r.kind == wire::ReportKind::kQueryWindow) {
      if (shape.q_heads == 0) return Invalid(where + "the context declares no query heads");
      if (DTypeBytes(r.dtype) == 1) return Unsupported(where + "queries of an fp8 type");
      expected += values * static_cast<uint64_t>(DTypeBytes(r.dtype));
      if (r.has_lse) expected += values / shape.head_dim * sizeof(float);
    } else {
      expected += values * sizeof(float);
    }
  }
  if (payload != expected)
    return Invalid("report: payload of " + std::to_string(payload) + " bytes, " +
                   std::to_string(expected) + " expected");
  if (r.kind == wire::ReportKind::kQueryWindow &&
      uint64_t{r.first_query_position} + r.queries >
          uint64_t{ctx->spec.layers[r.layer_begin].max_position} + kBlockTokens)
    return Invalid("report: queries lie beyond max_position");
  return {};
}

// Every value, off the loop. Queries must be finite; the others are the scorer's to judge.
Status CheckValues(const wire::Report& r, const ContextSpec& spec, uint32_t blocks,
                   std::span<const std::byte> payload) {
  const bool window = r.kind == wire::ReportKind::kQueryWindow;
  const DType dtype = window ? r.dtype : DType::kF32;
  const std::byte* p = payload.data();
  for (int l = r.layer_begin; l < r.layer_begin + r.layer_count; ++l) {
    const size_t n = LayerValues(r, spec.layers[static_cast<size_t>(l)], blocks);
    std::vector<float> values(n);
    for (size_t i = 0; i < n; ++i, p += DTypeBytes(dtype)) {
      values[i] = ToFloat(p, dtype);
      if (window && !std::isfinite(values[i]))
        return Invalid("report: layer " + std::to_string(l) + ": query value " + std::to_string(i) +
                       " is not finite");
    }
    if (window) continue;
    const int heads = r.head_end - r.head_begin;
    std::vector<float> x(size_t{blocks} * kBlockTokens * static_cast<size_t>(heads));
    DYNA_RETURN_IF_ERROR((*FindScorer(ScorerOf(r.kind)))
                             ->Score({l, heads, blocks * kBlockTokens, r.queries, values}, x));
  }
  const std::byte* end = payload.data() + payload.size();
  for (; window && p < end; p += sizeof(float))
    if (!std::isfinite(ToFloat(p, DType::kF32)))
      return Invalid("report: a log-sum-exp is not finite");
  return {};
}

}  // namespace

void Store::Report(const Caller& caller, const wire::Report& r, std::vector<std::byte> payload,
                   std::function<void(Status)> done) {
  Impl& s = *impl_;
  StoreContext* ctx = s.Context(caller.tenant, r.context);
  BlockRef leaf = ctx == nullptr ? nullptr : s.blocks.Find({caller.tenant, r.context, r.leaf});
  if (Status shape = CheckShape(r, ctx, leaf.get(), payload.size()); !shape.ok()) {
    done(std::move(shape));
    return;
  }
  auto bytes = std::make_shared<std::vector<std::byte>>(std::move(payload));
  auto status = std::make_shared<Status>();
  s.RunCodec(
      bytes->size(),
      [bytes, status, r, ctx, blocks = leaf->index + 1] {
        *status = CheckValues(r, ctx->spec, blocks, *bytes);
      },
      [&s, bytes, status, r, caller, done = std::move(done)] {
        if (status->ok()) s.Enqueue({caller, r, std::move(*bytes)});
        done(*status);
      });
}

void Store::Impl::Enqueue(PendingReport report) {
  ++counts.reports;
  const std::string_view source = options.policy.score_source;
  if (source != "auto" && source != ScorerOf(report.report.kind)) return;  // configured away
  reports_bytes += report.payload.size();
  reports.push_back(std::move(report));
  while (reports_bytes > options.report_queue && reports.size() > 1) {
    reports_bytes -= reports.front().payload.size();
    reports.pop_front();
    ++counts.reports_dropped;
  }
  StartReports();
}

void Store::Impl::StartReports() {
  while (!reports.empty() && reports_running < options.reports_in_flight &&
         folds.size() < kMaxFolds) {
    PendingReport pending = std::move(reports.front());
    reports.pop_front();
    reports_bytes -= pending.payload.size();
    const wire::Report& r = pending.report;
    StoreContext* ctx = Context(pending.caller.tenant, r.context);
    auto work = std::make_unique<FoldWork>();
    work->context = ctx;
    work->report = r;
    BlockRef at =
        ctx == nullptr ? nullptr : blocks.Find({pending.caller.tenant, r.context, r.leaf});
    while (at && at->state() == BlockState::kResident) {
      work->chain.push_back(at);
      at = at->index == 0 ? nullptr : blocks.Find({at->key.tenant, at->key.context, at->parent});
    }
    // Scored only when the chain is held from the root: a hole would make the rest look important.
    if (work->chain.empty() || work->chain.back()->index != 0) {
      ++counts.reports_dropped;
      continue;
    }
    std::reverse(work->chain.begin(), work->chain.end());
    for (const BlockRef& b : work->chain) work->generations.push_back(b->generation);

    struct Job {
      std::unique_ptr<FoldWork> work;
      std::vector<std::byte> payload;
      std::vector<ReadRef> refs;
      std::vector<std::shared_ptr<const Basis>> bases;
      std::vector<std::vector<ScoreJob::Block>> chains;  // [layer]
      std::vector<std::vector<uint32_t>> query_count;    // [layer][head]
      std::vector<std::vector<float>> query_second;
      std::vector<Status> query_status;
      std::vector<bool> teaches;  // [layer] omega, where no profile says it
      std::vector<Result<WindowSensitivity>> taught;
    };
    auto job = std::make_shared<Job>();
    job->payload = std::move(pending.payload);
    const bool window = r.kind == wire::ReportKind::kQueryWindow;
    bool whole = true;
    size_t bytes = job->payload.size();
    for (int l = r.layer_begin; l < r.layer_begin + r.layer_count && whole; ++l) {
      work->layers.push_back({static_cast<uint16_t>(l), {}, {}});
      job->chains.emplace_back();
      job->teaches.push_back(
          window && ctx->learning_allowed && options.policy.omega != OmegaGrain::kOff &&
          (ctx->omega.empty() || ctx->omega_learned) &&
          ctx->traffic.Wants(l, static_cast<uint32_t>(work->chain.size()) * kBlockTokens));
      for (const BlockRef& b : work->chain) {
        if (!window) break;
        Segment* segment = b->Find(static_cast<uint16_t>(l), r.head_begin);
        if (segment == nullptr || segment->head_begin != r.head_begin ||
            segment->head_end() != r.head_end) {
          whole = false;
          break;
        }
        job->refs.push_back(segment->extent.Read());
        job->bases.push_back(ctx->Share(segment->basis));
        const Basis* basis = job->bases.back().get();
        job->chains.back().push_back(
            {job->refs.back().bytes().first(segment->bytes), basis, ctx->rope_for(l, basis)});
        bytes += segment->bytes;
      }
    }
    if (!whole) {
      ++counts.reports_dropped;
      continue;
    }
    job->work = std::move(work);
    ++reports_running;
    RunCodec(
        bytes,
        [&be = backend, job, ctx, window] {
          const wire::Report& report = job->work->report;
          const auto heads = static_cast<uint16_t>(report.head_end - report.head_begin);
          const size_t tokens = job->work->chain.size() * kBlockTokens;
          const std::byte* p = job->payload.data();
          const std::byte* lse_at = p;
          if (window && report.has_lse)
            for (const FoldWork::Layer& layer : job->work->layers)
              lse_at += LayerValues(report, ctx->spec.layers[layer.layer], 0) *
                        static_cast<size_t>(DTypeBytes(report.dtype));
          for (size_t i = 0; i < job->work->layers.size(); ++i) {
            FoldWork::Layer& layer = job->work->layers[i];
            const LayerShape& shape = ctx->spec.layers[layer.layer];
            const size_t n =
                LayerValues(report, shape, static_cast<uint32_t>(tokens / kBlockTokens));
            std::vector<float> values(n);
            const DType dtype = window ? report.dtype : DType::kF32;
            for (size_t v = 0; v < n; ++v, p += DTypeBytes(dtype)) values[v] = ToFloat(p, dtype);
            layer.x.assign(size_t{heads} * tokens, 0.0f);
            AttentionReport a{layer.layer, heads, static_cast<uint32_t>(tokens), report.queries,
                              values};
            if (!window) {
              layer.status = (*FindScorer(ScorerOf(report.kind)))->Score(a, layer.x);
              continue;
            }
            std::vector<float> lse(report.has_lse ? n / shape.head_dim : 0);
            if (!lse.empty()) std::memcpy(lse.data(), lse_at, lse.size() * sizeof(float));
            lse_at += lse.size() * sizeof(float);
            const auto q_heads = static_cast<uint16_t>(heads * (shape.q_heads / shape.kv_heads));
            std::vector<float> raw(layer.x.size());
            ScoreJob score;
            score.chain = job->chains[i];
            score.queries = values;
            score.lse = lse;
            score.first_query_position = report.first_query_position;
            score.q_heads = q_heads;
            score.window = shape.kind == LayerKind::kSliding ? shape.window : 0;
            score.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
            score.relative = raw;
            be.Score(std::span(&score, 1));
            layer.status = score.status;
            if (layer.status.ok()) {
              a.values = raw;
              layer.status = (*FindScorer("query_window"))->Score(a, layer.x);
            }
            // The same queries teach M (policy 2).
            job->query_count.emplace_back(heads);
            job->query_second.emplace_back(size_t{heads} * shape.head_dim * (shape.head_dim + 1) /
                                           2);
            QueryMomentsJob m;
            m.queries = values;
            m.rope = ctx->frame() == Frame::kPre ? ctx->rope(layer.layer) : nullptr;
            m.first_query_position = report.first_query_position;
            m.q_heads = q_heads;
            m.kv_heads = heads;
            m.head_dim = shape.head_dim;
            m.count = job->query_count.back();
            m.second = job->query_second.back();
            be.QueryMoments(std::span(&m, 1));
            job->query_status.push_back(m.status);
            job->taught.push_back(
                job->teaches[i] ? MeasureChain(be, score, report.head_begin, heads, shape.head_dim)
                                : Status(StatusCode::kMiss, "enough is known"));
          }
        },
        [this, job, ctx] {
          --reports_running;
          const wire::Report& report = job->work->report;
          bool any = false;
          for (size_t i = 0; i < job->work->layers.size(); ++i) {
            const FoldWork::Layer& layer = job->work->layers[i];
            if (!layer.status.ok()) continue;
            any = true;
            for (int h = report.head_begin; h < report.head_end; ++h) {
              const size_t tokens = job->work->chain.size() * kBlockTokens;
              ctx->normaliser.Update(
                  layer.layer, h,
                  std::span(layer.x).subspan(static_cast<size_t>(h - report.head_begin) * tokens,
                                             tokens),
                  report.advance, options.policy.hedge);
            }
          }
          if (ctx->learning_allowed) {
            ctx->learner.SawChain(static_cast<uint32_t>(job->work->chain.size()) * kBlockTokens);
            for (size_t i = 0; i < job->query_count.size(); ++i) {
              const int layer = report.layer_begin + static_cast<int>(i);
              if (!job->query_status[i].ok() || !LearningBudgetLeft(*ctx, layer)) continue;
              if (!ctx->learner
                       .AddQuerySums(layer, report.head_begin, job->query_count[i],
                                     job->query_second[i])
                       .ok())
                continue;
              for (uint32_t n : job->query_count[i]) ctx->learned_queries += n;
            }
            for (size_t i = 0; i < job->taught.size(); ++i)
              if (job->taught[i].ok())
                ctx->traffic.Add(report.layer_begin + static_cast<int>(i), report.head_begin,
                                 *job->taught[i]);
            LearnOmega(*ctx);
            StartLearning(*ctx);
          }
          if (!any)
            ++counts.reports_dropped;
          else
            folds.push_back(std::move(job->work));
          NeedTick();
        });
  }
}

bool Store::Impl::FoldSlice(TimePoint until) {
  while (!folds.empty()) {
    FoldWork& work = *folds.front();
    for (; work.next_layer < work.layers.size(); ++work.next_layer, work.next_block = 0) {
      const FoldWork::Layer& layer = work.layers[work.next_layer];
      if (!layer.status.ok()) continue;
      for (; work.next_block < work.chain.size(); ++work.next_block) {
        if (clock.Now() >= until) return true;
        FoldBlock(work, layer, work.next_block);
      }
    }
    ++counts.reports_folded;
    if (DropsByReport()) DropLater(work.chain.back());
    folds.pop_front();
  }
  return false;
}

void Store::Impl::FoldBlock(FoldWork& work, const FoldWork::Layer& layer, size_t i) {
  BlockRef block = work.chain[i];
  if (block->state() != BlockState::kResident || block->generation != work.generations[i]) return;
  const wire::Report& r = work.report;
  Segment* segment = block->Find(layer.layer, r.head_begin);
  if (segment == nullptr) return;
  if (block->history.empty()) {
    for (const Shard& shard : block->shards)
      block->history.emplace_back(shard, options.policy.grain, BlockHashHasher{}(block->key.hash));
    Charge(*block);
  }
  const size_t tokens = work.chain.size() * kBlockTokens;
  const int heads = r.head_end - r.head_begin;
  std::vector<float> x(static_cast<size_t>(heads) * kBlockTokens);
  for (int h = 0; h < heads; ++h)
    std::copy_n(
        layer.x.begin() + static_cast<long>(static_cast<size_t>(h) * tokens + i * kBlockTokens),
        kBlockTokens, x.begin() + h * kBlockTokens);
  BlockReport report{layer.layer, r.head_begin, heads, x, r.advance};
  GrowUp(*block, *segment);
  for (size_t k = 0; k < block->history.size(); ++k) {
    BlockHistory& history = block->history[k];
    if (!history.Covers(layer.layer) || !history.Fold(report, options.policy.history).ok())
      continue;
    const bool priced = segment->booked != nullptr;
    if (priced) Unbook(*block, *segment);
    for (int h = r.head_begin; h < r.head_end; ++h) {
      if (h < segment->head_begin || h >= segment->head_end() || h < history.shard().head_begin ||
          h >= history.shard().head_end)
        continue;
      std::array<float, 8> groups{};
      history.Groups(layer.layer, h, groups);
      const double w =
          TileWeight(groups, work.context->normaliser.z(layer.layer, h), {}, options.policy.hedge);
      record::Cell& cell =
          block->cells[segment->cell + static_cast<size_t>(h - segment->head_begin)];
      cell.log2_w_k = cell.log2_w_v = Log2Byte(w);
    }
    if (priced) Book(*block, *segment);
  }
  if (block->bank && !block->history_dirty) {
    block->history_dirty = true;
    dirty_history.push_back(block);
  }
}

}  // namespace dyna
