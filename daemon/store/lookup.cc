// Lookup: which blocks of a prefix are held, at which quality, and a lease on the leading run.
#include <algorithm>

#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

// What a reader demands against what the RAM or disk copy still is.
bool Satisfies(const Block& block, const wire::Lookup& want) {
  return block.effective >= want.min_quality &&
         (want.max_nmse <= 0 || block.nmse() <= want.max_nmse);
}

bool BankSatisfies(const Block& block, const wire::Lookup& want) {
  return block.bank != nullptr && block.bank->shards == block.shards && block.writers.empty() &&
         !block.loading && block.bank->quality >= want.min_quality &&
         (!block.bank->dropped || want.min_quality <= QualityClass::kSmall) &&
         (want.max_nmse <= 0 || block.bank->nmse <= want.max_nmse);
}

uint32_t BytesOf(const Block& block, const Shard& shard) {
  uint64_t sum = 0;
  for (const Segment& s : block.segments)
    if (s.layer >= shard.layer_begin && s.layer < shard.layer_end &&
        s.head_begin < shard.head_end && s.head_end() > shard.head_begin)
      sum += s.bytes;
  return static_cast<uint32_t>(std::min<uint64_t>(sum, UINT32_MAX));
}

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
  ++s.counts.lookups;
  reply.hits.resize(want.hashes.size());

  HeldLease lease;
  const uint64_t share =
      static_cast<uint64_t>(static_cast<double>(s.Limit()) * s.options.floor_share);
  uint64_t floor_bytes = s.leases.held_bytes() + s.pinned_bytes;
  const int64_t now_ms = s.clock.UnixMillis();
  bool leading = true;
  for (size_t i = 0; i < want.hashes.size(); ++i) {
    wire::LookupHit& hit = reply.hits[i];
    BlockRef block = s.blocks.Find({caller.tenant, want.context, want.hashes[i]});
    if (!block || block->opaque || (block->expires_at_ms != 0 && block->expires_at_ms <= now_ms)) {
      ++s.counts.misses;
      leading = false;
      continue;
    }
    if (!block->visible() || !block->Covers(want.shard)) {
      const bool writing = !block->writers.empty();
      hit.status = writing ? StatusCode::kPending : StatusCode::kMiss;
      ++(writing ? s.counts.pending : s.counts.misses);
      leading = false;
      continue;
    }
    const bool in_ram = block->state() == BlockState::kResident;
    const bool good = Satisfies(*block, want);
    if (!good && !BankSatisfies(*block, want)) {
      ++s.counts.misses;
      leading = false;
      continue;
    }
    hit.status = StatusCode::kOk;
    hit.tier = !good || (!in_ram && !s.SpillHolds(*block)) ? Tier::kBank
               : in_ram                                    ? Tier::kHost
                                                           : Tier::kSpill;
    hit.nmse = good ? block->nmse() : block->bank->nmse;
    hit.mean_bits = good ? block->mean_bits : block->bank->mean_bits;
    hit.bytes = BytesOf(*block, want.shard);
    ++s.counts.hits[static_cast<size_t>(hit.tier)];
    if (!want.lease || !leading) continue;
    // Beyond its share of the budget a lease would starve everybody else's puts (design 5).
    const uint64_t bytes = block->segment_bytes();
    if (floor_bytes + bytes > share && block->leases == 0) {
      leading = false;
      continue;
    }
    if (block->leases == 0) floor_bytes += bytes;
    // Only what is granted counts as use: the rest of the prefix is asked for again.
    s.blocks.Touch(*block);
    block->reuse.Hit(now_ms, s.options.reuse_half_life_s);
    lease.run.push_back(block);
    lease.generations.push_back(block->generation);
  }

  if (!want.lease || lease.run.empty()) return reply;
  reply.run = static_cast<uint32_t>(lease.run.size());
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
  const std::vector<BlockRef> run = lease.run;
  reply.lease = s.leases.Grant(std::move(lease));
  for (size_t i = 0; i < run.size(); ++i) {
    const BlockRef& block = run[i];
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
