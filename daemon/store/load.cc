// What comes back from the disks: a whole block at a time, verified before it is served.
#include "client/base/log.h"
#include "daemon/store/history_record.h"
#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

const Status kMovedOn(StatusCode::kRetry, "the block moved on while it was read", 1);

// Is it another content, or in another place, than when its read began?
bool MovedOn(const Block& block, uint32_t epoch) {
  return block.state() != BlockState::kSpilled || block.epoch != epoch;
}

// Empty where every token lives.
std::vector<uint64_t> LiveOf(const SegmentView& view) {
  std::vector<uint64_t> live;
  bool all = true;
  for (int h = 0; h < view.id().kv_heads; ++h) {
    live.push_back(view.tile(h).live);
    all = all && live.back() == ~uint64_t{0};
  }
  if (all) live.clear();
  return live;
}

}  // namespace

void Store::Impl::TakeRow(Block& block, const record::BlockMeta& row) {
  for (const Segment& s : block.segments) {
    UseBasis(*block.context, s.basis, -1);
    block.tenant->charged -= std::min<uint64_t>(block.tenant->charged, s.bytes);
  }
  block.segments.clear();
  uint32_t cell = 0;
  for (const record::SegmentEntry& e : row.segments) {
    Segment s;
    s.layer = e.layer;
    s.head_begin = e.head_begin;
    s.kv_heads = row.opaque ? uint16_t{1} : e.kv_heads;
    s.basis = e.basis;
    s.bytes = e.bytes;
    s.cell = cell;
    s.nmse = row.nmse;
    cell += e.kv_heads;
    UseBasis(*block.context, e.basis, +1);
    block.tenant->charged += e.bytes;
    block.segments.push_back(std::move(s));
  }
  block.cells = row.cells;
  block.revision = row.revision;
  block.dropped = row.dropped;
}

void Store::Impl::TakeBankCopy(Block& block) {
  const record::BlockMeta& m = *block.bank;
  ++block.epoch;
  TakeRow(block, m);
  block.shards = m.shards;
  block.quality = m.quality;  // or it would count as held in the class of what was in RAM
  block.generation = m.generation;
  block.spill_generation = 0;
  Appraise(block);
}

void Store::Impl::LeaveSpillCopy(Block& block) {
  DropSpillCopy(block);
  TakeBankCopy(block);
}

