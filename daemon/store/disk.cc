// What goes to the disks: spill and bank (design 5 and 8). What comes back is in load.cc.
#include <algorithm>
#include <tuple>

#include "client/base/log.h"
#include "daemon/store/history_record.h"
#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

bool Holds(const record::BlockMeta& held, uint16_t layer, uint16_t head_begin) {
  return std::any_of(held.segments.begin(), held.segments.end(),
                     [&](const auto& e) { return e.layer == layer && e.head_begin == head_begin; });
}

// What the bank has acknowledged stays as it is, whatever became of the copy in RAM.
void KeepAcknowledged(const record::BlockMeta& held, record::BlockMeta* meta) {
  // Unless a segment is new: then its masks count too.
  if (held.segments.size() == meta->segments.size()) meta->dropped = held.dropped;
  size_t held_cell = 0;
  for (const record::SegmentEntry& e : held.segments) {
    size_t cell = 0;
    for (record::SegmentEntry& m : meta->segments) {
      if (m.layer == e.layer && m.head_begin == e.head_begin && m.kv_heads == e.kv_heads) {
        m = e;
        std::copy_n(held.cells.begin() + static_cast<long>(held_cell), e.kv_heads,
                    meta->cells.begin() + static_cast<long>(cell));
      }
      cell += m.kv_heads;
    }
    held_cell += e.kv_heads;
  }
}

}  // namespace

record::BlockMeta Store::Impl::MetaOf(const Block& block) const {
  record::BlockMeta m;
  m.key = block.key;
  m.parent = block.parent;
  m.index = block.index;
  m.generation = block.generation;
  m.revision = block.revision;
  m.quality = block.quality;
  m.durability = block.durability;
  m.pinned = block.pinned;
  m.opaque = block.opaque;
  m.dropped = block.dropped;
  m.drop_due = block.drop_due.has_value();
  m.reuse = block.reuse.hits;
  m.reuse_at_ms = block.reuse.at_ms;
  m.nmse = block.nmse();
  m.mean_bits = block.mean_bits;
  m.expires_at_ms = block.expires_at_ms;
  m.shards = block.shards;
  for (const Segment& s : block.segments) {
    const uint16_t heads = block.opaque ? uint16_t{0} : s.kv_heads;
    m.segments.push_back({s.layer, s.head_begin, heads, s.basis, s.bytes});
    for (size_t h = 0; h < s.kv_heads && !block.opaque; ++h)
      m.cells.push_back(block.cells[s.cell + h]);
  }
  return m;
}

void Store::Impl::RewriteContextRow(StoreContext& ctx) {
  for (const bool to_bank : {false, true})
    if (SpillStore* store = to_bank ? bank : spill)
      ctx.rows.on(to_bank).Rewrite([&](auto done) { store->PutRow(ctx.Row(), std::move(done)); });
}

void Store::Impl::EnsureRows(StoreContext& ctx, SpillStore& store, bool to_bank,
                             const record::BlockMeta& meta, std::function<void(Status)> done) {
  struct Wait {
    size_t left;
    Status status;
    std::function<void(Status)> done;
  };
  auto wait = std::make_shared<Wait>(Wait{1, {}, std::move(done)});  // 1: this function itself
  const auto one = [wait](const Status& status) {
    if (wait->status.ok()) wait->status = status;
    if (--wait->left == 0) wait->done(wait->status);
  };
  ++wait->left;
  ctx.rows.on(to_bank).Ensure([&](auto put) { store.PutRow(ctx.Row(), std::move(put)); }, one);
  for (const record::SegmentEntry& e : meta.segments) {
    if (e.basis == 0) continue;
    BasisUse& use = ctx.bases.at(e.basis);
    ++wait->left;
    use.rows.on(to_bank).Ensure(
        [&](auto put) {
          const auto object = use.basis->bytes();
          const auto* p = reinterpret_cast<const uint8_t*>(object.data());
          store.PutRow(
              record::BasisRow{ctx.tenant, ctx.fingerprint, e.basis, {p, p + object.size()}},
              std::move(put));
        },
        one);
  }
  one({});
}

