// The life of a writer: begun by the first segment of a block's shard, committed when the shard is
// complete, aborted when its client dies or takes too long (design 5).
#include <algorithm>

#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

bool Overlap(const Shard& a, const Shard& b) {
  return a.layer_begin < b.layer_end && b.layer_begin < a.layer_end && a.head_begin < b.head_end &&
         b.head_begin < a.head_end;
}
bool Within(const Shard& inner, const Shard& outer) {
  return outer.layer_begin <= inner.layer_begin && inner.layer_end <= outer.layer_end &&
         outer.head_begin <= inner.head_begin && inner.head_end <= outer.head_end;
}

// Shards of a block do not overlap: a segment is named by its layer and first head. One that holds
// all the others takes their place (`wider`); anything else is another split of the same model.
Status CheckSplit(const Block& block, const Shard& shard, bool* wider) {
  bool overlaps = false, holds_all = true;
  for (const Shard& other : block.shards) {
    overlaps |= Overlap(shard, other);
    holds_all &= Within(other, shard);
  }
  *wider = overlaps && holds_all;
  if (overlaps && !holds_all)
    return Invalid(
        "shard: overlaps heads or layers of this block that were put with another split");
  return {};
}

Status CheckReplaces(const Block& block, const Shard& shard) {
  if (!block.in_bank || std::all_of(block.shards.begin(), block.shards.end(),
                                    [&](const Shard& other) { return Within(other, shard); }))
    return {};
  return Unsupported(
      "a durable block of several shards cannot be replaced by one of them: delete it first");
}

// The later of two times of expiry; 0 is never.
int64_t Later(int64_t a, int64_t b) { return a == 0 || b == 0 ? 0 : std::max(a, b); }

}  // namespace

void Store::Impl::PutAgain(Block& block, const wire::Put& put) {
  LiveOn(block, put.ttl_ms);
  Promise(put.quality, block);
}

void Store::Impl::LiveOn(Block& block, uint32_t ttl_ms) {
  blocks.Touch(block);
  block.expires_at_ms =
      Later(block.expires_at_ms, ttl_ms == 0 ? 0 : clock.UnixMillis() + int64_t{ttl_ms});
}

Status Store::Impl::Admit(const Tenant& tenant) {
  if (blocks.size() >= options.max_blocks)
    return WantExpired({StatusCode::kRetry, "the table of blocks is full", 100});
  return CheckQuota(tenant);
}

Status Store::Impl::CheckQuota(const Tenant& tenant) {
  if (tenant.quota == 0 || tenant.charged < tenant.quota) return {};
  ++counts.quota_refusals;
  return WantExpired({StatusCode::kQuota, "tenant " + tenant.name + " is over its quota of " +
                                              std::to_string(tenant.quota) + " bytes"});
}

Status Store::Impl::WantExpired(Status refusal) {
  expired_rounds = 2;  // the one under way began somewhere
  NeedTick();
  return refusal;
}

