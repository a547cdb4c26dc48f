// Put: admit, encode straight into the arena, commit when a shard is complete (design 5).
#include <algorithm>

#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

std::string Where(const Shard& shard) {
  return "layers " + std::to_string(shard.layer_begin) + ".." + std::to_string(shard.layer_end) +
         ", heads " + std::to_string(shard.head_begin) + ".." + std::to_string(shard.head_end);
}

}  // namespace

// One call: counts down what is still to be answered.
struct Store::Impl::PutOp {
  wire::PutReply reply;
  std::function<void(wire::PutReply)> done;
  MemoryGuard guard;
  size_t waiting = 1;  // the call itself

  void Fail(size_t segment, const Status& status) {
    reply.segments[segment].status = status.code();
    if (reply.status.ok() && status.code() != StatusCode::kExists) reply.status = status;
  }
  void Finish() {
    if (--waiting == 0) done(std::move(reply));
  }
};

// What one segment needs while its codec job runs; results come back in it.
struct Store::Impl::EncodeWork {
  BlockRef block;
  std::shared_ptr<Writer> writer;
  size_t slot = 0;  // in the reply
  int layer = 0;
  std::vector<TilePlan> plan;
  std::vector<TileMeasure> measure;
  EncodeJob job;
  NurseryShare nursery;
  Extent extent;
  std::shared_ptr<const Basis> basis;
  bool plain = false;  // the second try
  bool feed = false;   // the learner wants this tile
  std::vector<uint32_t> count;
  std::vector<float> sum, scatter;
};

bool Store::WantsPut(const Caller& caller, const wire::Put& put, wire::PutReply* reply) {
  StoreContext* ctx = impl_->Context(caller.tenant, put.context);
  reply->segments.assign(put.hashes.size() * put.layer_count, {StatusCode::kExists, 0, 0});
  if (ctx == nullptr) {
    reply->status = Status(StatusCode::kContextUnknown, "open the context first");
    return false;
  }
  if (put.durability == Durability::kPersistent) return true;  // what is held may have to be banked
  for (const BlockHash& hash : put.hashes) {
    BlockRef block = impl_->blocks.Find({caller.tenant, put.context, hash});
    impl_->DropIfExpired(&block);
    if (!block || !block->visible() || !block->Covers(put.shard) ||
        impl_->Outdoes(put.quality, *block))
      return true;
  }
  for (const BlockHash& hash : put.hashes) {
    impl_->PutAgain(*impl_->blocks.Find({caller.tenant, put.context, hash}), put);
  }
  impl_->counts.exists += reply->segments.size();
  return false;
}

