// What happens when the budget is full, in this order (design 5): fewer bits at one price, down to
// each block's floor; then the coldest blocks move to disk as they are; then the disk's own coldest
// are dropped; only then do puts hear RETRY.
#include <algorithm>
#include <bit>
#include <utility>

#include "client/base/log.h"
#include "daemon/policy/log2_byte.h"
#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

constexpr size_t kColdCandidates = 32;        // looked at, from the oldest, for the least reuse
constexpr uint64_t kMovesAtOnce = 16u << 20;  // bytes of blocks that are on their way to disk
constexpr size_t kExpiresAtOnce = 256;        // blocks that a tick lets go of or looks at
constexpr double kPriceOctave = kEighths * kPriceSub;  // Price units to one doubling
// Blocks under way are waited for as long as they get on; then they count as what cannot shrink.
constexpr auto kOpenPatience = std::chrono::milliseconds(200);

}  // namespace

bool Store::Impl::Pressure(TimePoint until) {
  uint64_t target = Target();
  target -= std::min(target / 2, wanted_room);  // so that it fits when it is asked for again
  const uint64_t charged = Charged();
  const int64_t tiles = static_cast<int64_t>(target) - FixedBytes();
  const bool waits = encoding > 0 || (open_bytes > 0 && clock.Now() - open_moved < kOpenPatience);
  counts.log2_price = book.price() / kPriceOctave;
  if (charged <= target) {
    overshoot = 0;
    wanted_room = 0;
    book.Solve(tiles);  // the price falls again when much is free
    sweep_idle = false;
    return false;
  }
  const bool floors_fit = book.Solve(tiles - overshoot);
  counts.log2_price = book.price() / kPriceOctave;
  const uint64_t pending = arena.stats().retired_bytes + transcode_gain;
  if (charged <= target + pending) return true;  // what is under way will do
  const uint64_t excess = charged - target - pending;
  if (!sweep_idle) DemoteSlice(until);
  if (waits) return true;
  if (sweep_idle && transcodes == 0 && floors_fit && book.price() < kDearestPrice) {
    // The steps below this price are done or vanish in a segment's padding: ask for more of them.
    overshoot += std::max<int64_t>(static_cast<int64_t>(excess), book.bytes() / 256);
    sweep_idle = false;
  } else if (sweep_idle && transcodes == 0) {
    MoveColdBlocks(excess);
  } else if (spill != nullptr) {
    // What no bits below the price of moving would give.
    const auto moving = static_cast<Price>(options.spill_log2_price * kPriceOctave);
    const int64_t over = book.projected(std::min(moving, book.price())) - tiles;
    MoveColdBlocks(std::min(excess, static_cast<uint64_t>(std::max<int64_t>(over, 0))));
  }
  return true;
}

bool Store::Impl::DemoteSlice(TimePoint until) {
  BlockRef at = sweep_at.lock();
  Block* block = nullptr;
  if (at && at->state() != BlockState::kGone) {
    block = at.get();
  } else {
    block = blocks.oldest();
    sweep_found = 0;
  }
  std::vector<TilePlan> plan_now;
  for (; block != nullptr; block = block->newer) {
    if (transcodes >= TranscodesAtOnce() || clock.Now() >= until) {
      sweep_at = blocks.Find(block->key);
      return true;
    }
    if (!Priced(*block) || Frozen(*block) || block->spilling) continue;
    BlockRef ref;
    for (size_t i = 0; i < block->segments.size(); ++i) {
      Segment& s = block->segments[i];
      if (!s.booked || s.transcoding || s.booked_frozen) continue;
      if (transcodes >= TranscodesAtOnce()) break;
      PlanOfToday(*block, s, &plan_now);
      Decide(AsPriced(*block, s, block->cells), book.price(block->key.tenant), false,
             options.policy.price, plan_now);
      bool fewer = false;
      for (size_t h = 0; h < plan_now.size(); ++h)
        fewer |= plan_now[h].k_kind != block->cells[s.cell + h].k_kind ||
                 plan_now[h].v_kind != block->cells[s.cell + h].v_kind;
      if (!fewer) continue;
      if (!ref) ref = blocks.Find(block->key);
      if (StartTranscode(ref, i, plan_now, *s.booked)) ++sweep_found;
    }
    if (transcodes >= TranscodesAtOnce()) {
      sweep_at = blocks.Find(block->key);  // its other segments next time
      return true;
    }
  }
  sweep_at.reset();
  sweep_idle = sweep_found == 0 && transcodes == 0;
  return false;
}