void Store::Impl::Load(const BlockRef& block, std::function<void(const Status&)> done) {
  if (block->state() == BlockState::kResident) {
    done({});
    return;
  }
  block->loaded.push_back(std::move(done));
  if (block->loading) return;  // joins the read that is under way
  block->loading = true;
  if (SpillHolds(*block) && block->bank && !spill->stats().asks()) LeaveSpillCopy(*block);
  const bool from_spill = SpillHolds(*block);
  SpillStore* store = from_spill ? spill : bank;
  struct Read {
    std::vector<Extent> extents;
    std::vector<std::byte> history;
    std::vector<std::shared_ptr<const Basis>> bases;
    std::vector<Status> checked;
    std::vector<std::vector<uint64_t>> live;
  };
  auto read = std::make_shared<Read>();
  if (store == nullptr) {
    FinishLoad(block, {StatusCode::kMiss, "its tier is not there any more"});
    return;
  }
  BlockRead request;
  request.key = block->key;
  request.generation = block->generation;
  const uint32_t beside =
      !from_spill && block->bank ? block->bank->history_bytes : block->history_on_disk;
  uint64_t total = 0;
  const uint64_t room = block->segment_bytes();
  if (!Fits(room)) {  // for all of it at once: room for one segment would never end
    wanted_room = std::max(wanted_room, room + size_t{kArenaUnit} * block->segments.size());
    NeedTick();
    FinishLoad(block, {StatusCode::kRetry, "room is being made to read the block back", 5});
    return;
  }
  for (Segment& s : block->segments) {
    auto extent = Reserve(s.bytes, block->serial);
    if (!extent.ok()) {
      // What was had goes back: the range that is asked for must hold that as well, and what the
      // allocator's bins round up by (offset_allocator.h).
      wanted_range = std::max(wanted_range, (total + s.bytes) * 9 / 8);
      FinishLoad(block, extent.status());
      return;
    }
    total += extent->size();
    request.parts.push_back(
        {{PartId::Kind::kSegment, s.layer, s.head_begin}, extent->bytes().first(s.bytes)});
    read->extents.push_back(std::move(*extent));
    read->bases.push_back(block->opaque ? nullptr : block->context->Share(s.basis));
  }
  read->history.resize(beside);
  if (beside != 0) request.parts.push_back({kHistoryPart, read->history});
  const uint32_t epoch = block->epoch;
  ++in_flight;
  store->ReadParts(
      std::move(request), [this, block, read, epoch, total](std::vector<Status> statuses) {
        --in_flight;
        Status bad;
        for (size_t i = 0; i < read->extents.size(); ++i)
          if (!statuses[i].ok() && bad.ok()) bad = statuses[i];
        if (bad.code() == StatusCode::kInvalid)  // not of the length that its row promised
          bad = Status(StatusCode::kMiss, std::string(bad.message()));
        if (MovedOn(*block, epoch)) bad = kMovedOn;  // first: a miss is not of what it is now
        if (!bad.ok()) {
          FinishLoad(block, bad);
          if (in_flight == 0 && on_idle) on_idle();
          return;
        }
        RunCodec(
            total,
            [read, opaque = block->opaque,
             lengths =
                 [&] {
                   std::vector<uint32_t> out;
                   for (const Segment& s : block->segments) out.push_back(s.bytes);
                   return out;
                 }()] {
              for (size_t i = 0; i < read->extents.size() && !opaque; ++i) {
                const auto bytes = read->extents[i].bytes().first(lengths[i]);
                Status status = VerifySegmentChecksum(bytes);
                auto view = ParseSegment(bytes, read->bases[i].get());
                if (status.ok()) status = view.status();
                read->live.push_back(status.ok() ? LiveOf(*view) : std::vector<uint64_t>());
                read->checked.push_back(std::move(status));
              }
            },
            [this, block, read, epoch] {
              Status status;
              for (const Status& c : read->checked)
                if (!c.ok() && status.ok()) status = Status(StatusCode::kMiss, c.ToString());
              if (MovedOn(*block, epoch)) {
                status = kMovedOn;
              } else if (!status.ok()) {
                ++counts.damaged_segments;
                LogWarn("block {}: damaged on disk, served as a miss: {}", block->index,
                        status.message());
              } else {
                for (size_t i = 0; i < read->extents.size(); ++i) {
                  block->segments[i].extent = std::move(read->extents[i]);
                  if (i < read->live.size()) block->segments[i].live = std::move(read->live[i]);
                }
                block->history = UnpackHistory(read->history, BlockHashHasher{}(block->key.hash));
                if (block->history.size() != block->shards.size()) block->history.clear();
              }
              FinishLoad(block, status);
            });
      });
}

void Store::Impl::FinishLoad(const BlockRef& block, Status status) {
  block->loading = false;
  if (status.ok()) {
    if (!Move(*block, BlockState::kResident)) return;  // its waiters have been told
    ++resident;
    for (const Segment& s : block->segments)
      if (!block->opaque)
        raw_bytes +=
            2 * s.kv_heads *
            RawTileBytes(block->context->spec.layers[s.layer].head_dim, block->context->spec.dtype);
    Charge(*block);
    BookAll(*block);
    ++counts.loaded_blocks;
    if (block->drop_due) DropLater(block);  // it had come due on the disk, or before a restart
  } else {
    if (status.code() != StatusCode::kRetry) ++counts.load_failures;  // room is no failure
    // A damaged or missing record is a miss from now on; a full arena is not its fault. Where the
    // disk fails, what was promised is in the other database.
    const bool miss = status.code() == StatusCode::kMiss;
    const bool fails = status.code() == StatusCode::kInternal ||
                       (status.code() == StatusCode::kRetry && spill != nullptr &&
                        SpillHolds(*block) && !spill->stats().available);
    if ((miss || fails) && block->state() == BlockState::kSpilled) {
      const auto waiters = std::exchange(block->loaded, {});
      if (SpillHolds(*block) && block->bank) {
        LeaveSpillCopy(*block);
        for (const auto& waiter : waiters) Load(block, waiter);
        return;
      }
      if (fails) {
        for (const auto& waiter : waiters) waiter(status);
        return;
      }
      Gone(*block, true);
      for (const auto& waiter : waiters) waiter(status);
      return;
    }
  }
  for (const auto& waiter : std::exchange(block->loaded, {})) waiter(status);
}

}  // namespace dyna