void Store::Put(const Caller& caller, const wire::Put& put, std::vector<KvView> sources,
                MemoryGuard guard, std::function<void(wire::PutReply)> done) {
  Impl& s = *impl_;
  auto op = std::make_shared<Impl::PutOp>();
  op->done = std::move(done);
  op->guard = std::move(guard);
  op->reply.segments.resize(put.hashes.size() * put.layer_count);
  StoreContext* ctx = s.Context(caller.tenant, put.context);
  Status status;
  if (ctx == nullptr)
    status = Status(StatusCode::kContextUnknown, "open the context first");
  else if (status = Validate(put.shard, ctx->spec); status.ok()) {
    if (put.layer_begin < put.shard.layer_begin || put.layer_count == 0 ||
        put.layer_begin + put.layer_count > put.shard.layer_end)
      status = Invalid("layers of the put are outside its shard (" + Where(put.shard) + ")");
    else if (sources.size() != op->reply.segments.size())
      status = Invalid("a source for each segment is expected");
    else if (put.layout.dtype != ctx->spec.dtype && put.quality == QualityClass::kExact)
      status = Invalid("layout.dtype: class exact takes the context's own, " +
                       std::string(DTypeName(ctx->spec.dtype)));
    else if (put.durability == Durability::kPersistent && s.bank == nullptr)
      status = Unsupported("durability persistent: this daemon has no bank (bank.enabled)");
  }
  if (!status.ok()) {
    for (size_t i = 0; i < op->reply.segments.size(); ++i) op->Fail(i, status);
    op->reply.status = status;
    ++s.counts.put_rejected;
    s.loop.Post([op] { op->Finish(); });
    return;
  }

  s.Anticipate(*ctx, caller.tenant, put);
  uint64_t refused_bytes = 0;
  std::vector<std::shared_ptr<Impl::EncodeWork>> works;
  for (size_t b = 0; b < put.hashes.size(); ++b) {
    BlockRef block;
    Status begun;
    auto writer = s.BeginBlock(caller, *ctx, put, b, &block, &begun);
    for (uint16_t l = 0; l < put.layer_count; ++l) {
      const size_t slot = b * put.layer_count + l;
      const int layer = put.layer_begin + l;
      if (!writer) {
        op->Fail(slot, begun);
        continue;
      }
      const size_t at = static_cast<size_t>(layer - put.shard.layer_begin);
      if (writer->taken[at]) {
        // On its way is not durable yet.
        const bool coded = writer->segments[at].bytes != 0;
        op->Fail(slot, coded || put.durability == Durability::kVolatile
                           ? Status(StatusCode::kExists, "")
                           : Status(StatusCode::kRetry, "the segment is being written", 10));
        continue;
      }
      auto work = std::make_shared<Impl::EncodeWork>();
      BasisName basis = 0;
      const SegmentId raw = Impl::IdOf(*ctx, put.shard, layer, put.hashes[b], block->index, 0);
      const bool nursed = s.NurseryTakes(put.quality, RawSegmentBytes(raw));
      work->plan = s.PlanPut(*ctx, caller.tenant, put.shard, layer, put.quality, put.hashes[b],
                             nursed, &basis);
      if (work->plan.empty()) {
        op->Fail(slot, Unsupported("class " + std::string(QualityName(put.quality)) + ": policy " +
                                   std::string(s.policy->name()) + " cannot serve it on layer " +
                                   std::to_string(layer)));
        continue;
      }
      work->basis = ctx->Share(basis);
      EncodeJob& job = work->job;
      job.id = raw;
      job.id.basis = basis;
      job.source = sources[slot];
      job.basis = work->basis.get();
      job.rope = ctx->rope_for(layer, job.basis);
      job.pins = block->index == 0 && put.quality != QualityClass::kExact
                     ? (uint64_t{1} << kPinnedTokens) - 1
                     : 0;
      const size_t bytes = EncodedBytes(job.id, work->plan, job.pins, job.basis);
      auto extent = s.Reserve(bytes, block->serial, nursed);
      if (!extent.ok()) {
        ++s.counts.retries;
        refused_bytes += bytes;
        op->Fail(slot, extent.status());
        continue;
      }
      work->extent = std::move(*extent);
      if (nursed) work->nursery = NurseryShare(s.nursery, work->extent.size());
      work->measure.resize(work->plan.size());
      job.plan = work->plan;
      job.measure = work->measure;
      job.out = work->extent.bytes();
      work->block = block;
      work->writer = writer;
      work->slot = slot;
      work->layer = layer;
      work->feed = ctx->learning_allowed && s.LearningBudgetLeft(*ctx, layer) &&
                   ctx->learner.WantsTile(layer, BlockHashHasher{}(put.hashes[b]));
      writer->taken[at] = true;
      s.open_work.Take(*ctx, *writer, at);
      Segment& segment = writer->segments[at];
      for (size_t h = 0; h < work->plan.size(); ++h) {
        writer->cells[segment.cell + h].k_kind = work->plan[h].k_kind;
        writer->cells[segment.cell + h].v_kind = work->plan[h].v_kind;
      }
      segment.basis = basis;
      if (!nursed) s.BookOpen(*block, *writer, segment);
      ++writer->encoding;
      s.Moved(*writer);
      writer->reserved += work->extent.size();
      s.sessions[caller.session].open_bytes += work->extent.size();
      s.open_bytes += work->extent.size();
      ++s.encoding;
      s.UseBasis(*ctx, basis, +1);
      works.push_back(std::move(work));
    }
    // Held already, and the caller wants it to outlast us: it goes to the bank now.
    if (!writer && begun.code() == StatusCode::kExists && block && block->visible() &&
        put.durability == Durability::kPersistent) {
      ++op->waiting;
      s.Persist(block, [op, block, b, shard = put.shard, quality = put.quality,
                        n = put.layer_count](Status banked) {
        // Read back for the bank it may have turned out damaged, and the bank's older copy less.
        if (banked.ok() &&
            (!block->Covers(shard) || (quality > block->quality && quality > block->effective)))
          banked = {StatusCode::kRetry, "what was held of the block is lost: put it again", 1};
        if (!banked.ok())
          for (uint16_t l = 0; l < n; ++l) op->Fail(b * n + l, banked);
        op->Finish();
      });
    }
  }
  s.wanted_room = std::max(s.wanted_room, refused_bytes);  // all of it, not one at a time
  s.counts.exists += static_cast<uint64_t>(
      std::count_if(op->reply.segments.begin(), op->reply.segments.end(),
                    [](const auto& seg) { return seg.status == StatusCode::kExists; }));

  for (size_t begin = 0; begin < works.size();) {
    size_t bytes = 0, end = begin;
    while (end < works.size() && (end == begin || bytes < s.JobBytes())) {
      bytes += RawSegmentBytes(works[end]->job.id);
      ++end;
    }
    std::vector<std::shared_ptr<Impl::EncodeWork>> batch(works.begin() + static_cast<long>(begin),
                                                         works.begin() + static_cast<long>(end));
    begin = end;
    s.EncodeBatch(op, *ctx, put, std::move(batch));
  }
  s.loop.Post([op] { op->Finish(); });
}

