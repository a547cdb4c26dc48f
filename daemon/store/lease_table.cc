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
  const Key key{lease.session, lease.id};
  by_expiry_.emplace(lease.expires, key);
  if (!lease.run.empty()) blocks_[lease.session] += lease.run.size();
  leases_.emplace(key, std::move(lease));
  return key.second;
}

HeldLease* LeaseTable::Find(SessionId session, uint64_t id) {
  auto it = leases_.find({session, id});
  return it == leases_.end() ? nullptr : &it->second;
}

size_t LeaseTable::BlocksOf(SessionId session) const {
  const auto it = blocks_.find(session);
  return it == blocks_.end() ? 0 : it->second;
}

bool LeaseTable::Release(SessionId session, uint64_t id) {
  auto it = leases_.find({session, id});
  if (it == leases_.end()) return false;
  Drop(it);
  return true;
}

void LeaseTable::Forget(Block& block) {
  if (block.leases > 0) held_bytes_ -= std::exchange(block.held_bytes, 0);
}

void LeaseTable::ReleaseSession(SessionId session) {
  for (auto it = leases_.lower_bound({session, 0});
       it != leases_.end() && it->first.first == session;)
    Drop(it++);
}

void LeaseTable::Extend(HeldLease& lease, TimePoint expires) {
  if (expires <= lease.expires) return;
  const Key key{lease.session, lease.id};
  by_expiry_.erase({lease.expires, key});
  by_expiry_.emplace(lease.expires = expires, key);
}

std::vector<std::pair<SessionId, uint64_t>> LeaseTable::Expire(TimePoint now, size_t max_blocks) {
  std::vector<std::pair<SessionId, uint64_t>> ended;
  for (size_t blocks = 0; blocks < max_blocks && !by_expiry_.empty();) {
    const auto [expires, key] = *by_expiry_.begin();
    if (expires > now) break;
    ended.push_back(key);
    const auto it = leases_.find(key);
    blocks += 1 + it->second.run.size();
    Drop(it);
  }
  return ended;
}

void LeaseTable::Drop(std::map<Key, HeldLease>::iterator it) {
  for (const BlockRef& b : it->second.run) {
    if (--b->leases == 0) held_bytes_ -= b->held_bytes;
    if (it->second.max_nmse > 0) --b->frozen;
    // The floor is that of the highest lease that ever held it; it falls with the last one.
    if (b->leases == 0) b->lease_floor = QualityClass::kSmall;
  }
  const std::vector<BlockRef> run = std::move(it->second.run);
  if (!run.empty()) {
    const auto of_session = blocks_.find(it->first.first);
    if ((of_session->second -= run.size()) == 0) blocks_.erase(of_session);
  }
  by_expiry_.erase({it->second.expires, it->first});
  leases_.erase(it);
  if (dropped_)
    for (const BlockRef& b : run) dropped_(*b);
}

}  // namespace dyna
