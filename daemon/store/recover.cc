// Start and stop: the rows of both disks become blocks again; a clean stop loses nothing it can
// save.
#include <algorithm>
#include <cmath>

#include "client/base/log.h"
#include "daemon/policy/log2_byte.h"
#include "daemon/store/store_impl.h"

namespace dyna {
namespace {
constexpr double kPriceOctave = kEighths * kPriceSub;
}

void Store::Impl::Adopt(record::BlockMeta meta, Tier from) {
  blocks.SawGeneration(meta.generation);
  StoreContext* ctx = Context(meta.key.tenant, meta.key.context);
  const bool to_bank = from == Tier::kBank;
  // What a row names must be on its own disk: the other's rows may be gone at the next start. A
  // block without them was never acknowledged, for their write had failed.
  bool sound =
      ctx != nullptr && ctx->rows.on(to_bank).there() && (meta.opaque || !meta.segments.empty());
  size_t cells = 0;
  for (const record::SegmentEntry& e : meta.segments) {
    if (!sound || meta.opaque) break;
    const auto use = ctx->bases.find(e.basis);
    sound = e.layer < ctx->spec.layers.size() &&
            e.head_begin + size_t{e.kv_heads} <= ctx->spec.layers[e.layer].kv_heads &&
            (e.basis == 0 || (use != ctx->bases.end() && use->second.rows.on(to_bank).there()));
    cells += e.kv_heads;
  }
  if (!meta.opaque) sound = sound && cells == meta.cells.size();
  for (const Shard& shard : meta.shards) sound = sound && Validate(shard, ctx->spec).ok();
  if (!sound || (meta.expires_at_ms != 0 && meta.expires_at_ms <= clock.UnixMillis())) {
    SpillStore* store = to_bank ? bank : spill;
    if (!sound) LogWarn("a block on disk does not fit its context: dropped");
    store->DeleteBlock(meta.key, [](Status) {});
    return;
  }
  BlockRef block = blocks.Find(meta.key);
  if (!block) {
    block = blocks.Insert(meta.key);
    block->parent = meta.parent;
    block->index = meta.index;
    block->generation = meta.generation;
    block->quality = meta.quality;
    block->opaque = meta.opaque;
    block->context = ctx;
    block->tenant = &TenantOf(meta.key.tenant);
    block->shards = meta.shards;
    block->reuse.hits = meta.reuse;
    block->reuse.at_ms = meta.reuse_at_ms;
    block->expires_at_ms = meta.expires_at_ms;
    ++ctx->blocks;
  } else if (block->generation >= meta.generation && !to_bank) {
    return;
  }
  block->newest_generation = std::max(block->newest_generation, meta.generation);
  (to_bank ? block->in_bank : block->in_spill) = true;
  (to_bank ? block->bank_touched : block->spill_touched) = true;
  SetPinned(*block, meta.pinned);  // of the bank's row where there are two: it was synced
  if (to_bank) {
    block->bank = std::make_unique<record::BlockMeta>(meta);
    block->durability = Durability::kPersistent;
    // The spill was read before: its copy goes on unless the bank has more of the block, or has it
    // after a demotion: what the bank has may not be better in RAM, its segments are not rewritten.
    if (SpillHolds(*block) &&
        std::pair(block->generation, block->revision) >=
            std::pair(meta.generation, meta.revision) &&
        std::all_of(meta.shards.begin(), meta.shards.end(),
                    [&](const Shard& shard) { return block->Covers(shard); }))
      return;
    block->spill_generation = 0;
    block->shards = meta.shards;
    block->quality = meta.quality;
    block->generation = meta.generation;
  } else {
    block->generation = meta.generation;
    block->spill_generation = meta.generation;
    block->spill_revision = meta.revision;
    block->history_on_disk = meta.history_bytes;
  }
  block->drop_due.reset();
  if (meta.drop_due && Drops()) block->drop_due = clock.Now();  // once it is read back
  TakeRow(*block, meta);
  if (block->state() == BlockState::kWriting) Move(*block, BlockState::kSpilled);
  SetPinned(*block, meta.pinned);  // as many bytes as it has now
  Appraise(*block);
}

void Store::Recover(std::function<void(Status)> done) {
  Impl* s = impl_.get();
  auto scan = [s](SpillStore* store, Tier tier, std::function<void(Status)> then) {
    if (store == nullptr) {
      then({});
      return;
    }
    store->Scan(
        [s, tier](std::vector<record::Row> rows) {
          for (record::Row& row : rows) {
            if (auto* c = std::get_if<record::ContextRow>(&row)) {
              if (s->Context(c->tenant, c->context) == nullptr && Validate(c->spec).ok() &&
                  FingerprintOf(c->spec) == c->context) {
                s->contexts.emplace(std::pair(c->tenant, c->context),
                                    std::make_unique<StoreContext>(c->tenant, c->context, c->spec,
                                                                   s->options.learner));
                s->Context(c->tenant, c->context)->learning_allowed = s->options.learner.enabled;
              }
              if (StoreContext* ctx = s->Context(c->tenant, c->context)) {
                ctx->rows.on(tier == Tier::kBank).Found();
                if (!c->omega.empty() && ctx->omega.empty() &&
                    !ctx->SetOmega(std::move(c->omega), s->options.policy.omega).ok())
                  LogWarn("omega of context {:016x} is damaged: it goes without", c->context);
              }
            } else if (auto* b = std::get_if<record::BasisRow>(&row)) {
              StoreContext* ctx = s->Context(b->tenant, b->context);
              auto basis = Basis::Parse(std::as_bytes(std::span(b->object)));
              if (ctx == nullptr || !basis.ok() || (*basis)->name() != b->name ||
                  (*basis)->info().fingerprint != b->context) {
                LogWarn("a basis on disk is damaged or of no known context: dropped");
                continue;
              }
              ctx->AddBasis(*basis);
              ctx->bases.at(b->name).rows.on(tier == Tier::kBank).Found();
            } else if (auto* p = std::get_if<record::PriceRow>(&row)) {
              if (p->tenant == 0 && std::isfinite(p->log2_price))
                s->book.set_price(static_cast<Price>(std::clamp(
                    p->log2_price * kPriceOctave, double{kFreePrice}, double{kDearestPrice})));
            } else if (auto* l = std::get_if<record::LearnerRow>(&row)) {
              if (StoreContext* ctx = s->Context(l->tenant, l->context))
                if (!ctx->learner.Restore(*l).ok())
                  LogWarn("learning state of layer {} is damaged: it starts again", l->layer);
            } else if (auto* m = std::get_if<record::BlockMeta>(&row)) {
              s->Adopt(std::move(*m), tier);
            }
          }
        },
        std::move(then));
  };
  // A spill that cannot be read costs the spill tier; a bank that cannot be read is an error.
  scan(s->spill, Tier::kSpill, [s, scan, done = std::move(done)](Status spilled) {
    if (!spilled.ok()) LogWarn("spill: not read back: {}", spilled.ToString());
    scan(s->bank, Tier::kBank, [s, done](Status banked) {
      for (const auto& [key, ctx] : s->contexts) {
        s->basis_bytes += ctx->basis_bytes();
        // The newest basis of a layer goes on being the one that new tiles take.
        std::map<int, std::shared_ptr<const Basis>> newest;
        for (const auto& [name, use] : ctx->bases) {
          auto& best = newest[use.basis->info().layer];
          if (!best || use.basis->info().tokens > best->info().tokens) best = use.basis;
        }
        for (const auto& [layer, basis] : newest) ctx->learner.RestoreBasis(layer, basis);
      }
      // A bank's row goes on saying that it ends a chain when the chain has gone on.
      s->blocks.ForEach([s](Block& b) {
        if (!b.drop_due || b.index == 0) return;
        if (BlockRef parent = s->blocks.Find({b.key.tenant, b.key.context, b.parent}))
          parent->drop_due.reset();
      });
      LogInfo("recovered {} blocks in {} contexts", s->blocks.size(), s->contexts.size());
      done(std::move(banked));
    });
  });
}

void Store::Drain(TimePoint deadline, std::function<void()> done) {
  Impl* s = impl_.get();
  s->draining = true;
  s->on_busy = nullptr;
  s->reports.clear();
  s->folds.clear();
  std::vector<BlockRef> writing;
  s->blocks.ForEach([&](Block& b) {
    if (!b.writers.empty()) writing.push_back(s->blocks.Find(b.key));
  });
  for (const BlockRef& b : writing) {
    const auto writers = b->writers;
    for (const auto& w : writers) s->Abort(b, w);
  }
  // What is worth most first: the newest of the recency list, then older ones.
  auto order = std::make_shared<std::vector<BlockRef>>();
  for (Block* b = s->blocks.newest(); b != nullptr; b = b->older)
    if (b->state() == BlockState::kResident) order->push_back(s->blocks.Find(b->key));
  auto step = std::make_shared<std::function<void()>>();
  auto flush = [s, done = std::move(done)] {
    auto rows = [s](SpillStore* store) {
      if (store == nullptr) return;
      store->PutRow(record::PriceRow{0, Tier::kHost, s->book.price() / kPriceOctave},
                    [](Status) {});
      for (const auto& [key, ctx] : s->contexts)
        for (int l = 0; l < static_cast<int>(ctx->spec.layers.size()); ++l)
          if (ctx->learner.tokens_seen(l) != 0)
            store->PutRow(ctx->learner.Row(l, ctx->tenant), [](Status) {});
    };
    rows(s->bank != nullptr ? s->bank : s->spill);
    auto end = [s, done] {
      s->on_idle = nullptr;
      done();
    };
    auto flush_bank = [s, end] {
      if (s->bank == nullptr)
        end();
      else
        s->bank->Flush([end](Status) { end(); });
    };
    if (s->spill == nullptr)
      flush_bank();
    else
      s->spill->Flush([flush_bank](Status) { flush_bank(); });
  };
  *step = [s, order, deadline, flush, next = size_t{0}, flushing = false]() mutable {
    if (flushing) return;
    while (s->spill != nullptr && next < order->size() && s->clock.Now() < deadline &&
           s->disk_bytes < s->options.disk_in_flight) {
      const BlockRef& block = (*order)[next++];
      if (block->state() != BlockState::kResident || s->HasDiskCopy(*block) || block->spilling)
        continue;
      if (s->spill->stats().live_bytes + block->segment_bytes() > s->spill->stats().budget) {
        next = order->size();  // full: what is left is worth less than what is there
        break;
      }
      s->Spill(block);
    }
    if (s->in_flight != 0) return;  // called again when it ends
    flushing = true;
    s->loop.Post(flush);
  };
  s->on_idle = [s, step] { s->loop.Post([step] { (*step)(); }); };
  s->on_idle();
}

}  // namespace dyna