bool Store::Impl::StartTranscode(const BlockRef& block, size_t index,
                                 std::vector<TilePlan> plan_now, const LadderSet& ladders) {
  Segment& s = block->segments[index];
  StoreContext& ctx = *block->context;
  struct Job {
    ReadRef from;
    Extent to;
    std::vector<TilePlan> plan;
    std::vector<TileMeasure> measure;
    std::shared_ptr<const Basis> basis;
    TranscodeJob job;
    BasisName name = 0;
    uint64_t gain = 0;
  };
  auto job = std::make_shared<Job>();
  const bool levels = std::any_of(plan_now.begin(), plan_now.end(),
                                  [](const TilePlan& p) { return kind::IsLevel(p.k_kind); });
  job->name = s.basis;
  if (s.basis == 0 && levels && ladders.basis()) job->name = ladders.basis()->name();
  job->basis = ctx.Share(job->name);
  job->plan = std::move(plan_now);
  job->measure.resize(job->plan.size());
  SegmentId id{ctx.fingerprint, job->name,    block->key.hash, block->index,
               s.layer,         s.head_begin, s.kv_heads,      ctx.spec.layers[s.layer].head_dim,
               ctx.spec.dtype};
  const uint64_t pins = block->index == 0 ? (uint64_t{1} << kPinnedTokens) - 1 : 0;
  const size_t bytes = EncodedBytes(id, job->plan, pins, job->basis.get());
  const bool drops = std::any_of(job->plan.begin(), job->plan.end(), [&](const TilePlan& p) {
    const auto h = static_cast<size_t>(&p - job->plan.data());
    return p.live != (s.live.empty() ? ~uint64_t{0} : s.live[h]);
  });
  // A step that is lost in the padding is not worth taking, but a mask may change for nothing.
  if (bytes == 0 || bytes > s.extent.size() || (bytes == s.extent.size() && !drops)) return false;
  // A demotion may use the headroom: it is what makes room.
  auto extent = arena.Allocate(bytes, block->serial);
  if (!extent.ok()) {
    wanted_range = std::max<uint64_t>(wanted_range, bytes);
    return false;
  }
  job->to = std::move(*extent);
  job->from = s.extent.Read();
  job->gain = s.extent.size() - job->to.size();
  job->job.segment = job->from.bytes().first(s.bytes);
  job->job.basis = job->basis.get();
  job->job.rope = ctx.rope_for(s.layer, job->job.basis);
  job->job.plan = job->plan;
  job->job.out = job->to.bytes();
  job->job.measure = job->measure;
  s.transcoding = true;
  ++transcodes;
  // Until the old extent goes both count: what is on its way is not asked for twice.
  transcode_gain += job->gain + job->to.size();
  transcode_copies += job->to.size();
  const bool took_basis = job->name != s.basis;
  if (took_basis) UseBasis(ctx, job->name, +1);
  const uint32_t epoch = block->epoch;
  const uint16_t layer = s.layer, head = s.head_begin;
  pending_transcode_bytes += s.bytes;
  pending_transcodes.push_back(
      {&job->job, job,
       [this, block, job, epoch, quality = block->quality, took_basis, layer, head, &ctx] {
         --transcodes;
         transcode_gain -= job->gain + job->to.size();
         transcode_copies -= job->to.size();
         NeedTick();
         Segment* segment = block->epoch == epoch ? block->Find(layer, head) : nullptr;
         if (segment == nullptr || block->state() == BlockState::kGone) {
           if (took_basis) UseBasis(ctx, job->name, -1);
           return;
         }
         segment->transcoding = false;
         // A lease granted, or a higher class asked meanwhile promised what the block was then.
         if (!job->job.status.ok() || block->state() != BlockState::kResident || !segment->extent ||
             Frozen(*block) || block->quality != quality) {
           if (took_basis) UseBasis(ctx, job->name, -1);
           if (!job->job.status.ok()) {
             LogWarn("demotion of block {} layer {} failed: {}", block->index, layer,
                     job->job.status.ToString());
             Unbook(*block, *segment);  // it is not tried again
           }
           return;
         }
         Unbook(*block, *segment);
         block->tenant->charged -= std::min<uint64_t>(block->tenant->charged, segment->bytes);
         counts.demoted_bytes += segment->bytes - std::min(segment->bytes, job->job.bytes);
         segment->extent = std::move(job->to);
         segment->bytes = job->job.bytes;
         for (size_t h = 0; h < job->plan.size(); ++h) {
           const uint64_t lived = segment->live.empty() ? ~uint64_t{0} : segment->live[h];
           counts.dropped_tokens +=
               static_cast<uint64_t>(std::popcount(lived & ~job->plan[h].live));
         }
         segment->live.clear();
         if (std::any_of(job->plan.begin(), job->plan.end(),
                         [](const TilePlan& p) { return p.live != ~uint64_t{0}; }))
           for (const TilePlan& p : job->plan) segment->live.push_back(p.live);
         block->dropped |= !segment->live.empty();
         segment->nmse = job->job.nmse + DroppedShare(job->plan);
         if (took_basis) segment->basis = job->name;
         block->tenant->charged += segment->bytes;
         for (size_t h = 0; h < job->plan.size(); ++h) {
           block->cells[segment->cell + h].k_kind = job->plan[h].k_kind;
           block->cells[segment->cell + h].v_kind = job->plan[h].v_kind;
         }
         ++block->revision;
         ++counts.demoted_segments;
         Appraise(*block);
         if (block->dropped) Charge(*block);
         Book(*block, *segment);
         sweep_idle = false;
       }});
  if (pending_transcode_bytes >= backend.batch_bytes()) FlushTranscodes();
  return true;
}

