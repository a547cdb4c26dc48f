// Compaction of the arena: which extents to move so that one long free range appears. The bytes are
// moved by the caller, who alone knows who points at them.
#include <cassert>
#include <utility>

#include "daemon/arena/arena.h"

namespace dyna {

// Bytes that a reader holds stay where they are, and so does a range that nobody owns any more.
bool Arena::Movable(OffsetAllocator::Node node) const {
  const Slot& slot = slots_[node];
  return slot.live && slot.readers == 0;
}

// Two pointers over the ranges in address order: each window is the shortest run of movable and
// free ranges that spans `want`; the one with the fewest bytes to move wins. O(ranges), so for a
// slow tick.
Arena::Plan Arena::PlanCompaction(uint64_t want) {
  constexpr auto kNone = OffsetAllocator::kNone;
  Plan plan;
  if (want == 0 || want > allocator_.free_bytes()) return plan;
  if (allocator_.Report().largest_free_bytes >= want) return plan;

  OffsetAllocator::Node best_begin = kNone, best_end = kNone;
  uint64_t best_live = ~uint64_t{0};
  OffsetAllocator::Node begin = allocator_.First();
  uint64_t span = 0, live = 0;
  for (auto end = begin; end != kNone; end = allocator_.Next(end)) {
    if (!allocator_.IsFree(end) && !Movable(end)) {
      begin = allocator_.Next(end);
      span = live = 0;
      continue;
    }
    span += allocator_.bytes(end);
    if (!allocator_.IsFree(end)) live += allocator_.bytes(end);
    while (span - allocator_.bytes(begin) >= want) {
      span -= allocator_.bytes(begin);
      if (!allocator_.IsFree(begin)) live -= allocator_.bytes(begin);
      begin = allocator_.Next(begin);
    }
    const uint64_t free_outside = allocator_.free_bytes() - (span - live);
    // Nothing to move: a free range of many that the allocator does not find (Longest).
    if (span >= want && live > 0 && live < best_live && live <= free_outside) {
      best_live = live;
      best_begin = begin;
      best_end = allocator_.Next(end);
    }
  }
  if (best_begin == kNone) return plan;

  for (auto node = best_begin; node != best_end; node = allocator_.Next(node)) {
    if (allocator_.IsFree(node)) {
      allocator_.Reserve(node);
      plan.holes_.push_back(Adopt(node, 0));
    } else {
      plan.moves_.push_back({node, slots_[node].serial});
      plan.bytes_ += allocator_.bytes(node);
    }
  }
  return plan;
}

bool Arena::CompactStep(Plan& plan, uint64_t max_bytes, const Mover& mover) {
  uint64_t moved = 0;
  while (!plan.moves_.empty() && moved < max_bytes) {
    const Plan::Move move = plan.moves_.back();
    plan.moves_.pop_back();
    const Slot& slot = slots_[move.node];
    if (slot.serial != move.serial || !Movable(move.node)) continue;  // gone, or read meanwhile
    const uint64_t bytes = allocator_.bytes(move.node);
    plan.bytes_ -= bytes;
    const uint64_t owner = slot.owner;
    auto fresh = allocator_.Allocate(bytes);
    if (!fresh) {  // the room outside went to somebody else
      plan.moves_.clear();
      break;
    }
    Extent extent = Adopt(*fresh, owner);
    if (mover(owner, allocator_.offset(move.node), extent)) {
      assert(extent.node_ == move.node);
      ++moved_extents_;
      plan.holes_.push_back(std::move(extent));  // or the next fresh extent would land in it
    }
    moved += bytes;
  }
  if (!plan.moves_.empty()) return false;
  plan.holes_.clear();
  plan.bytes_ = 0;
  return true;
}

}  // namespace dyna
