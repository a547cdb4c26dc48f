#include "daemon/store/store.h"

#include <algorithm>
#include <cassert>
#include <chrono>

#include "client/base/log.h"
#include "daemon/policy/log2_byte.h"
#include "daemon/store/store_impl.h"

namespace dyna {

using std::chrono::duration_cast;
using std::chrono::nanoseconds;

// A slice of housekeeping: the loop must stay free for callers (design 4).
constexpr auto kSlice = std::chrono::microseconds(400);

Store::Impl::Impl(Parts parts, StoreOptions opts)
    : clock(parts.clock),
      loop(parts.loop),
      codec(parts.codec),
      backend(parts.backend),
      arena(parts.arena),
      spill(parts.spill),
      bank(parts.bank),
      options(std::move(opts)),
      book(options.policy.price),
      budget(options.budget_bytes) {
  auto made = MakePolicy(options.policy);
  if (!made.ok())
    made = MakePolicy(PolicyOptions{});  // the configuration door has refused it before
  policy = std::move(*made);
  policy->Imply(&options.policy);
  leases.OnDropped([this](Block& block) {
    if (block.state() != BlockState::kGone) BookLater(block);
  });
}

Tenant& Store::Impl::TenantOf(TenantId id) {
  Tenant& t = tenants[id];
  t.id = id;
  return t;
}

StoreContext* Store::Impl::Context(TenantId tenant, Fingerprint context) {
  auto it = contexts.find({tenant, context});
  return it == contexts.end() ? nullptr : it->second.get();
}

void Store::Impl::RunCodec(size_t bytes, std::function<void()> work, std::function<void()> done) {
  ++in_flight;
  auto seconds = std::make_shared<double>(0);
  codec.Run(
      bytes,
      [work = std::move(work), seconds] {
        const auto start = std::chrono::steady_clock::now();
        work();
        *seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      },
      [this, done = std::move(done), seconds] {
        counts.codec_seconds += *seconds;
        --in_flight;
        done();
        if (in_flight == 0 && on_idle) on_idle();
      });
}

void Store::Impl::NeedTick() {
  if (on_busy) on_busy();
}

bool Store::Impl::Move(Block& block, BlockState next) {
  const BlockState from = block.state();
  if (block.To(next)) return true;
  ++counts.illegal_transitions;
  LogError("block {} went from {} to {}: a defect; it is dropped", block.index,
           BlockStateName(from), BlockStateName(next));
  assert(false && "illegal block transition");
  if (from != BlockState::kGone) Gone(block, false);
  return false;
}

void Store::Impl::Gone(Block& block, bool on_disk_too) {
  if (block.state() == BlockState::kGone) {
    Move(block, BlockState::kGone);  // counted and told; nothing is given back twice
    return;
  }
  UnbookAll(block);
  Uncharge(block);
  for (const auto& writer : std::exchange(block.writers, {})) EndWriter(block, writer);
  for (const Segment& s : block.segments) {
    UseBasis(*block.context, s.basis, -1);
    block.tenant->charged -= std::min<uint64_t>(block.tenant->charged, s.bytes);
  }
  if (block.state() == BlockState::kResident) {
    --resident;
    for (const Segment& s : block.segments)
      if (!block.opaque)
        raw_bytes -=
            2 * s.kv_heads *
            RawTileBytes(block.context->spec.layers[s.layer].head_dim, block.context->spec.dtype);
  }
  if (block.context != nullptr && block.visible()) --block.context->blocks;
  if (on_disk_too) {
    // Also what is on its way: a deletion comes after the write that was asked for before it.
    if (spill != nullptr && block.spill_touched) spill->DeleteBlock(block.key, [](Status) {});
    if (bank != nullptr && block.bank_touched) bank->DeleteBlock(block.key, [](Status) {});
  }
  for (auto& waiter : std::exchange(block.loaded, {}))
    loop.Post([waiter = std::move(waiter)] {
      waiter(Status(StatusCode::kMiss, "the block was dropped"));
    });
  for (auto& waiter : std::exchange(block.banked, {}))
    loop.Post([waiter = std::move(waiter)] {
      waiter({StatusCode::kCancelled, "the block was dropped"});
    });
  for (auto& waiter : std::exchange(block.pins, {})) loop.Post([waiter] { waiter({}); });
  if (block.pinned) pinned_bytes -= std::exchange(block.pinned_bytes, 0);
  leases.Forget(block);
  BlockRef keep = blocks.Find(block.key);
  Move(block, BlockState::kGone);
  blocks.Erase(block);
}

// ---- the facade

Store::Store(Parts parts, StoreOptions options)
    : impl_(std::make_unique<Impl>(parts, std::move(options))) {}

Store::~Store() {
  // Extents return to the arena before it goes. Who waits for a disk holds the block that
  // holds him; one that is gone holds nobody.
  impl_->blocks.ForEach([](Block& block) {
    block.loaded.clear();
    block.banked.clear();
    block.pins.clear();
  });
  impl_->folds.clear();
  impl_->drop.reset();
  impl_->plan = {};
}

const StoreOptions& Store::options() const { return impl_->options; }

void Store::ConfigureTenant(TenantId tenant, std::string name, uint64_t quota_bytes) {
  Tenant& t = impl_->TenantOf(tenant);
  t.name = std::move(name);
  t.quota = quota_bytes;
  impl_->book.SetQuota(tenant, static_cast<int64_t>(quota_bytes));
}

void Store::SetBudget(uint64_t bytes) {
  impl_->budget = bytes == 0 ? impl_->options.budget_bytes : bytes;
  while (!impl_->young.empty()) impl_->EndYoung();  // what is asked now is asked of all
  impl_->sweep_idle = false;
  impl_->NeedTick();
}

void Store::SetOptions(const StoreOptions& options) {
  StoreOptions next = options;
  next.policy = impl_->options.policy;  // ladders and histories were made with it
  const bool budget_changed = next.budget_bytes != impl_->options.budget_bytes;
  impl_->options = next;
  if (budget_changed) SetBudget(0);  // else one that was set while it runs stays
  impl_->sweep_idle = false;
  impl_->NeedTick();
}

Result<OpenedContext> Store::OpenContext(const Caller& caller, const ContextSpec& spec,
                                         std::span<const std::byte> profile_bytes) {
  DYNA_RETURN_IF_ERROR(Validate(spec));
  const Fingerprint id = FingerprintOf(spec);
  StoreContext* ctx = impl_->Context(caller.tenant, id);
  OpenedContext out{id, ctx == nullptr};
  if (ctx != nullptr) {
    DYNA_RETURN_IF_ERROR(CheckRopesJoin(ctx->spec, spec));
  } else if (impl_->contexts.size() >= impl_->options.contexts) {
    return TooLarge("contexts: " + std::to_string(impl_->options.contexts) +
                    " are open already (limits.contexts)");
  }
  std::optional<Profile> profile;
  if (!profile_bytes.empty()) {
    auto parsed = ParseProfile(profile_bytes, spec, id);
    if (!parsed.ok()) return parsed.status();
    profile = std::move(*parsed);
  }
  const OmegaGrain grain = impl_->options.policy.omega;
  if (profile && profile->has_omega() && grain != OmegaGrain::kOff)
    DYNA_RETURN_IF_ERROR(Sensitivity::Make(spec, profile->cells, grain).status());
  if (ctx == nullptr) {
    auto fresh = std::make_unique<StoreContext>(caller.tenant, id, spec, impl_->options.learner);
    uint64_t learners = MomentsBytes(spec, 1);
    for (const auto& [key, other] : impl_->contexts)
      if (key.first == caller.tenant && other->learning_allowed)
        learners += other->learner.memory_bytes();
    fresh->learning_allowed =
        impl_->options.learner.enabled && learners <= impl_->options.learner.tenant_bytes;
    ctx = fresh.get();
    impl_->contexts.emplace(std::pair(caller.tenant, id), std::move(fresh));
    ++impl_->counts.contexts;
    LogInfo("context opened: model={} revision={} context={:016x} layers={} learning={}",
            spec.model, spec.revision, id, spec.layers.size(),
            ctx->learning_allowed ? "on" : "off");
  }
  if (profile && !ctx->profiled) {  // the first one given stays: tiles are coded in it
    ctx->profiled = true;
    if (profile->has_omega()) DYNA_RETURN_IF_ERROR(impl_->TakeOmega(*ctx, profile->cells));
    for (size_t l = 0; l < profile->bases.size(); ++l) {
      if (!profile->bases[l]) continue;
      ctx->learner.SetProfileBasis(static_cast<int>(l), profile->bases[l]);
      impl_->InstallBasis(*ctx, static_cast<int>(l), profile->bases[l]);
    }
  }
  return out;
}

const ContextSpec* Store::FindContext(TenantId tenant, Fingerprint context) const {
  StoreContext* ctx = impl_->Context(tenant, context);
  return ctx == nullptr ? nullptr : &ctx->spec;
}

void Store::CloseSession(SessionId session) {
  impl_->leases.ReleaseSession(session);
  auto it = impl_->sessions.find(session);
  if (it == impl_->sessions.end()) return;
  impl_->AbortOpen(it->second);
  impl_->sessions.erase(it);
}

void Store::OnBusy(std::function<void()> busy) { impl_->on_busy = std::move(busy); }

void Store::OnLeaseRevoked(std::function<void(SessionId, uint64_t)> revoked) {
  impl_->on_revoked = std::move(revoked);
}

bool Store::Tick() {
  Impl& s = *impl_;
  const TimePoint start = s.clock.Now();
  const TimePoint until = start + kSlice;
  const auto wall = std::chrono::steady_clock::now();
  ++s.counts.ticks;
  s.ExpireSlice();
  s.YoungSlice();
  bool more = s.BookSlice(until);
  more |= s.FoldSlice(until);
  s.StartReports();
  more |= s.DropSlice(until);
  more |= s.Pressure(until);
  s.FlushTranscodes();
  if (s.wanted_range != 0) s.CompactSlice();
  if (!s.dirty_history.empty()) {
    BlockRef block = s.dirty_history.front().lock();
    s.dirty_history.pop_front();
    if (block) s.PersistHistory(block);
    more = true;
  }
  const auto ns = static_cast<uint64_t>(
      duration_cast<nanoseconds>(std::chrono::steady_clock::now() - wall).count());
  s.counts.tick_ns_sum += ns;
  s.counts.tick_ns_max = std::max(s.counts.tick_ns_max, ns);
  return more || s.expired_rounds != 0 || s.wanted_range != 0 || !s.reports.empty() ||
         !s.folds.empty();
}

}  // namespace dyna