// A block on its way to a disk.
struct Store::Impl::DiskWrite {
  DiskWrite(BlockRef what, SpillStore& where, bool bank)
      : block(std::move(what)), store(where), to_bank(bank), epoch(block->epoch) {}
  const BlockRef block;
  SpillStore& store;
  const bool to_bank;
  const uint32_t epoch;
  bool leans = false;  // on parts that the bank has acknowledged
  uint64_t bytes = 0;
  record::BlockMeta meta;
  std::vector<PartId> ids;
  std::vector<uint32_t> lengths;
  std::vector<ReadRef> refs;
  std::vector<std::vector<std::byte>> segments;
  std::vector<std::byte> history;
  std::function<void(Status)> done;

  // The checksum is written when a segment leaves the arena, on a copy: readers go on.
  void Seal() {
    for (size_t i = 0; i < refs.size(); ++i) {
      const auto from = refs[i].bytes().first(lengths[i]);
      segments.emplace_back(from.begin(), from.end());
      if (!block->opaque) SealSegment(segments.back());
    }
  }
  // Not OK: nothing may be written any more, or it would come after its deletion.
  Status MovedOn() const {
    if (block->state() == BlockState::kGone || block->epoch != epoch)
      return {StatusCode::kCancelled, "the block was dropped while it was being written"};
    if (leans && !block->bank)
      return {StatusCode::kRetry, "the bank's copy was dropped while it was added to", 1};
    return {};
  }
};

void Store::Impl::WriteBlock(const BlockRef& block, SpillStore& store, bool to_bank,
                             record::BlockMeta meta, std::function<void(Status)> done) {
  auto write = std::make_shared<DiskWrite>(block, store, to_bank);
  write->meta = std::move(meta);
  write->history = PackHistory(block->history);
  write->meta.history_bytes = static_cast<uint32_t>(write->history.size());
  write->done = std::move(done);
  // Parts that the bank has acknowledged need not come again, and must not: RAM may have fewer
  // bits.
  write->leans = to_bank && block->bank && block->bank->generation == block->generation;
  for (const Segment& s : block->segments) {
    if (write->leans && Holds(*block->bank, s.layer, s.head_begin)) continue;
    write->ids.push_back({PartId::Kind::kSegment, s.layer, s.head_begin});
    write->lengths.push_back(s.bytes);
    write->refs.push_back(s.extent.Read());
    write->bytes += s.bytes;
  }
  disk_bytes += write->bytes;
  RunCodec(
      write->bytes, [write] { write->Seal(); },
      [this, write] {
        write->refs.clear();
        ++in_flight;
        if (Status status = write->MovedOn(); !status.ok()) {
          EndWrite(*write, std::move(status));
          return;
        }
        EnsureRows(*write->block->context, write->store, write->to_bank, write->meta,
                   [this, write](Status rows) { WriteSealed(write, std::move(rows)); });
      });
}

void Store::Impl::WriteSealed(const std::shared_ptr<DiskWrite>& write, Status rows) {
  if (!rows.ok() && rows.code() != StatusCode::kQuota)
    rows = {StatusCode::kRetry, "a row that it needs was not stored: " + rows.ToString(), 100};
  if (rows.ok()) rows = write->MovedOn();
  if (!rows.ok()) return EndWrite(*write, std::move(rows));
  BlockWrite out;
  out.meta = write->meta;
  for (size_t i = 0; i < write->segments.size(); ++i)
    out.parts.push_back({write->ids[i], write->segments[i]});
  if (!write->history.empty()) out.parts.push_back({kHistoryPart, write->history});
  Block& block = *write->block;
  (write->to_bank ? block.in_bank : block.in_spill) = true;
  (write->to_bank ? block.bank_touched : block.spill_touched) = true;
  write->store.PutBlock(std::move(out),
                        [this, write](Status status) { EndWrite(*write, std::move(status)); });
}

void Store::Impl::EndWrite(DiskWrite& write, Status status) {
  disk_bytes -= write.bytes;
  --in_flight;
  std::exchange(write.done, nullptr)(std::move(status));
  if (in_flight == 0 && on_idle) on_idle();
}

