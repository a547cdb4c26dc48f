// Lookup: which blocks of a prefix are held, at which quality, and a lease on the leading run.
//
// Of a sliding layer only the blocks that its window reaches from the run's end have to be there
// (design 5), so a longer run may be good where a shorter one is not: the last good end counts.
// A block of which nothing is held ends the run for everybody: a lease has nothing to hold there.
#include <algorithm>
#include <cassert>
#include <optional>

#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

// What a reader demands against what the RAM or disk copy still is.
bool Satisfies(const Block& block, const wire::Lookup& want) {
  return block.effective >= want.min_quality &&
         (want.max_nmse <= 0 || block.appraised_nmse <= want.max_nmse);
}

bool BankSatisfies(const Block& block, const wire::Lookup& want) {
  return block.bank != nullptr && block.bank->shards == block.shards && block.writers.empty() &&
         !block.loading && block.bank->quality >= want.min_quality &&
         (!block.bank->dropped || want.min_quality <= QualityClass::kSmall) &&
         (want.max_nmse <= 0 || block.bank->nmse <= want.max_nmse);
}

uint32_t BytesOf(const Block& block, const Shard& shard) {
  uint64_t sum = 0;
  if (block.shards.size() == 1 && block.shards[0] == shard) {  // the common case
    sum = block.appraised_bytes;
  } else {
    for (const Segment& s : block.segments)
      if (s.layer >= shard.layer_begin && s.layer < shard.layer_end &&
          s.head_begin < shard.head_end && s.head_end() > shard.head_begin)
        sum += s.bytes;
  }
  return static_cast<uint32_t>(std::min<uint64_t>(sum, UINT32_MAX));
}

// For how many blocks, this one included, no run may end: 0 where the block has all that the reader
// wants; nothing where it lacks a layer that every run needs.
std::optional<uint32_t> EndsBarred(const Block& block, const Shard& want, const ContextSpec& spec) {
  if (block.Covers(want)) return 0;
  uint32_t barred = 0;
  for (uint16_t l = want.layer_begin; l < want.layer_end; ++l) {
    const LayerShape& layer = spec.layers[l];
    const auto end = static_cast<uint16_t>(l + 1);
    if (block.Covers({l, end, want.head_begin, want.head_end})) continue;
    if (layer.kind != LayerKind::kSliding) return std::nullopt;
    barred = std::max(barred, layer.WindowBlocks());
  }
  return barred;
}

// What a lookup found, block by block.
struct Found {
  BlockRef block;      // null: nothing that may be served
  bool good = false;   // what is in RAM or spilled does; else the bank's copy
  bool whole = false;  // all layers are there
  bool being_written = false;
};

}  // namespace

