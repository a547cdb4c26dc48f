// A block as the store holds it, and the only function that changes its state (design 5).
//
// Thread rule: the loop's. Asynchronous work holds a BlockRef and the generation it started with;
// its completion is dropped when Current() says that the block moved on.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "client/base/clock.h"
#include "daemon/arena/arena.h"
#include "daemon/policy/history.h"
#include "daemon/policy/importance.h"
#include "daemon/policy/ladder_set.h"
#include "daemon/store/nursery_share.h"
#include "schemas/record.h"
#include "schemas/types.h"

namespace dyna {

struct StoreContext;
struct Tenant;
using SessionId = uint64_t;

enum class BlockState : uint8_t {
  kWriting,   // no shard is complete yet: invisible to readers
  kResident,  // every segment has its bytes in the arena
  kSpilled,   // every segment is on disk, none in the arena
  kGone,      // out of the table; only late completions still hold it
};
std::string_view BlockStateName(BlockState state);

// One layer of one writer's heads. `cell` is the first of its kv_heads entries in Block::cells.
struct Segment {
  uint16_t layer = 0, head_begin = 0, kv_heads = 0;
  BasisName basis = 0;
  uint32_t bytes = 0;  // encoded
  uint32_t cell = 0;
  float nmse = 0;
  bool transcoding = false;    // a demotion is under way
  Extent extent;               // empty unless resident
  NurseryShare nursery;        // while it is young: beside the budget, not in the price book
  std::vector<uint64_t> live;  // [kv_heads] masks as in its directory; empty: every token lives

  // What the price book was told; Remove must get the very same. Null: it is not in the book.
  std::shared_ptr<const LadderSet> booked;
  int16_t booked_h = 0;
  bool booked_observed = false, booked_frozen = false;

  uint16_t head_end() const { return static_cast<uint16_t>(head_begin + kv_heads); }
};

struct Block;
struct Writer;

struct OpenPut {
  std::shared_ptr<Block> block;
  std::shared_ptr<Writer> writer;
};

// A shard that is being written by one session. Aborted when the session dies or takes too long.
struct Writer {
  SessionId session = 0;
  Shard shard;
  QualityClass quality = QualityClass::kBalanced;
  Durability durability = Durability::kVolatile;
  bool replaces = false;  // commits as a new generation
  bool aborted = false;
  int64_t expires_at_ms = 0;
  TimePoint moved;                    // when something of it last came, or was coded
  std::list<OpenPut>::iterator open;  // its entry in its session's list
  uint64_t reserved = 0;              // arena bytes, until it commits or aborts
  size_t encoding = 0;                // segments whose job is under way
  std::vector<Segment> segments;      // one a layer of the shard; bytes 0: not there yet
  std::vector<bool> taken;            // [layer - shard.layer_begin]: put, coded or not
  std::vector<record::Cell> cells;    // [layer][head] of the shard
  bool complete() const;
};

struct Block {
  record::BlockKey key;
  BlockHash parent;
  uint32_t index = 0;
  uint32_t generation = 1;         // another content
  uint32_t newest_generation = 1;  // that was ever given to this key
  uint32_t epoch = 0;              // of `segments`: bumped when they are made anew
  uint32_t revision = 0;           // the same content at fewer bits
  QualityClass quality = QualityClass::kBalanced;
  Durability durability = Durability::kVolatile;
  bool pinned = false;
  bool opaque = false;
  StoreContext* context = nullptr;
  Tenant* tenant = nullptr;
  uint64_t serial = 0;  // of this object, never reused: owns the arena's extents

  std::vector<Shard> shards;      // complete ones
  std::vector<Segment> segments;  // by (layer, head_begin)
  std::vector<record::Cell> cells;
  std::vector<BlockHistory> history;  // one a shard, in their order; empty: nothing observed
  std::vector<std::shared_ptr<Writer>> writers;

  // Leases: while any lives the block is not dropped, nor demoted below what they promised.
  uint32_t leases = 0;
  QualityClass lease_floor = QualityClass::kSmall;
  uint64_t held_bytes = 0;    // what the lease table counted for it
  uint64_t pinned_bytes = 0;  // what the store counted for its pin
  uint32_t frozen = 0;        // leases that promised a max_nmse: no demotion at all

  Reuse reuse;                                    // h
  TimePoint young_until{};                        // see young.cc
  float booked_hits = 1;                          // reuse.hits when the price book heard of it
  int64_t expires_at_ms = 0;                      // Unix time; 0: never
  QualityClass effective = QualityClass::kSmall;  // what its tiles still satisfy
  float mean_bits = 0;                            // of K and V codes, per element
  // segment_bytes() and nmse() as Appraise found them: lookups ask for them, block by block.
  uint64_t appraised_bytes = 0;
  float appraised_nmse = 0;

  // What is on disk: the generation and revision whose bytes the tier holds (0: none).
  uint32_t spill_generation = 0, spill_revision = 0;
  std::unique_ptr<record::BlockMeta> bank;  // what the bank acknowledged; null: nothing
  uint32_t history_on_disk = 0;             // bytes of the spilled history part
  // Something of it, of whatever generation, is there or on its way.
  bool in_spill = false, in_bank = false;
  // It was once: what ends with the block, for an earlier deletion may be about to fail.
  bool spill_touched = false, bank_touched = false;
  bool spilling = false, banking = false, loading = false;
  bool history_dirty = false;                       // newer than the bank's
  bool dropped = false;                             // some of its tokens are not live
  std::optional<TimePoint> drop_due;                // the chain that ends here is decided then
  bool queued = false;                              // in the store's list of blocks to book again
  std::vector<std::function<void(Status)>> banked;  // persists that wait for the one under way
  std::vector<std::function<void(Status)>> pins;    // and pins that do
  uint32_t pins_on_way = 0;                         // to the bank: its row is not synced yet
  std::vector<std::function<void(const Status&)>> loaded;  // waiters of a read-back

  uint64_t charged = 0;  // bytes that the budget counts for it, arena extents excluded
  Block *newer = nullptr, *older = nullptr;  // BlockTable's recency list

  BlockState state() const { return state_; }
  // The legal table of design 5: false for what is not in it, and nothing changed
  // (Store::Impl::Move is who asks). Entering kGone or kSpilled drops the extents.
  [[nodiscard]] bool To(BlockState next);
  bool visible() const { return state_ == BlockState::kResident || state_ == BlockState::kSpilled; }

  bool young() const;              // some of it is in the nursery
  uint64_t segment_bytes() const;  // encoded, of all segments
  float nmse() const;              // byte-weighted mean over segments
  // True when complete shards hold every layer and head of `shard`.
  bool Covers(const Shard& shard) const;
  // The segment with this head of this layer, or null.
  Segment* Find(uint16_t layer, uint16_t head);

 private:
  BlockState state_ = BlockState::kWriting;
};

using BlockRef = std::shared_ptr<Block>;

}  // namespace dyna