void Store::Impl::Persist(const BlockRef& block, std::function<void(Status)> done) {
  if (bank == nullptr) {
    done(Unsupported("durability persistent: this daemon has no bank (bank.enabled)"));
    return;
  }
  if (BankHolds(*block) && block->pins_on_way == 0 &&
      block->bank->expires_at_ms == block->expires_at_ms &&
      block->bank->quality >= block->quality) {
    done({});
    return;
  }
  if (block->state() == BlockState::kGone) {
    done({StatusCode::kCancelled, "the block was dropped"});
    return;
  }
  if (block->banking ||
      block->pins_on_way > 0) {  // of what was there when it began: this comes after it
    block->banked.push_back(std::move(done));
    return;
  }
  if (block->state() != BlockState::kResident) {
    Load(block, [this, block, done = std::move(done)](const Status& loaded) {
      if (loaded.ok())
        Persist(block, done);
      else
        done(loaded);
    });
    return;
  }
  block->banking = true;
  block->durability = Durability::kPersistent;
  const uint32_t generation = block->generation;
  auto meta = std::make_shared<record::BlockMeta>(MetaOf(*block));
  if (block->bank && block->bank->generation == generation)
    KeepAcknowledged(*block->bank, meta.get());
  meta->history_bytes = static_cast<uint32_t>(PackHistory(block->history).size());
  WriteBlock(block, *bank, true, *meta, [this, block, meta, done = std::move(done)](Status status) {
    // Also when another generation took its place meanwhile: the bank has this one, it is
    // acknowledged, and it outlives the newcomer.
    if (status.ok() && (block->state() == BlockState::kGone || !block->in_bank))
      status = {StatusCode::kCancelled, "the block was dropped while it was being stored"};
    if (block->state() != BlockState::kGone) {
      if (status.ok()) {
        block->bank = std::make_unique<record::BlockMeta>(*meta);
        // What was to be read from there is not there any more: a read under way has moved on.
        if (block->state() == BlockState::kSpilled && !HasDiskCopy(*block)) TakeBankCopy(*block);
      } else if (!block->bank) {
        block->durability = Durability::kVolatile;
      }
    }
    if (!status.ok()) LogWarn("bank: block not stored: {}", status.ToString());
    EndBanking(block);
    done(std::move(status));
    StartBanked(block);
  });
}

// What came while the bank was being written, also where nobody waits for it.
void Store::Impl::EndBanking(const BlockRef& block) {
  block->banking = false;
  if (block->state() == BlockState::kGone) return;
  PersistPin(block, [pins = std::exchange(block->pins, {})](const Status& pinned) {
    for (const auto& pin : pins) pin(pinned);
  });
  if (block->history_dirty) PersistHistory(block);
}

void Store::Impl::StartBanked(const BlockRef& block) {
  if (block->pins_on_way > 0) return;
  for (auto& next : std::exchange(block->banked, {})) Persist(block, std::move(next));
}

// The bank's history follows the reports: same generation, so that the segments need not come
// again.
void Store::Impl::PersistHistory(const BlockRef& block) {
  if (block->banking) return;  // its end asks again: this row must not take the place of that one
  block->history_dirty = false;
  if (bank == nullptr || !block->bank || block->bank->generation != block->generation) return;
  auto history = std::make_shared<std::vector<std::byte>>(PackHistory(block->history));
  if (history->empty()) return;
  BlockWrite write;
  write.meta = *block->bank;
  write.meta.history_bytes = static_cast<uint32_t>(history->size());
  write.meta.drop_due |= block->drop_due.has_value();  // of what the bank has, which stays whole
  write.meta.reuse = block->reuse.hits;
  write.meta.reuse_at_ms = block->reuse.at_ms;
  write.parts.push_back({kHistoryPart, *history});
  auto row = std::make_shared<record::BlockMeta>(write.meta);
  block->banking = true;  // a row that names this history must not be written before it is there
  ++in_flight;
  bank->PutBlock(std::move(write), [this, block, history, row](Status status) {
    --in_flight;
    if (!status.ok()) LogDebug("bank: history not stored: {}", status.ToString());
    if (status.ok() && block->bank) *block->bank = std::move(*row);
    EndBanking(block);
    StartBanked(block);
    if (in_flight == 0 && on_idle) on_idle();
  });
}

