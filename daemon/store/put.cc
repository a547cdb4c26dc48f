// Put: admit, encode straight into the arena, commit when a shard is complete (design 5).
#include <algorithm>

#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

// Segments of one codec job: enough to amortise the hop, few enough to spread over the threads.
constexpr size_t kJobBytes = 512u << 10;

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

namespace {

// What one segment needs while its codec job runs; results come back in it.
struct EncodeWork {
  BlockRef block;
  std::shared_ptr<Writer> writer;
  size_t slot = 0;  // in the reply
  int layer = 0;
  std::vector<TilePlan> plan;
  std::vector<TileMeasure> measure;
  EncodeJob job;
  Extent extent;
  std::shared_ptr<const Basis> basis;
  bool feed = false;  // the learner wants this tile
  std::vector<uint32_t> count;
  std::vector<float> sum, scatter;
};

}  // namespace

std::shared_ptr<Writer> Store::Impl::BeginBlock(const Caller& caller, StoreContext& ctx,
                                                const wire::Put& put, size_t i, BlockRef* out,
                                                Status* status) {
  const record::BlockKey key{caller.tenant, put.context, put.hashes[i]};
  const BlockHash& parent = i == 0 ? put.parent : put.hashes[i - 1];
  const uint32_t index = put.first_index + static_cast<uint32_t>(i);
  if (index == 0 ? !parent.IsZero() : parent.IsZero())
    *status =
        Invalid("parent: zero at index 0 and only there (index " + std::to_string(index) + ")");
  if (BlockRef known = blocks.Find({caller.tenant, put.context, parent});
      known && !parent.IsZero() && known->index + 1 != index)
    *status = Invalid("index " + std::to_string(index) + " contradicts the parent's, which is " +
                      std::to_string(known->index));
  BlockRef block = blocks.Find(key);
  if (block && (block->index != index || block->parent != parent || block->opaque))
    *status = Invalid("block " + std::to_string(index) + " is known with another parent or index");
  if (!status->ok()) return nullptr;

  const bool covered = block && block->visible() && block->Covers(put.shard);
  const bool better = block && put.quality > block->effective && put.quality > block->quality;
  *out = block;
  if (covered && !better) {
    blocks.Touch(*block);
    *status = Status(StatusCode::kExists, "");
    return nullptr;
  }
  if (block)
    for (const auto& writer : block->writers) {
      if (writer->aborted || writer->shard != put.shard) continue;
      if (writer->session == caller.session) return writer;
      *status = Status(StatusCode::kExists, "");  // first commit wins; the other is on its way
      return nullptr;
    }
  if (block && block->state() == BlockState::kSpilled && !better) {
    Load(block, [](const Status&) {});
    *status = Status(StatusCode::kRetry, "the block's other shards are being read back", 10);
    return nullptr;
  }
  Session& session = sessions[caller.session];
  if (draining)
    *status = Status(StatusCode::kRetry, "the daemon is stopping", 1000);
  else if (session.open_puts >= options.open_puts || session.open_bytes >= options.open_put_bytes)
    *status = Status(StatusCode::kRetry,
                     "too many unfinished puts of this client (limits.open_puts)", 20);
  else if (!block && blocks.size() >= options.max_blocks)
    *status = Status(StatusCode::kRetry, "the table of blocks is full", 100);
  const Tenant& tenant = TenantOf(caller.tenant);
  if (status->ok() && tenant.quota != 0 && tenant.charged >= tenant.quota) {
    ++counts.quota_refusals;
    *status = Status(StatusCode::kQuota, "tenant " + tenant.name + " is over its quota of " +
                                             std::to_string(tenant.quota) + " bytes");
  }
  if (!status->ok()) return nullptr;

  if (!block) {
    block = blocks.Insert(key);
    block->parent = parent;
    block->index = index;
    block->quality = put.quality;
    block->context = &ctx;
    block->tenant = &TenantOf(caller.tenant);
    block->reuse.at_ms = clock.UnixMillis();
  }
  auto writer = std::make_shared<Writer>();
  writer->session = caller.session;
  writer->shard = put.shard;
  writer->quality = put.quality;
  writer->durability = put.durability;
  writer->replaces = covered && better;
  writer->expires_at_ms = put.ttl_ms == 0 ? 0 : clock.UnixMillis() + put.ttl_ms;
  writer->started = clock.Now();
  const size_t layers = static_cast<size_t>(put.shard.layer_end - put.shard.layer_begin);
  const auto heads = static_cast<uint16_t>(put.shard.head_end - put.shard.head_begin);
  writer->taken.resize(layers);
  writer->cells.resize(layers * heads);
  writer->segments.resize(layers);
  for (size_t l = 0; l < layers; ++l) {
    writer->segments[l].layer = static_cast<uint16_t>(put.shard.layer_begin + l);
    writer->segments[l].head_begin = put.shard.head_begin;
    writer->segments[l].kv_heads = heads;
    writer->segments[l].cell = static_cast<uint32_t>(l * heads);
  }
  block->writers.push_back(writer);
  ++session.open_puts;
  session.writing.emplace_back(block);
  NeedTick();  // arms the time-out
  *out = block;
  return writer;
}

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
    if (!block || !block->visible() || !block->Covers(put.shard) ||
        (put.quality > block->effective && put.quality > block->quality))
      return true;
  }
  for (const BlockHash& hash : put.hashes)
    impl_->blocks.Touch(*impl_->blocks.Find({caller.tenant, put.context, hash}));
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

  std::vector<std::shared_ptr<EncodeWork>> works;
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
        op->Fail(slot, Status(StatusCode::kExists, ""));
        continue;
      }
      auto work = std::make_shared<EncodeWork>();
      BasisName basis = 0;
      work->plan =
          s.PlanPut(*ctx, caller.tenant, put.shard, layer, put.quality, put.hashes[b], &basis);
      if (work->plan.empty()) {
        op->Fail(slot, Unsupported("class " + std::string(QualityName(put.quality)) + ": policy " +
                                   std::string(s.policy->name()) + " cannot serve it on layer " +
                                   std::to_string(layer)));
        continue;
      }
      work->basis = ctx->Share(basis);
      EncodeJob& job = work->job;
      job.id = {put.context,
                basis,
                put.hashes[b],
                block->index,
                static_cast<uint16_t>(layer),
                put.shard.head_begin,
                static_cast<uint16_t>(put.shard.head_end - put.shard.head_begin),
                ctx->spec.layers[static_cast<size_t>(layer)].head_dim,
                ctx->spec.dtype};
      job.source = sources[slot];
      job.basis = work->basis.get();
      job.rope = ctx->rope_for(layer, job.basis);
      job.pins = block->index == 0 && put.quality != QualityClass::kExact
                     ? (uint64_t{1} << kPinnedTokens) - 1
                     : 0;
      const size_t bytes = EncodedBytes(job.id, work->plan, job.pins, job.basis);
      auto extent = s.Reserve(bytes, block->serial);
      if (!extent.ok()) {
        ++s.counts.retries;
        op->Fail(slot, extent.status());
        continue;
      }
      work->extent = std::move(*extent);
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
      ++writer->encoding;
      writer->reserved += work->extent.size();
      s.sessions[caller.session].open_bytes += work->extent.size();
      s.UseBasis(*ctx, basis, +1);
      works.push_back(std::move(work));
    }
    // Held already, and the caller wants it to outlast us: it goes to the bank now.
    if (!writer && begun.code() == StatusCode::kExists && block && block->visible() &&
        put.durability == Durability::kPersistent && !block->bank) {
      ++op->waiting;
      s.Persist(block, [op, b, n = put.layer_count](Status banked) {
        if (!banked.ok())
          for (uint16_t l = 0; l < n; ++l) op->Fail(b * n + l, banked);
        op->Finish();
      });
    }
  }
  s.counts.exists += static_cast<uint64_t>(
      std::count_if(op->reply.segments.begin(), op->reply.segments.end(),
                    [](const auto& seg) { return seg.status == StatusCode::kExists; }));

  for (size_t begin = 0; begin < works.size();) {
    size_t bytes = 0, end = begin;
    while (end < works.size() && (end == begin || bytes < kJobBytes)) {
      bytes += RawSegmentBytes(works[end]->job.id);
      ++end;
    }
    std::vector<std::shared_ptr<EncodeWork>> batch(works.begin() + static_cast<long>(begin),
                                                   works.begin() + static_cast<long>(end));
    begin = end;
    ++op->waiting;
    const uint16_t heads = batch[0]->job.id.kv_heads;
    s.RunCodec(
        bytes,
        [&backend = s.backend, batch, ctx, heads, op] {
          std::vector<EncodeJob> jobs;
          for (const auto& w : batch) jobs.push_back(w->job);
          backend.Encode(jobs);
          std::vector<MomentsJob> moments;
          for (size_t i = 0; i < batch.size(); ++i) {
            EncodeWork& w = *batch[i];
            w.job = jobs[i];
            if (w.job.status.ok() && op->guard.intact) w.job.status = op->guard.intact();
            if (!w.feed || !w.job.status.ok()) continue;
            const size_t d = w.job.id.head_dim;
            w.count.resize(heads);
            w.sum.resize(heads * d);
            w.scatter.resize(heads * d * (d + 1) / 2);
            MomentsJob m;
            m.source = w.job.source;
            m.rope = ctx->frame() == Frame::kPre ? ctx->rope(w.layer) : nullptr;
            m.block_index = w.job.id.block_index;
            m.pins = w.job.id.block_index == 0 ? (uint64_t{1} << kPinnedTokens) - 1 : 0;
            m.kv_heads = heads;
            m.head_dim = w.job.id.head_dim;
            m.count = w.count;
            m.sum = w.sum;
            m.scatter = w.scatter;
            moments.push_back(m);
          }
          backend.Moments(moments);
        },
        [&s, batch, ctx, put, op] {
          for (const auto& w : batch) {
            wire::SegmentStatus& seg = op->reply.segments[w->slot];
            Writer& writer = *w->writer;
            --writer.encoding;
            Status result = w->job.status;
            if (result.ok() && writer.aborted)
              result = Status(StatusCode::kCancelled, "the put was given up");
            if (!result.ok()) {
              ++s.counts.put_rejected;
              if (result.code() == StatusCode::kInvalid) ++s.counts.invalid;
              s.UseBasis(*ctx, w->job.id.basis, -1);
              writer.taken[static_cast<size_t>(w->layer - writer.shard.layer_begin)] = false;
              op->Fail(w->slot, result);
              w->extent.Retire();
              if (writer.aborted || writer.encoding > 0) continue;
              // A block that can never be completed as it is: the caller may put it again.
              const bool untouched =
                  std::none_of(writer.taken.begin(), writer.taken.end(), [](bool t) { return t; });
              if (untouched) s.Abort(w->block, w->writer);
              continue;
            }
            const size_t at = static_cast<size_t>(w->layer - writer.shard.layer_begin);
            Segment& segment = writer.segments[at];
            segment.basis = w->job.id.basis;
            segment.bytes = w->job.bytes;
            segment.nmse = w->job.nmse;
            segment.extent = std::move(w->extent);
            for (size_t h = 0; h < w->plan.size(); ++h) {
              record::Cell& cell = writer.cells[segment.cell + h];
              cell.k_kind = w->plan[h].k_kind;
              cell.v_kind = w->plan[h].v_kind;
              ctx->energies.Fold(w->layer, static_cast<int>(writer.shard.head_begin + h),
                                 w->measure[h].k_energy, w->measure[h].v_energy, &cell);
            }
            seg.status = StatusCode::kOk;
            seg.nmse = segment.nmse;
            seg.bytes = segment.bytes;
            ++s.counts.put_segments;
            s.counts.put_raw_bytes += RawSegmentBytes(w->job.id);
            s.counts.put_encoded_bytes += segment.bytes;
            s.counts.put_error_sum += static_cast<double>(segment.nmse);
            if (w->feed) s.FeedTile(*ctx, put, w->layer, w->count, w->sum, w->scatter);
            if (!writer.complete()) continue;
            const bool persistent = writer.durability == Durability::kPersistent;
            s.Commit(w->block, w->writer);
            if (!persistent) continue;
            ++op->waiting;
            s.Persist(w->block, [op, slot = w->slot](Status banked) {
              if (!banked.ok()) op->Fail(slot, banked);
              op->Finish();
            });
          }
          op->Finish();
        });
  }
  s.loop.Post([op] { op->Finish(); });
}