uint32_t Store::Impl::TranscodesAtOnce() const {
  constexpr uint32_t kDeviceFactor = 8;  // one call of a device takes as many as a tick of the CPU
  return options.demotions_in_flight * (backend.batch_bytes() != 0 ? kDeviceFactor : 1);
}

void Store::Impl::FlushTranscodes() {
  if (pending_transcodes.empty()) return;
  const size_t bytes = std::exchange(pending_transcode_bytes, 0);
  auto batch = std::make_shared<std::vector<PendingTranscode>>(std::move(pending_transcodes));
  pending_transcodes.clear();
  RunCodec(
      bytes,
      [&be = backend, batch] {
        std::vector<TranscodeJob> jobs;
        for (const PendingTranscode& p : *batch) jobs.push_back(*p.job);
        be.Transcode(jobs);
        for (size_t i = 0; i < jobs.size(); ++i) *(*batch)[i].job = std::move(jobs[i]);
      },
      [batch] {
        for (const PendingTranscode& p : *batch) p.done();
      });
}

bool Store::Impl::MoveColdBlocks(uint64_t excess) {
  if (clock.Now() < retry_disk_at) return false;
  uint64_t freed = moving_bytes;
  bool moved = false;
  const int64_t now = clock.UnixMillis();
  while (freed < excess && disk_bytes < std::min(kMovesAtOnce, options.disk_in_flight)) {
    // Of the least recently used, the one with the least reuse.
    Block* victim = nullptr;
    double least = 0;
    size_t seen = 0;
    for (Block* b = blocks.oldest(); b != nullptr && seen < kColdCandidates; b = b->newer) {
      if (b->state() != BlockState::kResident || b->leases > 0 || b->pinned || b->spilling ||
          b->banking || !b->writers.empty() || b->young())
        continue;
      const bool transcoding = std::any_of(b->segments.begin(), b->segments.end(),
                                           [](const Segment& s) { return s.transcoding; });
      if (transcoding) continue;
      ++seen;
      const double h = b->reuse.At(now, options.reuse_half_life_s);
      if (victim == nullptr || h < least) {
        victim = b;
        least = h;
      }
    }
    if (victim == nullptr) return moved;
    const uint64_t bytes = victim->segment_bytes();
    if (HasDiskCopy(*victim)) {
      ToSpilled(*victim);
    } else if (spill != nullptr && spill->stats().asks()) {
      if (spill->stats().live_bytes + bytes > spill->stats().budget && !EvictFromSpill(bytes)) {
        retry_disk_at = clock.Now() + std::chrono::milliseconds(200);
        return moved;
      }
      Spill(blocks.Find(victim->key));
    } else {
      ++counts.evicted_blocks;
      if (victim->bank)
        ToSpilled(*victim);  // older or less than what was in RAM, but acknowledged
      else
        Gone(*victim, true);
    }
    moved = true;
    freed += bytes;
  }
  return moved;
}