void Store::Impl::PersistPin(const BlockRef& ref, std::function<void(Status)> done) {
  Block& block = *ref;
  auto write = [this](SpillStore& store, record::BlockMeta row, std::function<void(Status)> wrote) {
    ++in_flight;
    store.PutBlock({std::move(row), {}}, [this, wrote = std::move(wrote)](Status status) {
      --in_flight;
      if (!status.ok()) LogWarn("a pin was not stored: {}", status.ToString());
      wrote(std::move(status));
      if (in_flight == 0 && on_idle) on_idle();
    });
  };
  if (SpillHolds(block) && block.in_spill && !block.spilling) {  // else its end asks again
    record::BlockMeta row = MetaOf(block);
    row.history_bytes = block.history_on_disk;
    write(*spill, std::move(row), [](const Status&) {});
  }
  if (block.banking) {  // that write carries the block as it was: this comes after it
    block.pins.push_back(std::move(done));
    return;
  }
  const bool differs = block.bank && (block.bank->pinned != block.pinned ||
                                      block.bank->expires_at_ms != block.expires_at_ms);
  // One on its way with the same is not synced yet: another row, for its answer.
  if (bank == nullptr || !block.in_bank || !block.bank || (!differs && block.pins_on_way == 0)) {
    done({});
    return;
  }
  const auto before = std::pair(block.bank->pinned, block.bank->expires_at_ms);
  block.bank->pinned = block.pinned;
  block.bank->expires_at_ms = block.expires_at_ms;
  ++block.pins_on_way;
  write(*bank, *block.bank, [this, ref, before, done = std::move(done)](Status status) {
    --ref->pins_on_way;
    if (!status.ok() && ref->bank) std::tie(ref->bank->pinned, ref->bank->expires_at_ms) = before;
    done(std::move(status));
    if (!ref->banking) StartBanked(ref);
  });
}

bool Store::Impl::BankHolds(const Block& block) const {
  return bank != nullptr && block.bank && block.bank->generation == block.generation &&
         block.bank->shards == block.shards;
}

bool Store::Impl::SpillHolds(const Block& block) const {
  return spill != nullptr && block.spill_generation != 0 &&
         block.spill_generation == block.generation && block.spill_revision == block.revision;
}

void Store::Impl::DropSpillCopy(Block& block) {
  block.spill_generation = 0;
  if (!std::exchange(block.in_spill, false) || spill == nullptr) return;
  spill->DeleteBlock(block.key, [ref = blocks.Find(block.key)](const Status& status) {
    if (!status.ok() && ref) ref->in_spill = true;  // to be deleted again
  });
}

void Store::Impl::DropBankCopy(Block& block, std::function<void(Status)> done) {
  block.bank.reset();
  if (!std::exchange(block.in_bank, false) || bank == nullptr) {
    done({});
    return;
  }
  bank->DeleteBlock(block.key,
                    [ref = blocks.Find(block.key), done = std::move(done)](Status status) {
                      if (!status.ok() && ref) ref->in_bank = true;  // to be deleted again
                      done(std::move(status));
                    });
}

void Store::Impl::ToSpilled(Block& block) {
  if (!Move(block, BlockState::kSpilled)) return;
  UnbookAll(block);
  Uncharge(block);
  for (const Segment& s : block.segments)
    if (!block.opaque)
      raw_bytes -=
          2 * s.kv_heads *
          RawTileBytes(block.context->spec.layers[s.layer].head_dim, block.context->spec.dtype);
  --resident;
  // What is left may be the bank's copy, with more bits than the one that was in RAM.
  if (!SpillHolds(block)) TakeBankCopy(block);
  block.history.clear();  // it lies beside the segments, and comes back with them
}

void Store::Impl::Spill(const BlockRef& block) {
  block->spilling = true;
  const uint64_t bytes = block->segment_bytes();
  moving_bytes += bytes;
  const uint32_t generation = block->generation, revision = block->revision;
  const auto history = static_cast<uint32_t>(PackHistory(block->history).size());
  WriteBlock(block, *spill, false, MetaOf(*block),
             [this, block, bytes, epoch = block->epoch, generation, revision, history,
              wrote = std::pair(block->pinned, block->expires_at_ms)](Status status) {
               block->spilling = false;
               moving_bytes -= bytes;
               NeedTick();
               // Not the generation alone: it is an old one again where the bank's copy was taken.
               if (block->state() == BlockState::kGone || block->epoch != epoch) return;
               if (!status.ok()) {
                 if (status.code() != StatusCode::kQuota || !EvictFromSpill(block->segment_bytes()))
                   retry_disk_at = clock.Now() + std::chrono::milliseconds(200);
                 return;
               }
               block->spill_generation = generation;
               block->spill_revision = revision;
               block->history_on_disk = history;
               ++counts.spilled_blocks;
               if (wrote != std::pair(block->pinned, block->expires_at_ms))
                 PersistPin(block, [](const Status&) {});
               if (block->state() == BlockState::kResident && SpillHolds(*block) &&
                   block->leases == 0 && block->writers.empty())
                 ToSpilled(*block);
             });
}

}  // namespace dyna