std::shared_ptr<Writer> Store::Impl::BeginBlock(const Caller& caller, StoreContext& ctx,
                                                const wire::Put& put, size_t i, BlockRef* out,
                                                Status* status) {
  const record::BlockKey key{caller.tenant, put.context, put.hashes[i]};
  const BlockHash& parent = i == 0 ? put.parent : put.hashes[i - 1];
  const uint32_t index = put.first_index + static_cast<uint32_t>(i);
  if (index == 0 ? !parent.IsZero() : parent.IsZero())
    *status =
        Invalid("parent: zero at index 0 and only there (index " + std::to_string(index) + ")");
  if (BlockRef known = blocks.Find({caller.tenant, put.context, parent});
      known && !parent.IsZero() && known->index + 1 != index)
    *status = Invalid("index " + std::to_string(index) + " contradicts the parent's, which is " +
                      std::to_string(known->index));
  BlockRef block = blocks.Find(key);
  DropIfExpired(&block);
  if (block && (block->index != index || block->parent != parent || block->opaque))
    *status = Invalid("block " + std::to_string(index) + " is known with another parent or index");
  if (!status->ok()) return nullptr;

  const bool covered = block && block->visible() && block->Covers(put.shard);
  const bool better = block && Outdoes(put.quality, *block);
  *out = block;
  if (covered && !better) {
    PutAgain(*block, put);
    *status = Status(StatusCode::kExists, "");
    return nullptr;
  }
  if (block)
    for (const auto& writer : block->writers) {
      if (writer->aborted || !Overlap(writer->shard, put.shard)) continue;
      if (writer->shard != put.shard) {
        *status = {StatusCode::kRetry, "another split of this block is being written", 10};
      } else if (writer->session == caller.session) {
        if (writer->quality == put.quality) {
          // The whole of it is acknowledged as what was asked for last.
          if (put.durability == Durability::kPersistent) writer->durability = put.durability;
          return writer;
        }
        *status = {StatusCode::kRetry, "this client is writing this block in another class", 10};
      } else if (put.durability == Durability::kPersistent || put.quality > writer->quality) {
        // First commit wins; but what outlives the daemon is acknowledged only when it does.
        *status = {StatusCode::kRetry, "another client is writing this block", 10};
      } else {
        *status = Status(StatusCode::kExists, "");
      }
      return nullptr;
    }
  bool wider = false;
  if (block && !covered && !(*status = CheckSplit(*block, put.shard, &wider)).ok()) return nullptr;
  const bool replaces = (covered && better) || wider;
  if (replaces && !(*status = CheckReplaces(*block, put.shard)).ok()) return nullptr;
  if (block && block->state() == BlockState::kSpilled && !replaces) {
    Load(block, [](const Status&) {});
    *status = Status(StatusCode::kRetry, "the block's other shards are being read back", 10);
    return nullptr;
  }
  Session& session = sessions[caller.session];
  if (draining)
    *status = Status(StatusCode::kRetry, "the daemon is stopping", 1000);
  else if (session.writing.size() >= options.open_puts ||
           session.open_bytes >= options.open_put_bytes)
    *status = Status(StatusCode::kRetry,
                     "too many unfinished puts of this client (limits.open_puts)", 20);
  else
    *status = block ? CheckQuota(TenantOf(caller.tenant)) : Admit(TenantOf(caller.tenant));
  if (!status->ok()) return nullptr;

  if (!block) {
    block = blocks.Insert(key);
    block->parent = parent;
    block->index = index;
    block->quality = put.quality;
    block->context = &ctx;
    block->tenant = &TenantOf(caller.tenant);
    block->reuse.at_ms = clock.UnixMillis();
  }
  auto writer = std::make_shared<Writer>();
  writer->session = caller.session;
  writer->shard = put.shard;
  writer->quality = put.quality;
  writer->durability = put.durability;
  writer->replaces = replaces;
  writer->expires_at_ms = put.ttl_ms == 0 ? 0 : clock.UnixMillis() + put.ttl_ms;
  writer->moved = clock.Now();
  const size_t layers = static_cast<size_t>(put.shard.layer_end - put.shard.layer_begin);
  const auto heads = static_cast<uint16_t>(put.shard.head_end - put.shard.head_begin);
  writer->taken.resize(layers);
  writer->cells.resize(layers * heads);
  writer->segments.resize(layers);
  for (size_t l = 0; l < layers; ++l) {
    writer->segments[l].layer = static_cast<uint16_t>(put.shard.layer_begin + l);
    writer->segments[l].head_begin = put.shard.head_begin;
    writer->segments[l].kv_heads = heads;
    writer->segments[l].cell = static_cast<uint32_t>(l * heads);
  }
  block->writers.push_back(writer);
  open_work.Begin(ctx, *writer, key.hash);
  writer->open = session.writing.insert(session.writing.end(), {block, writer});
  NeedTick();  // arms the time-out
  *out = block;
  return writer;
}

bool Store::Impl::Outdoes(QualityClass quality, const Block& block) const {
  if (quality <= block.quality) return false;
  return quality > block.effective ||  // what is on its way down is not what it will be
         std::any_of(block.segments.begin(), block.segments.end(),
                     [](const Segment& s) { return s.transcoding; });
}

void Store::Impl::Promise(QualityClass quality, Block& block) {
  if (quality <= block.quality) return;
  UnbookAll(block);
  block.quality = quality;
  if (block.state() == BlockState::kResident) BookAll(block);
}

void Store::Impl::EndWriter(Block& block, const std::shared_ptr<Writer>& writer) {
  writer->aborted = true;
  ++counts.aborted_puts;
  for (Segment& s : writer->segments) {
    UnbookOpen(block, *writer, s);
    if (s.bytes != 0) UseBasis(*block.context, s.basis, -1);
    s.extent.Retire();
  }
  FreeRoom(block, *writer);
}

// Its session may begin another put.
void Store::Impl::FreeRoom(const Block& block, const Writer& writer) {
  open_work.End(*block.context, writer);
  open_bytes -= std::min(open_bytes, writer.reserved);
  open_moved = clock.Now();
  auto it = sessions.find(writer.session);
  if (it == sessions.end()) return;
  Session& session = it->second;
  session.open_bytes -= std::min(session.open_bytes, writer.reserved);
  session.writing.erase(writer.open);
}