bool Store::Impl::EvictFromSpill(uint64_t bytes) {
  uint64_t freed = 0;
  Block* next = nullptr;
  for (Block* b = blocks.oldest(); b != nullptr && freed < bytes; b = next) {
    next = b->newer;
    if (!b->in_spill || b->loading || b->spilling || b->banking) continue;
    if (b->state() == BlockState::kResident || (b->visible() && !SpillHolds(*b))) {
      // Its copy is only a head start for a later spill, or older than the bank's.
      DropSpillCopy(*b);
    } else if (b->state() == BlockState::kSpilled && b->leases == 0 && !b->pinned) {
      ++counts.evicted_blocks;
      if (b->bank) {
        DropSpillCopy(*b);
        TakeBankCopy(*b);
      } else {
        Gone(*b, true);
      }
    } else {
      continue;
    }
    freed += bytes;  // at least one block of this size class; the spill says QUOTA again if not
  }
  return freed > 0;
}

void Store::Impl::CompactSlice() {
  // In pieces that nothing joins: fewer bytes then, or whoever asked would hear RETRY for ever.
  const auto end = [this] {
    if (arena.stats().storage.largest_free_bytes < wanted_range) MoveColdBlocks(wanted_range);
    wanted_range = 0;
  };
  if (plan.empty()) plan = arena.PlanCompaction(wanted_range);
  if (plan.empty()) {
    end();
    return;
  }
  uint64_t moved = 0;
  const bool finished =
      arena.CompactStep(plan, 1u << 20, [&](uint64_t owner, uint64_t offset, Extent& fresh) {
        Block* block = blocks.FindSerial(owner);
        if (block == nullptr) return false;
        for (Segment& s : block->segments) {
          if (!s.extent || s.extent.offset() != offset) continue;
          if (s.transcoding || s.extent.being_read()) return false;
          const auto from = s.extent.bytes();
          std::copy(from.begin(), from.end(), fresh.bytes().begin());
          moved += from.size();
          std::swap(s.extent, fresh);
          return true;
        }
        return false;  // of a put that is being encoded
      });
  counts.compacted_bytes += moved;
  if (!finished) return;
  plan = {};
  end();  // an extent may have found no room outside the window
}

void Store::Impl::ExpireSlice() {
  const TimePoint now = clock.Now();
  for (const auto& [session, lease] : leases.Expire(now, kExpiresAtOnce))
    if (on_revoked) on_revoked(session, lease);
  for (auto it = sessions.begin(); it != sessions.end();) {
    auto next = std::next(it);
    AbortLate(it->second);
    if (it->second.writing.empty()) sessions.erase(it);
    it = next;
  }
  // Time to live: a few of the oldest at each tick; a lookup never serves an expired one anyway.
  const int64_t now_ms = clock.UnixMillis();
  size_t looked = 0;
  Block* next = nullptr;
  BlockRef at = expire_at.lock();
  for (Block* b = at && at->state() != BlockState::kGone ? at.get() : blocks.oldest();
       b != nullptr && looked < kExpiresAtOnce; b = next, ++looked) {
    next = b->newer;
    expire_at = next == nullptr ? std::weak_ptr<Block>() : blocks.Find(next->key);
    if (b->expires_at_ms == 0 || b->expires_at_ms > now_ms || b->leases > 0 || !b->writers.empty())
      continue;
    ++counts.expired_blocks;
    Gone(*b, true);
  }
  if (next == nullptr && expired_rounds > 0) --expired_rounds;  // it ended at the newest
}

}  // namespace dyna