// A scale above what a level can say (formats 2) needs more room than was planned: once more,
// plain.
bool Store::Impl::RetryPlain(EncodeWork& work) {
  const bool nursed = bool{work.nursery};
  auto extent = Reserve(work.job.bytes, work.block->serial, nursed);
  if (!extent.ok()) return false;
  work.plain = true;
  work.extent = std::move(*extent);
  if (nursed) work.nursery = NurseryShare(nursery, work.extent.size());
  work.job.out = work.extent.bytes();
  work.job.status = {};
  return true;
}

void Store::Impl::EncodeBatch(const std::shared_ptr<PutOp>& op, StoreContext& ctx,
                              const wire::Put& put,
                              std::vector<std::shared_ptr<EncodeWork>> batch) {
  size_t bytes = 0;
  for (const auto& w : batch) bytes += RawSegmentBytes(w->job.id);
  ++op->waiting;
  const uint16_t heads = batch[0]->job.id.kv_heads;
  RunCodec(
      bytes,
      [&be = backend, batch, &ctx, heads, op] {
        std::vector<EncodeJob> jobs;
        for (const auto& w : batch) jobs.push_back(w->job);
        be.Encode(jobs);
        std::vector<MomentsJob> moments;
        for (size_t i = 0; i < batch.size(); ++i) {
          EncodeWork& w = *batch[i];
          w.job = jobs[i];
          if (w.job.status.ok() && op->guard.intact) w.job.status = op->guard.intact();
          if (!w.job.status.ok()) continue;
          // A tile that no level could hold became plain8: what is there counts, not the plan.
          const auto coded = ParseSegment(w.job.out.first(w.job.bytes), w.job.basis);
          for (size_t h = 0; coded.ok() && h < w.plan.size(); ++h) {
            w.plan[h].k_kind = coded->tile(static_cast<int>(h)).k_kind;
            w.plan[h].v_kind = coded->tile(static_cast<int>(h)).v_kind;
          }
          if (!w.feed) continue;
          const size_t d = w.job.id.head_dim;
          w.count.resize(heads);
          w.sum.resize(heads * d);
          w.scatter.resize(heads * d * (d + 1) / 2);
          MomentsJob m;
          m.source = w.job.source;
          m.rope = ctx.frame() == Frame::kPre ? ctx.rope(w.layer) : nullptr;
          m.block_index = w.job.id.block_index;
          m.pins = w.job.id.block_index == 0 ? (uint64_t{1} << kPinnedTokens) - 1 : 0;
          m.kv_heads = heads;
          m.head_dim = w.job.id.head_dim;
          m.count = w.count;
          m.sum = w.sum;
          m.scatter = w.scatter;
          moments.push_back(m);
        }
        be.Moments(moments);
      },
      [this, batch, &ctx, put, op] {
        for (const auto& w : batch) {
          wire::SegmentStatus& seg = op->reply.segments[w->slot];
          Writer& writer = *w->writer;
          if (w->job.status.code() == StatusCode::kTooLarge && !w->plain && RetryPlain(*w)) {
            EncodeBatch(op, ctx, put, {w});
            continue;
          }
          --writer.encoding;
          --encoding;
          open_moved = clock.Now();
          Moved(writer);
          Segment& segment =
              writer.segments[static_cast<size_t>(w->layer - writer.shard.layer_begin)];
          UnbookOpen(*w->block, writer, segment);
          Status result = w->job.status;
          if (result.ok() && writer.aborted)
            result = Status(StatusCode::kCancelled, "the put was given up");
          if (!result.ok()) {
            ++counts.put_rejected;
            if (result.code() == StatusCode::kInvalid) ++counts.invalid;
            UseBasis(ctx, w->job.id.basis, -1);
            const auto at = static_cast<size_t>(w->layer - writer.shard.layer_begin);
            writer.taken[at] = false;
            if (!writer.aborted) open_work.GiveBack(ctx, writer, at);
            op->Fail(w->slot, result);
            w->extent.Retire();
            w->nursery.Release();
            if (writer.aborted) continue;
            // Input that cannot be coded refuses the whole block: bad input changes nothing.
            const bool untouched =
                writer.encoding == 0 &&
                std::none_of(writer.taken.begin(), writer.taken.end(), [](bool t) { return t; });
            if (untouched || result.code() == StatusCode::kInvalid) Abort(w->block, w->writer);
            continue;
          }
          segment.basis = w->job.id.basis;
          segment.bytes = w->job.bytes;
          segment.nmse = w->job.nmse;
          segment.extent = std::move(w->extent);
          segment.nursery = std::move(w->nursery);
          for (size_t h = 0; h < w->plan.size(); ++h) {
            record::Cell& cell = writer.cells[segment.cell + h];
            cell.k_kind = w->plan[h].k_kind;
            cell.v_kind = w->plan[h].v_kind;
            ctx.energies.Fold(w->layer, static_cast<int>(writer.shard.head_begin + h),
                              w->measure[h].k_energy, w->measure[h].v_energy, &cell);
          }
          if (!segment.nursery) BookOpen(*w->block, writer, segment);
          seg.status = StatusCode::kOk;
          seg.nmse = segment.nmse;
          seg.bytes = segment.bytes;
          ++counts.put_segments;
          counts.put_raw_bytes += RawSegmentBytes(w->job.id);
          counts.put_encoded_bytes += segment.bytes;
          counts.put_error_sum += static_cast<double>(segment.nmse);
          if (w->feed) FeedTile(ctx, put, w->layer, w->count, w->sum, w->scatter);
          if (!writer.complete()) continue;
          const bool persistent = writer.durability == Durability::kPersistent;
          const Status committed = Commit(w->block, w->writer);
          if (!committed.ok()) op->Fail(w->slot, committed);
          if (!persistent || !committed.ok()) continue;
          ++op->waiting;
          Persist(w->block, [op, slot = w->slot](Status banked) {
            if (!banked.ok()) op->Fail(slot, banked);
            op->Finish();
          });
        }
        op->Finish();
      });
}

}  // namespace dyna
