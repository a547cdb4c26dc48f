#include "daemon/store/lease_table.h"

#include <algorithm>

namespace dyna {

uint64_t LeaseTable::Grant(HeldLease lease) {
  lease.id = next_++;
  for (const BlockRef& b : lease.run) {
    if (b->leases++ == 0) held_bytes_ += b->held_bytes = b->appraised_bytes;
    if (lease.max_nmse > 0) ++b->frozen;
    b->lease_floor = std::max(b->lease_floor, lease.min_quality);
  }
  const uint64_t id = lease.id;
  leases_.emplace(id, std::move(lease));
  return id;
}

HeldLease* LeaseTable::Find(SessionId session, uint64_t id) {
  auto it = leases_.find(id);
  return it == leases_.end() || it->second.session != session ? nullptr : &it->second;
}

bool LeaseTable::Release(SessionId session, uint64_t id) {
  auto it = leases_.find(id);
  if (it == leases_.end() || it->second.session != session) return false;
  Drop(it);
  return true;
}

void LeaseTable::Forget(Block& block) {
  if (block.leases > 0) held_bytes_ -= std::exchange(block.held_bytes, 0);
}

void LeaseTable::ReleaseSession(SessionId session) {
  for (auto it = leases_.begin(); it != leases_.end();) {
    auto next = std::next(it);
    if (it->second.session == session) Drop(it);
    it = next;
  }
}

std::vector<std::pair<SessionId, uint64_t>> LeaseTable::Expire(TimePoint now) {
  std::vector<std::pair<SessionId, uint64_t>> ended;
  for (auto it = leases_.begin(); it != leases_.end();) {
    auto next = std::next(it);
    if (it->second.expires <= now) {
      ended.emplace_back(it->second.session, it->first);
      Drop(it);
    }
    it = next;
  }
  return ended;
}

void LeaseTable::Drop(std::unordered_map<uint64_t, HeldLease>::iterator it) {
  for (const BlockRef& b : it->second.run) {
    if (--b->leases == 0) held_bytes_ -= b->held_bytes;
    if (it->second.max_nmse > 0) --b->frozen;
    // The floor is that of the highest lease that ever held it; it falls with the last one.
    if (b->leases == 0) b->lease_floor = QualityClass::kSmall;
  }
  const std::vector<BlockRef> run = std::move(it->second.run);
  leases_.erase(it);
  if (dropped_)
    for (const BlockRef& b : run) dropped_(*b);
}

}  // namespace dyna