void Store::Impl::Abort(const BlockRef& block, const std::shared_ptr<Writer>& writer) {
  std::erase(block->writers, writer);
  EndWriter(*block, writer);
  if (block->state() == BlockState::kWriting && block->writers.empty()) Gone(*block, false);
}

void Store::Impl::AbortOpen(Session& session) {
  while (!session.writing.empty()) {
    const OpenPut oldest = session.writing.front();  // Abort takes it out
    Abort(oldest.block, oldest.writer);
  }
}

void Store::Impl::AbortLate(Session& session) {
  const TimePoint since = clock.Now() - options.open_put_timeout;
  while (!session.writing.empty()) {
    const OpenPut oldest = session.writing.front();
    if (oldest.writer->moved >= since) return;
    if (oldest.writer->encoding > 0)  // it is the codec that takes its time
      Moved(*oldest.writer);
    else
      Abort(oldest.block, oldest.writer);
  }
}

void Store::Impl::Moved(Writer& writer) {
  if (writer.aborted) return;
  writer.moved = clock.Now();
  auto& writing = sessions.at(writer.session).writing;
  writing.splice(writing.end(), writing, writer.open);
}

void Store::Impl::DropIfExpired(BlockRef* block) {
  if (!*block || !(*block)->visible() || (*block)->leases > 0 || !Expired(**block)) return;
  ++counts.expired_blocks;
  Gone(**block, true);
  block->reset();
}

Status Store::Impl::Commit(const BlockRef& ref, const std::shared_ptr<Writer>& writer) {
  Block& block = *ref;
  StoreContext& ctx = *block.context;
  if (writer->replaces)  // asked again: it may have gone to the bank since the writer began
    if (Status replaces = CheckReplaces(block, writer->shard); !replaces.ok()) {
      Abort(ref, writer);
      return replaces;
    }
  const bool fresh = block.state() == BlockState::kWriting;
  // Nobody drops the rest of a block that is being written: the newcomer alone would be a hole.
  const bool hole = !fresh && !writer->replaces && block.state() != BlockState::kResident;
  const bool in_ram = block.state() == BlockState::kResident;
  if (hole) Move(block, BlockState::kWriting);  // never legal: told, and the block dropped
  if (hole || (!in_ram && !Move(block, BlockState::kResident)))
    return Internal("the block was in no state to be completed");
  FreeRoom(block, *writer);
  std::erase(block.writers, writer);
  UnbookAll(block);

  auto raw_of = [&](const Segment& s) {
    return 2 * s.kv_heads * RawTileBytes(ctx.spec.layers[s.layer].head_dim, ctx.spec.dtype);
  };
  if (!in_ram) ++resident;
  if (fresh) {
    ++ctx.blocks;
  } else if (writer->replaces) {
    for (const Segment& s : block.segments) {
      UseBasis(ctx, s.basis, -1);
      block.tenant->charged -= std::min<uint64_t>(block.tenant->charged, s.bytes);
      if (in_ram) raw_bytes -= raw_of(s);
    }
    block.generation = ++block.newest_generation;
    ++block.epoch;
    block.revision = 0;
    block.segments.clear();
    block.cells.clear();
    block.shards.clear();
    block.history.clear();
    block.dropped = false;
    DropSpillCopy(block);
  } else {
    ++block.revision;  // a copy that is on its way to a disk is not the whole any more
  }
  block.quality =
      fresh || writer->replaces ? writer->quality : std::min(block.quality, writer->quality);
  // What was acknowledged before, as another shard or in the bank, was promised its own time.
  block.expires_at_ms = fresh || (writer->replaces && !block.in_bank)
                            ? writer->expires_at_ms
                            : Later(block.expires_at_ms, writer->expires_at_ms);
  block.shards.push_back(writer->shard);
  const auto base = static_cast<uint32_t>(block.cells.size());
  block.cells.insert(block.cells.end(), writer->cells.begin(), writer->cells.end());
  for (Segment& s : writer->segments) {
    UnbookOpen(block, *writer, s);
    s.cell += base;
    block.tenant->charged += s.bytes;
    raw_bytes += raw_of(s);
    block.segments.push_back(std::move(s));
  }
  std::stable_sort(block.segments.begin(), block.segments.end(),
                   [](const Segment& a, const Segment& b) {
                     return std::pair(a.layer, a.head_begin) < std::pair(b.layer, b.head_begin);
                   });
  block.spill_generation = 0;
  Appraise(block);
  Charge(block);
  BookAll(block);
  StartYoung(ref);
  blocks.Touch(block);
  if (policy->drops_tokens() && policy->scores() != ScoreSource::kReports) DropLater(ref);
  if (Charged() > Limit()) NeedTick();
  return {};
}

}  // namespace dyna
