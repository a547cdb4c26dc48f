// Fetch: decode into the caller's memory, or hand out the segments as they are stored (design 5).
#include <algorithm>
#include <cstring>

#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

// One segment of the answer, put together from the stored segments that hold its heads.
struct ReadWork {
  BlockRef block;
  size_t slot = 0;
  int layer = 0;
  std::vector<DecodeJob> jobs;  // decoded: one a stored segment
  std::vector<ReadRef> refs;
  std::vector<std::shared_ptr<const Basis>> bases;
  std::vector<uint64_t> live;
  std::vector<std::byte> stored;  // as stored: sealed
  uint64_t encoded = 0, raw = 0;
  float nmse = 0;
};

struct FetchOp {
  Store::Fetched out;
  std::function<void(Store::Fetched)> done;
  MemoryGuard guard;
  std::vector<std::vector<std::byte>> stored;  // [segment]
  size_t waiting = 1;

  void Fail(size_t slot, const Status& status) {
    out.reply.segments[slot].status = status.code();
    if (out.reply.status.ok()) out.reply.status = status;
  }
  void Finish() {
    if (--waiting != 0) return;
    for (size_t i = 0; i < stored.size(); ++i) {
      out.reply.segments[i].bytes = static_cast<uint32_t>(stored[i].size());
      out.payload.insert(out.payload.end(), stored[i].begin(), stored[i].end());
    }
    done(std::move(out));
  }
};

MutableKvView HeadsFrom(MutableKvView view, int heads) {
  view.k += heads * view.k_head_stride;
  view.v += heads * view.v_head_stride;
  return view;
}

// What a lease promised of the block. Damaged on the spill it comes from the bank, which may have
// an older generation of it, or this one demoted before it was banked.
bool Keeps(const Block& block, QualityClass floor, float max_nmse) {
  return block.effective >= floor && (max_nmse <= 0 || block.nmse() <= max_nmse);
}

// Collects what has to be read of one layer; MISS where a head is not held.
Status Gather(Block& block, int layer, uint16_t head_begin, uint16_t head_end,
              const StoreContext& ctx, const MutableKvView* target, ReadWork* work) {
  const int d = ctx.spec.layers[static_cast<size_t>(layer)].head_dim;
  double error = 0;
  for (uint16_t head = head_begin; head < head_end;) {
    Segment* s = block.Find(static_cast<uint16_t>(layer), head);
    if (s == nullptr || !s->extent)
      return {StatusCode::kMiss, "layer " + std::to_string(layer) + " is not held"};
    const uint16_t end = std::min(head_end, s->head_end());
    work->refs.push_back(s->extent.Read());
    work->bases.push_back(ctx.Share(s->basis));
    work->encoded += s->bytes;
    error += static_cast<double>(s->nmse) * (end - head);
    DecodeJob job;
    job.segment = work->refs.back().bytes().first(s->bytes);
    job.basis = work->bases.back().get();
    job.rope = ctx.rope_for(layer, job.basis);
    job.head_begin = head;
    job.head_end = end;
    if (target != nullptr) job.target = HeadsFrom(*target, head - head_begin);
    work->jobs.push_back(job);
    head = end;
  }
  work->raw = 2 * uint64_t{head_end} - 2 * uint64_t{head_begin};
  work->raw *= RawTileBytes(d, ctx.spec.dtype);
  work->nmse = static_cast<float>(error / (head_end - head_begin));
  return {};
}

}  // namespace

