// Leases: what lookups promised and to whom (design 2).
//
// Thread rule: the loop's.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "client/base/clock.h"
#include "daemon/store/block.h"

namespace dyna {

struct HeldLease {
  uint64_t id = 0;
  SessionId session = 0;
  StoreContext* context = nullptr;
  Shard shard;
  QualityClass min_quality = QualityClass::kSmall;
  float max_nmse = 0;
  TimePoint expires;
  std::vector<BlockRef> run;
  std::vector<uint32_t> generations;  // of the run, when it was granted
};

class LeaseTable {
 public:
  // Runs for each block that a lease let go of.
  void OnDropped(std::function<void(Block&)> dropped) { dropped_ = std::move(dropped); }
  // Takes over a filled lease; its blocks are held from here on. Returns its id, never 0.
  uint64_t Grant(HeldLease lease);
  // Null: unknown, or of another session (a forged id reads as lost).
  HeldLease* Find(SessionId session, uint64_t id);
  bool Release(SessionId session, uint64_t id);
  // It was cleared or deleted: its leases live on for the others, and hold no byte of it.
  void Forget(Block& block);
  void ReleaseSession(SessionId session);
  // It lives until `expires` at least.
  void Extend(HeldLease& lease, TimePoint expires);
  // Ends those that expired before `now`, the oldest first; returns whose they were and their ids.
  // At most about `max_blocks` blocks are let go of: the rest ends in the next call.
  std::vector<std::pair<SessionId, uint64_t>> Expire(TimePoint now, size_t max_blocks);
  size_t size() const { return leases_.size(); }
  size_t BlocksOf(SessionId session) const;            // of its leases, each counted in each
  uint64_t held_bytes() const { return held_bytes_; }  // encoded, of all leased blocks

 private:
  using Key = std::pair<SessionId, uint64_t>;
  void Drop(std::map<Key, HeldLease>::iterator it);

  std::map<Key, HeldLease> leases_;
  std::set<std::pair<TimePoint, Key>> by_expiry_;
  std::map<SessionId, size_t> blocks_;
  std::function<void(Block&)> dropped_;
  uint64_t next_ = 1, held_bytes_ = 0;
};

}  // namespace dyna
