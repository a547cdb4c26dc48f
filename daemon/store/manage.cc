// Delete, clear, pin, the bank's own verbs, and objects of unknown meaning.
#include <algorithm>
#include <cstring>

#include "client/base/log.h"
#include "daemon/store/store_impl.h"

namespace dyna {

wire::CountReply Store::Delete(const Caller& caller, const wire::Delete& request) {
  wire::CountReply reply;
  for (const BlockHash& hash : request.hashes) {
    BlockRef block = impl_->blocks.Find({caller.tenant, request.context, hash});
    if (!block) continue;
    impl_->Gone(*block, true);
    ++reply.count;
  }
  return reply;
}

wire::CountReply Store::Clear(const Caller& caller, const wire::Clear& request) {
  wire::CountReply reply;
  if (request.context != 0 && impl_->Context(caller.tenant, request.context) == nullptr) {
    reply.status = Status(StatusCode::kContextUnknown, "open the context first");
    return reply;
  }
  std::vector<BlockRef> doomed;
  impl_->blocks.ForEach([&](Block& b) {
    if (b.key.tenant == caller.tenant && (request.context == 0 || b.key.context == request.context))
      doomed.push_back(impl_->blocks.Find(b.key));
  });
  for (const BlockRef& b : doomed) impl_->Gone(*b, true);
  reply.count = doomed.size();
  LogInfo("cleared {} blocks of tenant {:016x}, context {:016x}", reply.count, caller.tenant,
          request.context);
  return reply;
}

void Store::Impl::SetPinned(Block& block, bool pinned) {
  pinned_bytes -= std::exchange(block.pinned_bytes, 0);
  block.pinned = pinned;
  if (pinned) pinned_bytes += block.pinned_bytes = block.segment_bytes();
}

void Store::Pin(const Caller& caller, const wire::Pin& request,
                std::function<void(wire::CountReply)> done) {
  Impl& s = *impl_;
  auto reply = std::make_shared<wire::CountReply>();
  auto waiting = std::make_shared<size_t>(1);
  auto finish = [reply, waiting, done = std::move(done)](const Status& status) {
    if (!status.ok() && reply->status.ok()) reply->status = status;
    if (--*waiting == 0) done(*reply);
  };
  const auto share = static_cast<uint64_t>(static_cast<double>(s.Limit()) * s.options.floor_share);
  Status refused;
  for (const BlockHash& hash : request.hashes) {
    BlockRef block = s.blocks.Find({caller.tenant, request.context, hash});
    s.DropIfExpired(&block);
    if (!block || !block->visible() || s.Expired(*block)) continue;
    if (request.pinned && !block->pinned && s.pinned_bytes + block->segment_bytes() > share) {
      refused = {StatusCode::kRetry,
                 "pinned blocks reach their share of the budget (budget.floor_share)", 1000};
      break;
    }
    s.SetPinned(*block, request.pinned);
    block->expires_at_ms = request.ttl_ms == 0 ? 0 : s.clock.UnixMillis() + request.ttl_ms;
    ++reply->count;
    ++*waiting;
    s.PersistPin(block, finish);
    s.BookLater(*block);
  }
  finish(refused);
}

void Store::BankDrop(const Caller& caller, const wire::BankDrop& request,
                     std::function<void(wire::CountReply)> done) {
  Impl& s = *impl_;
  auto reply = std::make_shared<wire::CountReply>();
  if (s.bank == nullptr) {
    reply->status = Unsupported("this daemon has no bank (bank.enabled)");
    done(*reply);
    return;
  }
  std::vector<BlockRef> chosen;
  if (request.hashes.empty())
    s.blocks.ForEach([&](Block& b) {
      if (b.key.tenant == caller.tenant &&
          (request.context == 0 || b.key.context == request.context) && (b.bank || b.in_bank))
        chosen.push_back(s.blocks.Find(b.key));
    });
  for (const BlockHash& hash : request.hashes)
    if (BlockRef b = s.blocks.Find({caller.tenant, request.context, hash});
        b && (b->bank || b->in_bank))
      chosen.push_back(b);
  auto waiting = std::make_shared<size_t>(chosen.size() + 1);
  auto finish = [reply, waiting, done = std::move(done)] {
    if (--*waiting == 0) done(*reply);
  };
  for (const BlockRef& b : chosen) {
    b->durability = Durability::kVolatile;
    ++reply->count;
    s.DropBankCopy(*b, [reply, finish](Status status) {
      if (!status.ok() && reply->status.ok()) reply->status = std::move(status);
      finish();
    });
    if (b->state() == BlockState::kSpilled && !s.SpillHolds(*b)) s.Gone(*b, true);
  }
  finish();
}

void Store::PutOpaque(const Caller& caller, const wire::PutOpaque& put,
                      std::vector<std::byte> bytes, std::function<void(Status)> done) {
  Impl& s = *impl_;
  StoreContext* ctx = s.Context(caller.tenant, put.context);
  const record::BlockKey key{caller.tenant, put.context, put.key};
  Status status;
  BlockRef known = s.blocks.Find(key);
  s.DropIfExpired(&known);
  const Tenant& tenant = s.TenantOf(caller.tenant);
  if (ctx == nullptr)
    status = Status(StatusCode::kContextUnknown, "open the context first");
  else if (bytes.empty())
    status = Invalid("opaque object: 0 bytes");
  else if (put.durability == Durability::kPersistent && s.bank == nullptr)
    status = Unsupported("durability persistent: this daemon has no bank (bank.enabled)");
  else if (known && !known->opaque)
    status = Invalid("opaque object: the key is that of a block");
  else if (known && known->visible() && put.durability == Durability::kVolatile)
    status = Status(StatusCode::kExists, "");
  else if (s.draining)
    status = Status(StatusCode::kRetry, "the daemon is stopping", 1000);
  else if (!known)
    status = s.Admit(tenant);
  if (known && known->visible() && (status.ok() || status.code() == StatusCode::kExists))
    s.LiveOn(*known, put.ttl_ms);
  if (!status.ok()) {
    done(std::move(status));
    return;
  }
  if (!known) {
    known = s.blocks.Insert(key);  // first: an extent without its owner's number is never compacted
    auto extent = s.Reserve(bytes.size(), known->serial);
    if (!extent.ok()) {
      s.blocks.Erase(*known);
      ++s.counts.retries;
      done(extent.status());
      return;
    }
    known->opaque = true;
    known->quality = QualityClass::kExact;
    known->context = ctx;
    known->tenant = &s.TenantOf(caller.tenant);
    known->reuse.at_ms = s.clock.UnixMillis();
    known->expires_at_ms = put.ttl_ms == 0 ? 0 : s.clock.UnixMillis() + put.ttl_ms;
    Segment segment;
    segment.kv_heads = 1;
    segment.bytes = static_cast<uint32_t>(bytes.size());
    segment.extent = std::move(*extent);
    std::copy(bytes.begin(), bytes.end(), segment.extent.bytes().begin());
    known->segments.push_back(std::move(segment));
    known->tenant->charged += bytes.size();
    s.Move(*known, BlockState::kResident);
    ++ctx->blocks;
    ++s.resident;
    s.Appraise(*known);
    s.Charge(*known);
    s.counts.put_raw_bytes += bytes.size();
    s.counts.put_encoded_bytes += bytes.size();
  }
  if (put.durability == Durability::kVolatile) {
    done({});
    return;
  }
  s.Persist(known, std::move(done));
}

void Store::GetOpaque(const Caller& caller, const wire::GetOpaque& get,
                      std::function<void(wire::OpaqueReply, std::vector<std::byte>)> done) {
  Impl& s = *impl_;
  BlockRef block = s.blocks.Find({caller.tenant, get.context, get.key});
  if (s.Context(caller.tenant, get.context) == nullptr) {
    done({Status(StatusCode::kContextUnknown, "open the context first"), Tier::kNone}, {});
    return;
  }
  if (!block || !block->opaque || !block->visible() || s.Expired(*block)) {
    ++s.counts.misses;
    done({Status(StatusCode::kMiss, "no such object"), Tier::kNone}, {});
    return;
  }
  const Tier tier = block->state() == BlockState::kResident ? Tier::kHost
                    : s.SpillHolds(*block)                  ? Tier::kSpill
                                                            : Tier::kBank;
  s.blocks.Touch(*block);
  ++s.counts.hits[static_cast<size_t>(tier)];
  s.Load(block, [block, tier, done = std::move(done)](const Status& loaded) {
    if (!loaded.ok()) {
      done({loaded, Tier::kNone}, {});
      return;
    }
    const auto bytes = block->segments[0].extent.bytes().first(block->segments[0].bytes);
    done({Status::Ok(), tier}, {bytes.begin(), bytes.end()});
  });
}

}  // namespace dyna