wire::LookupReply Store::Lookup(const Caller& caller, const wire::Lookup& want) {
  Impl& s = *impl_;
  wire::LookupReply reply;
  StoreContext* ctx = s.Context(caller.tenant, want.context);
  if (ctx == nullptr) {
    reply.status = Status(StatusCode::kContextUnknown, "open the context first");
    return reply;
  }
  if (reply.status = Validate(want.shard, ctx->spec); !reply.status.ok()) return reply;
  s.counts.lookups += want.hashes.size();
  reply.hits.resize(want.hashes.size());

  const int64_t now_ms = s.clock.UnixMillis();
  // Beyond its share of the budget a lease would starve everybody else's puts (design 5).
  const auto share = static_cast<uint64_t>(static_cast<double>(s.Limit()) * s.options.floor_share);
  uint64_t floor_bytes = s.leases.held_bytes() + s.pinned_bytes;
  std::vector<Found> found(want.hashes.size());
  size_t run = 0, barred_until = 0;
  bool leading = true;
  std::optional<bool> spill_off;  // asked where a block lies there: most lookups find none
  const auto off = [&] {
    if (!spill_off) spill_off = s.spill != nullptr && !s.spill->stats().asks();
    return *spill_off;
  };
  for (size_t i = 0; i < found.size(); ++i) {
    Found& f = found[i];
    BlockRef block = s.blocks.Find({caller.tenant, want.context, want.hashes[i]});
    if (!block || block->opaque || (block->expires_at_ms != 0 && block->expires_at_ms <= now_ms) ||
        (block->state() == BlockState::kSpilled && !s.BankHolds(*block) && off())) {
      leading = false;
      continue;
    }
    f.being_written = !block->writers.empty();
    const auto barred = block->visible() ? EndsBarred(*block, want.shard, ctx->spec) : std::nullopt;
    f.whole = barred == 0u;
    f.good = Satisfies(*block, want);
    if (!barred || (!f.good && !BankSatisfies(*block, want))) {
      f.being_written &= !f.whole;
      leading = false;
      continue;
    }
    if (leading && want.lease && block->leases == 0) {
      floor_bytes += block->appraised_bytes;
      leading = floor_bytes <= share;
    }
    f.block = std::move(block);
    barred_until = std::max(barred_until, i + *barred);
    if (leading && i >= barred_until) run = i + 1;
  }
  // What is beyond the run is a hit if it is whole: another lookup may begin there.
  for (size_t i = 0; i < found.size(); ++i) {
    const Found& f = found[i];
    wire::LookupHit& hit = reply.hits[i];
    if (!f.block || (!f.whole && i >= run)) {
      hit.status = f.being_written ? StatusCode::kPending : StatusCode::kMiss;
      ++(f.being_written ? s.counts.pending : s.counts.misses);
      continue;
    }
    const Block& block = *f.block;
    assert(block.appraised_bytes == block.segment_bytes());
    hit.status = StatusCode::kOk;
    const bool in_ram = block.state() == BlockState::kResident;
    hit.tier = !f.good || (!in_ram && !s.SpillHolds(block)) ? Tier::kBank
               : in_ram                                     ? Tier::kHost
                                                            : Tier::kSpill;
    hit.nmse = f.good ? block.appraised_nmse : block.bank->nmse;
    hit.mean_bits = f.good ? block.mean_bits : block.bank->mean_bits;
    hit.bytes = BytesOf(block, want.shard);
    ++s.counts.hits[static_cast<size_t>(hit.tier)];
  }

  if (!want.lease || run == 0) return reply;
  if (s.leases.BlocksOf(caller.session) + run > s.options.leased_blocks) {
    reply.status =
        Status(StatusCode::kRetry,
               "too many blocks under leases of this client (limits.leased_blocks)", 100);
    return reply;
  }
  HeldLease lease;
  for (size_t i = 0; i < run; ++i) {
    // Only what is granted counts as use: the rest of the prefix is asked for again.
    Block& block = *found[i].block;
    s.blocks.Touch(block);
    block.reuse.Hit(now_ms, s.options.reuse_half_life_s);
    lease.run.push_back(found[i].block);
    lease.generations.push_back(block.generation);
  }
  reply.run = static_cast<uint32_t>(run);
  std::chrono::milliseconds ttl{want.ttl_ms};
  if (ttl.count() == 0) ttl = s.options.lease_ttl;
  ttl = std::min(ttl, s.options.max_lease_ttl);
  reply.ttl_ms = static_cast<uint32_t>(ttl.count());
  lease.session = caller.session;
  lease.context = ctx;
  lease.shard = want.shard;
  lease.min_quality = want.min_quality;
  lease.max_nmse = want.max_nmse;
  lease.expires = s.clock.Now() + ttl;
  reply.lease = s.leases.Grant(std::move(lease));
  for (size_t i = 0; i < run; ++i) {
    const BlockRef& block = found[i].block;
    if (!Satisfies(*block, want)) {
      // Only the bank's copy is good enough: it takes the place of the others.
      if (block->state() == BlockState::kResident) s.ToSpilled(*block);
      if (block->state() == BlockState::kSpilled && s.SpillHolds(*block)) {
        s.DropSpillCopy(*block);
        s.TakeBankCopy(*block);
      }
      if (HeldLease* held = s.leases.Find(caller.session, reply.lease))
        held->generations[i] = block->generation;  // the bank's may be an older one
    }
    if (block->state() == BlockState::kSpilled)
      s.Load(block, [](const Status&) {});  // begins under the lease; fetch joins it
    else
      s.BookLater(*block);
  }
  s.NeedTick();  // arms the expiry
  return reply;
}

bool Store::ReleaseLease(const Caller& caller, uint64_t id) {
  return impl_->leases.Release(caller.session, id);
}

}  // namespace dyna