void Store::Fetch(const Caller& caller, const wire::Fetch& fetch,
                  std::vector<MutableKvView> targets, MemoryGuard guard,
                  std::function<void(Fetched)> done) {
  Impl& s = *impl_;
  auto op = std::make_shared<FetchOp>();
  op->done = std::move(done);
  op->guard = std::move(guard);
  const size_t segments = size_t{fetch.block_count} * fetch.layer_count;
  op->out.reply.segments.resize(segments);
  op->out.reply.tiers.assign(segments, Tier::kNone);

  StoreContext* ctx = s.Context(caller.tenant, fetch.context);
  HeldLease* lease = s.leases.Find(caller.session, fetch.lease);
  Status status;
  if (ctx == nullptr)
    status = Status(StatusCode::kContextUnknown, "open the context first");
  else if (lease == nullptr || lease->context != ctx)
    status =
        Status(StatusCode::kLeaseLost, "lease " + std::to_string(fetch.lease) +
                                           " is unknown, expired, or of another daemon instance");
  else if (fetch.block_count == 0 ||
           fetch.block_begin + uint64_t{fetch.block_count} > lease->run.size())
    status = Invalid("blocks " + std::to_string(fetch.block_begin) + " + " +
                     std::to_string(fetch.block_count) + " are beyond the lease's run of " +
                     std::to_string(lease->run.size()));
  else if (fetch.layer_count == 0 || fetch.head_begin >= fetch.head_end ||
           fetch.layer_begin < lease->shard.layer_begin ||
           fetch.layer_begin + fetch.layer_count > lease->shard.layer_end ||
           fetch.head_begin < lease->shard.head_begin || fetch.head_end > lease->shard.head_end)
    status = Invalid("layers or heads are outside the lease's shard");
  else if (fetch.form == wire::Form::kDecoded && targets.size() != segments)
    status = Invalid("a target for each segment is expected");
  if (!status.ok()) {
    for (size_t i = 0; i < segments; ++i) op->Fail(i, status);
    op->out.reply.status = status;
    if (status.code() == StatusCode::kLeaseLost) ++s.counts.lost_leases;
    s.loop.Post([op] { op->Finish(); });
    return;
  }
  s.leases.Extend(*lease, s.clock.Now() + s.options.lease_ttl);
  if (fetch.form == wire::Form::kAsStored) op->stored.resize(segments);
  const size_t heads = static_cast<size_t>(fetch.head_end - fetch.head_begin);
  if (fetch.want_masks) op->out.reply.live.resize(segments * heads);

  // Reads the blocks [b0, b1), all of them resident now.
  auto read = [&s, op, ctx, fetch, heads, targets = std::move(targets)](
                  const std::vector<BlockRef>& run, const std::vector<size_t>& at) {
    std::vector<std::shared_ptr<ReadWork>> batch;
    size_t bytes = 0;
    auto flush = [&] {
      if (batch.empty()) return;
      ++op->waiting;
      s.RunCodec(
          bytes,
          [&backend = s.backend, batch, op, as_stored = fetch.form == wire::Form::kAsStored] {
            if (!as_stored) {
              std::vector<DecodeJob> jobs;
              for (const auto& w : batch) jobs.insert(jobs.end(), w->jobs.begin(), w->jobs.end());
              backend.Decode(jobs);
              auto result = jobs.begin();
              for (const auto& w : batch)
                for (DecodeJob& job : w->jobs) {
                  job.status = (result++)->status;
                  if (job.status.ok() && op->guard.intact) job.status = op->guard.intact();
                }
              return;
            }
            for (const auto& w : batch)
              for (DecodeJob& job : w->jobs) {
                const size_t begin = w->stored.size();
                w->stored.insert(w->stored.end(), job.segment.begin(), job.segment.end());
                SealSegment(std::span(w->stored).subspan(begin));
              }
          },
          [&s, op, batch, heads] {
            for (const auto& w : batch) {
              wire::SegmentStatus& seg = op->out.reply.segments[w->slot];
              for (const DecodeJob& job : w->jobs)
                if (!job.status.ok()) op->Fail(w->slot, job.status);
              if (!op->stored.empty()) op->stored[w->slot] = std::move(w->stored);
              if (!w->live.empty())
                std::copy(w->live.begin(), w->live.end(),
                          op->out.reply.live.begin() + static_cast<long>(w->slot * heads));
              if (seg.status != StatusCode::kOk) {
                ++s.counts.damaged_segments;
                continue;
              }
              seg.nmse = w->nmse;
              seg.bytes = static_cast<uint32_t>(w->encoded);
              ++s.counts.fetch_segments;
              s.counts.fetch_raw_bytes += w->raw;
              s.counts.fetch_encoded_bytes += w->encoded;
            }
            op->Finish();
          });
      batch.clear();
      bytes = 0;
    };
    for (size_t i = 0; i < run.size(); ++i) {
      for (uint16_t l = 0; l < fetch.layer_count; ++l) {
        auto work = std::make_shared<ReadWork>();
        work->block = run[i];
        work->layer = fetch.layer_begin + l;
        work->slot = at[i] * fetch.layer_count + l;
        const MutableKvView* target =
            fetch.form == wire::Form::kDecoded ? &targets[work->slot] : nullptr;
        const Status gathered = Gather(*run[i], work->layer, fetch.head_begin, fetch.head_end, *ctx,
                                       target, work.get());
        if (!gathered.ok()) {
          op->Fail(work->slot, gathered);
          continue;
        }
        if (fetch.want_masks) {
          work->live.resize(heads);
          size_t done_heads = 0;
          for (DecodeJob& job : work->jobs) {
            const size_t n = static_cast<size_t>(job.head_end - job.head_begin);
            job.live = std::span(work->live).subspan(done_heads, n);
            done_heads += n;
          }
        }
        if (fetch.form == wire::Form::kAsStored)
          for (const auto& basis : work->bases)
            if (basis && std::find(op->out.reply.bases.begin(), op->out.reply.bases.end(),
                                   basis->name()) == op->out.reply.bases.end())
              op->out.reply.bases.push_back(basis->name());
        bytes += work->raw;
        batch.push_back(std::move(work));
        if (bytes >= s.JobBytes()) flush();
      }
    }
    flush();
  };

  std::vector<BlockRef> ready;
  std::vector<size_t> ready_at;
  for (uint32_t b = 0; b < fetch.block_count; ++b) {
    const size_t in_run = size_t{fetch.block_begin} + b;
    BlockRef block = lease->run[in_run];
    if (block->state() == BlockState::kGone || block->generation != lease->generations[in_run] ||
        !Keeps(*block, lease->min_quality, lease->max_nmse)) {
      for (uint16_t l = 0; l < fetch.layer_count; ++l)
        op->Fail(size_t{b} * fetch.layer_count + l,
                 {StatusCode::kMiss, "block " + std::to_string(b) + " was replaced or cleared"});
      continue;
    }
    if (block->state() == BlockState::kResident) {
      for (uint16_t l = 0; l < fetch.layer_count; ++l)
        op->out.reply.tiers[size_t{b} * fetch.layer_count + l] = Tier::kHost;
      ready.push_back(block);
      ready_at.push_back(b);
      continue;
    }
    ++op->waiting;
    const Tier tier = s.SpillHolds(*block) ? Tier::kSpill : Tier::kBank;
    s.Load(block, [op, block, b, tier, read, n = fetch.layer_count, floor = lease->min_quality,
                   max_nmse = lease->max_nmse, generation = block->generation](Status loaded) {
      if (loaded.ok() && (block->generation != generation || !Keeps(*block, floor, max_nmse)))
        loaded = {StatusCode::kMiss, "block " + std::to_string(b) + " was damaged on disk"};
      for (uint16_t l = 0; l < n; ++l) {
        const size_t slot = size_t{b} * n + l;
        if (!loaded.ok())
          op->Fail(slot, loaded);
        else
          op->out.reply.tiers[slot] = tier;
      }
      if (loaded.ok()) read({block}, {b});
      op->Finish();
    });
  }
  read(ready, ready_at);
  s.loop.Post([op] { op->Finish(); });
}

wire::GetBasisReply Store::GetBasis(const Caller& caller, const wire::GetBasis& request,
                                    std::vector<std::byte>* payload) {
  wire::GetBasisReply reply;
  StoreContext* ctx = impl_->Context(caller.tenant, request.context);
  if (ctx == nullptr) {
    reply.status = Status(StatusCode::kContextUnknown, "open the context first");
    return reply;
  }
  for (BasisName name : request.names) {
    const Basis* basis = ctx->Find(name);
    reply.sizes.push_back(basis == nullptr ? 0 : static_cast<uint32_t>(basis->bytes().size()));
    if (basis != nullptr)
      payload->insert(payload->end(), basis->bytes().begin(), basis->bytes().end());
  }
  return reply;
}

}  // namespace dyna