void Store::Impl::Abort(const BlockRef& block, const std::shared_ptr<Writer>& writer) {
  writer->aborted = true;
  ++counts.aborted_puts;
  for (Segment& s : writer->segments) {
    if (s.bytes != 0) UseBasis(*block->context, s.basis, -1);
    s.extent.Retire();
  }
  if (auto it = sessions.find(writer->session); it != sessions.end()) {
    it->second.open_puts -= std::min(it->second.open_puts, 1u);
    it->second.open_bytes -= std::min(it->second.open_bytes, writer->reserved);
  }
  std::erase(block->writers, writer);
  if (block->state() == BlockState::kWriting && block->writers.empty()) Gone(*block, false);
}

void Store::Impl::Commit(const BlockRef& ref, const std::shared_ptr<Writer>& writer) {
  Block& block = *ref;
  StoreContext& ctx = *block.context;
  if (auto it = sessions.find(writer->session); it != sessions.end()) {
    it->second.open_puts -= std::min(it->second.open_puts, 1u);
    it->second.open_bytes -= std::min(it->second.open_bytes, writer->reserved);
    std::erase_if(it->second.writing, [&](const auto& w) { return w.lock() == ref; });
    if (it->second.open_puts == 0) sessions.erase(it);
  }
  std::erase(block.writers, writer);
  UnbookAll(block);

  const bool fresh = block.state() == BlockState::kWriting;
  auto raw_of = [&](const Segment& s) {
    return 2 * s.kv_heads * RawTileBytes(ctx.spec.layers[s.layer].head_dim, ctx.spec.dtype);
  };
  if (fresh) {
    block.To(BlockState::kResident);
    ++ctx.blocks;
    ++resident;
  } else if (writer->replaces) {
    for (const Segment& s : block.segments) {
      UseBasis(ctx, s.basis, -1);
      block.tenant->charged -= std::min<uint64_t>(block.tenant->charged, s.bytes);
      if (block.state() == BlockState::kResident) raw_bytes -= raw_of(s);
    }
    if (block.state() == BlockState::kSpilled) {
      block.To(BlockState::kResident);
      ++resident;
    }
    ++block.generation;
    block.revision = 0;
    block.segments.clear();
    block.cells.clear();
    block.shards.clear();
    block.history.clear();
    block.spill_generation = 0;  // the old copy is overwritten by the next spill
  } else if (block.state() == BlockState::kSpilled) {
    // It left for the disk while this shard was being written: the newcomer alone would be a hole.
    for (Segment& s : writer->segments) UseBasis(ctx, s.basis, -1);
    return;
  }
  block.quality =
      fresh || writer->replaces ? writer->quality : std::min(block.quality, writer->quality);
  block.expires_at_ms = writer->expires_at_ms;
  block.shards.push_back(writer->shard);
  const auto base = static_cast<uint32_t>(block.cells.size());
  block.cells.insert(block.cells.end(), writer->cells.begin(), writer->cells.end());
  for (Segment& s : writer->segments) {
    s.cell += base;
    block.tenant->charged += s.bytes;
    raw_bytes += raw_of(s);
    block.segments.push_back(std::move(s));
  }
  std::stable_sort(block.segments.begin(), block.segments.end(),
                   [](const Segment& a, const Segment& b) {
                     return std::pair(a.layer, a.head_begin) < std::pair(b.layer, b.head_begin);
                   });
  block.spill_generation = 0;
  Appraise(block);
  Charge(block);
  BookAll(block);
  blocks.Touch(block);
  if (Charged() > Limit()) NeedTick();
}

}  // namespace dyna
