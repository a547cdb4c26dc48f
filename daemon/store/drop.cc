// Policies that drop tokens (policy.md 7) and the token budget (policy.md 5): a chain is decided as
// a whole, some time after its last block or report, on a codec thread; its masks are then applied
// by Transcode, in slices. Never more than before: a token that was dropped stays dropped. Blocks
// of class high and exact, and pinned ones, stay whole; a leased one waits for a lease that
// promised more than class small. What comes due while the chain's end is on a disk, or the daemon
// stopped, is due again once that block is read back.
#include <algorithm>
#include <bit>

#include "client/base/log.h"
#include "daemon/policy/token_budget.h"
#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

constexpr size_t kMaxDropsDue = 65536;  // the oldest is forgotten
constexpr std::chrono::milliseconds kRetry{100};

uint64_t PinsOf(const Block& block) {
  return block.index == 0 ? (uint64_t{1} << kPinnedTokens) - 1 : 0;
}

bool StaysWhole(const Block& block) {
  return block.opaque || block.pinned || block.quality >= QualityClass::kHigh;
}

bool Promised(const Block& block) {
  return block.frozen > 0 || (block.leases > 0 && block.lease_floor > QualityClass::kSmall);
}

// What a tile that keeps `keep` becomes. Without a live row a tile has nothing to serve for its
// dropped ones: a reader with masks is told so and no bytes stay; one without keeps one token.
void Narrow(uint64_t keep, uint64_t pins, bool masks, TilePlan* plan) {
  keep &= plan->live;
  if ((keep & ~pins) == 0) {
    if (masks) {
      plan->k_kind = kind::kNone;
      plan->v_kind = keep == 0 ? kind::kNone : kind::VBits(0);  // pins must stay visible
    } else {
      const uint64_t others = plan->live & ~pins;
      keep |= others & (~others + 1);
    }
  }
  plan->live = keep;
}

// The kinds of `bits` where they are fewer than today's.
void TakeBits(double bits, const CellLadder& cell, const Basis* basis, int head, TilePlan* plan) {
  if (plan->k_kind == kind::kNone || plan->v_kind == kind::kNone) return;
  const uint8_t k = KKindFor(basis, head, bits), v = VKindFor(bits);
  if (cell.k_bytes[k & 31] < cell.k_bytes[plan->k_kind & 31]) plan->k_kind = k;
  if (cell.v_bytes[v & 31] < cell.v_bytes[plan->v_kind & 31]) plan->v_kind = v;
}

struct DropSegment {
  uint16_t layer = 0, head_begin = 0, head_end = 0;
  std::vector<uint64_t> live;  // empty: all
  // Only for scores of keys.
  ReadRef bytes;
  uint32_t length = 0;
  std::shared_ptr<const Basis> basis;
  const RopeTable* rope = nullptr;
};

}  // namespace

struct DropWork {
  StoreContext* context = nullptr;
  std::vector<BlockRef> chain;  // from the root
  std::vector<uint32_t> generations;
  std::vector<uint64_t> words;  // of the blocks' hashes
  std::vector<uint8_t> whole;   // blocks that no token may leave
  int64_t token_budget = 0;     // 0: none
  // Copies for the codec thread, [block].
  std::vector<std::vector<BlockHistory>> histories;
  std::vector<std::vector<DropSegment>> segments;
  enum class Phase : uint8_t { kGather, kRunning, kApply } phase = Phase::kGather;
  size_t next_block = 0, next_segment = 0;  // where gathering or applying goes on
  bool again = false;                       // something could not be applied now
  ChainChoice choice;
  TokenFit fit;
  Status status;
};

namespace {

// ---- on a codec thread

// r of every token of a layer; empty where a report has not covered all of it.
std::vector<float> HistoryScores(const DropWork& work, int layer, int heads) {
  const size_t blocks = work.chain.size(), tokens = blocks * kBlockTokens;
  std::vector<float> out(static_cast<size_t>(heads) * tokens);
  for (size_t b = 0; b < blocks; ++b) {
    for (int head = 0; head < heads; ++head) {
      const auto it = std::find_if(
          work.histories[b].begin(), work.histories[b].end(), [&](const BlockHistory& h) {
            return h.Covers(layer) && h.observed(layer) && head >= h.shard().head_begin &&
                   head < h.shard().head_end;
          });
      if (it == work.histories[b].end()) return {};
      it->Tokens(layer, head,
                 std::span<float, 64>(
                     out.data() + static_cast<size_t>(head) * tokens + b * kBlockTokens, 64));
    }
  }
  return out;
}

const DropSegment* Find(const DropWork& work, size_t block, int layer, int head) {
  for (const DropSegment& s : work.segments[block])
    if (s.layer == layer && s.head_begin <= head && head < s.head_end) return &s;
  return nullptr;
}

// The policy's score of every key of a layer, a head at a time: K of a long chain is large. Empty
// where a head is not held or does not decode.
std::vector<float> KeyScores(const DropWork& work, const Policy& policy, Backend& backend,
                             int layer) {
  const LayerShape& shape = work.context->spec.layers[static_cast<size_t>(layer)];
  const size_t blocks = work.chain.size(), tokens = blocks * kBlockTokens, d = shape.head_dim;
  std::vector<float> out(size_t{shape.kv_heads} * tokens);
  std::vector<float> k(tokens * d), unused_v(kBlockTokens * d);
  const auto row = static_cast<int64_t>(d * sizeof(float));
  for (int head = 0; head < shape.kv_heads; ++head) {
    std::vector<DecodeJob> jobs;
    for (size_t b = 0; b < blocks; ++b) {
      const DropSegment* s = Find(work, b, layer, head);
      if (s == nullptr) return {};
      DecodeJob job;
      job.segment = s->bytes.bytes().first(s->length);
      job.basis = s->basis.get();
      job.rope = s->rope;
      job.head_begin = static_cast<uint16_t>(head);
      job.head_end = static_cast<uint16_t>(head + 1);
      auto* to = reinterpret_cast<std::byte*>(k.data() + b * kBlockTokens * d);
      job.target = {to,         reinterpret_cast<std::byte*>(unused_v.data()),
                    row,        row * kBlockTokens,
                    row,        row * kBlockTokens,
                    DType::kF32};
      jobs.push_back(job);
    }
    backend.Decode(jobs);
    for (const DecodeJob& job : jobs)
      if (!job.status.ok()) return {};
    policy.ScoreKeys(k, static_cast<int>(d),
                     std::span(out).subspan(static_cast<size_t>(head) * tokens, tokens));
  }
  return out;
}

void DecideChain(DropWork* work, const Policy& policy, Backend& backend) {
  const ContextSpec& spec = work->context->spec;
  const size_t blocks = work->chain.size();
  ChainView view;
  view.spec = &spec;
  view.tokens = static_cast<uint32_t>(blocks * kBlockTokens);
  view.pinned = kPinnedTokens;
  view.blocks = work->words;
  std::vector<std::vector<float>> scores(spec.layers.size());
  std::vector<std::vector<uint64_t>> live(spec.layers.size());
  for (size_t l = 0; l < spec.layers.size(); ++l) {
    const int layer = static_cast<int>(l), heads = spec.layers[l].kv_heads;
    if (spec.layers[l].kind == LayerKind::kFull) {
      if (policy.scores() == ScoreSource::kReports) scores[l] = HistoryScores(*work, layer, heads);
      if (policy.scores() == ScoreSource::kKeys)
        scores[l] = KeyScores(*work, policy, backend, layer);
    }
    live[l].assign(static_cast<size_t>(heads) * blocks, ~uint64_t{0});
    for (size_t b = 0; b < blocks; ++b)
      for (const DropSegment& s : work->segments[b])
        for (size_t h = 0; s.layer == layer && h < s.live.size(); ++h)
          live[l][(s.head_begin + h) * blocks + b] = s.live[h];
    view.importance.emplace_back(scores[l]);
    view.live.emplace_back(live[l]);
  }
  if (policy.drops_tokens())
    work->status = policy.SelectLive(view, &work->choice);
  else
    work->choice.live = live;
  if (work->status.ok() && work->token_budget > 0) {
    for (size_t l = 0; l < spec.layers.size(); ++l) {
      if (policy.scores() != ScoreSource::kReports && spec.layers[l].kind == LayerKind::kFull)
        scores[l] = HistoryScores(*work, static_cast<int>(l), spec.layers[l].kv_heads);
      view.importance[l] = scores[l];
    }
    work->fit = FitTokenBudget(view, work->whole, work->token_budget, &work->choice);
  }
  work->histories.clear();
}

}  // namespace

// ---- on the loop

bool Store::Impl::Drops() const { return policy->drops_tokens() || options.token_budget > 0; }

bool Store::Impl::DropsByReport() const {
  return options.token_budget > 0 ||
         (policy->drops_tokens() && policy->scores() == ScoreSource::kReports);
}

void Store::Impl::DropLater(const BlockRef& leaf, std::chrono::milliseconds at_least) {
  if (leaf->opaque || DTypeBytes(leaf->context->spec.dtype) == 1) return;  // stored as they are
  if (leaf->index != 0)  // its parent turned out not to be an end
    if (BlockRef parent = blocks.Find({leaf->key.tenant, leaf->key.context, leaf->parent}))
      parent->drop_due.reset();
  const auto delay = std::max(at_least, std::chrono::milliseconds(options.policy.drop.after_ms));
  leaf->drop_due = clock.Now() + delay;
  // Retries come later than the others: a little out of order does not matter.
  drops_due.push_back({*leaf->drop_due, leaf});
  if (drops_due.size() > kMaxDropsDue) drops_due.pop_front();
  NeedTick();
}

bool Store::Impl::DropSlice(TimePoint until) {
  while (!drop && !drops_due.empty() && drops_due.front().at <= clock.Now()) {
    const DueDrop due = std::move(drops_due.front());
    drops_due.pop_front();
    const BlockRef leaf = due.leaf.lock();
    // One that was put off since has another entry.
    if (leaf && leaf->state() == BlockState::kResident && leaf->drop_due == due.at) BeginDrop(leaf);
  }
  bool more = false;
  if (drop && drop->phase == DropWork::Phase::kGather) more = GatherDrop(until);
  if (drop && drop->phase == DropWork::Phase::kApply) more = ApplyDrop(until);
  if (drop) return more;  // while it runs its codec job says when to go on
  return !drops_due.empty() && drops_due.front().at <= clock.Now();
}

void Store::Impl::BeginDrop(const BlockRef& leaf) {
  leaf->drop_due.reset();
  auto work = std::make_shared<DropWork>();
  work->context = leaf->context;
  BlockRef at = leaf;
  bool promised = false;
  while (at && at->state() == BlockState::kResident) {
    promised |= Promised(*at);
    if (at != leaf) at->drop_due.reset();  // decided as part of this one
    work->chain.push_back(at);
    at = at->index == 0 ? nullptr : blocks.Find({at->key.tenant, at->key.context, at->parent});
  }
  if (work->chain.back()->index != 0) return;  // a hole: what is there is not the whole
  if (promised) {
    DropLater(leaf, kRetry);
    return;
  }
  std::reverse(work->chain.begin(), work->chain.end());
  for (const BlockRef& b : work->chain) {
    work->generations.push_back(b->generation);
    work->words.push_back(BlockHashHasher{}(b->key.hash));
    work->whole.push_back(StaysWhole(*b));
  }
  work->token_budget = static_cast<int64_t>(options.token_budget);
  work->histories.resize(work->chain.size());
  work->segments.resize(work->chain.size());
  drop = std::move(work);
}

bool Store::Impl::GatherDrop(TimePoint until) {
  DropWork& work = *drop;
  for (; work.next_block < work.chain.size(); ++work.next_block) {
    if (clock.Now() >= until) return true;
    const Block& block = *work.chain[work.next_block];
    if (block.state() != BlockState::kResident) {
      drop.reset();
      return false;
    }
    if (policy->scores() == ScoreSource::kReports || work.token_budget > 0)
      work.histories[work.next_block] = block.history;
    for (const Segment& s : block.segments) {
      DropSegment& copy = work.segments[work.next_block].emplace_back();
      copy.layer = s.layer;
      copy.head_begin = s.head_begin;
      copy.head_end = s.head_end();
      copy.live = s.live;
      if (policy->scores() != ScoreSource::kKeys) continue;
      copy.bytes = s.extent.Read();
      copy.length = s.bytes;
      copy.basis = work.context->Share(s.basis);
      copy.rope = work.context->rope_for(s.layer, copy.basis.get());
    }
  }
  work.phase = DropWork::Phase::kRunning;
  RunCodec(
      work.chain.size() << 20,  // never inside this call: a whole chain is looked at
      [work = drop, &chosen = *policy, &be = backend] { DecideChain(work.get(), chosen, be); },
      [this, work = drop] {
        work->segments.clear();  // here: what reads the arena is let go of on the loop
        work->phase = DropWork::Phase::kApply;
        work->next_block = 0;
        if (!work->status.ok()) {
          LogWarn("policy {}: {}", policy->name(), work->status.ToString());
          drop.reset();
        } else if (work->token_budget > 0) {
          ++counts.fitted_chains;
          counts.overfull_chains += !work->fit.fits;
          counts.kept_tokens = static_cast<uint64_t>(work->fit.kept);
        }
        NeedTick();
      });
  return false;
}

bool Store::Impl::ApplyDrop(TimePoint until) {
  DropWork& work = *drop;
  for (; work.next_block < work.chain.size(); ++work.next_block, work.next_segment = 0) {
    const BlockRef& block = work.chain[work.next_block];
    if (block->state() != BlockState::kResident ||
        block->generation != work.generations[work.next_block] || StaysWhole(*block))
      continue;
    if (Promised(*block)) {
      work.again = true;
      continue;
    }
    for (; work.next_segment < block->segments.size(); ++work.next_segment) {
      if (clock.Now() >= until || transcodes >= TranscodesAtOnce() ||
          block->segments[work.next_segment].transcoding)
        return true;
      if (!DropTokens(block, work.next_segment, work.next_block)) work.again = true;
    }
  }
  if (work.again) DropLater(work.chain.back(), kRetry);
  drop.reset();
  return false;
}

bool Store::Impl::DropTokens(const BlockRef& block, size_t index, size_t place) {
  const Segment& s = block->segments[index];
  StoreContext& ctx = *block->context;
  const ChainChoice& choice = drop->choice;
  const BasisName name = s.basis != 0 ? s.basis : ctx.CurrentBasis(s.layer);
  const auto ladders = ctx.Ladders(*policy, s.layer, name, block->quality);
  if (!ladders) return true;
  std::vector<TilePlan> today;
  PlanOfToday(*block, s, &today);
  std::vector<TilePlan> plan_now = today;
  const size_t blocks_in_chain = drop->chain.size();
  for (size_t h = 0; h < plan_now.size(); ++h) {
    const size_t at = (s.head_begin + h) * blocks_in_chain + place;
    const int head = s.head_begin + static_cast<int>(h);
    Narrow(choice.live[s.layer][at], PinsOf(*block), ctx.spec.masks, &plan_now[h]);
    if (!choice.bits.empty() && !choice.bits[s.layer].empty())
      TakeBits(double{choice.bits[s.layer][at]}, ladders->cell(head), ladders->basis().get(), head,
               &plan_now[h]);
  }
  return plan_now == today || StartTranscode(block, index, plan_now, *ladders);
}

// Rows that are gone lost about all of their variance, which the codec does not count: it leaves
// them out of its sums. Tiles of kind none it has counted.
float Store::Impl::DroppedShare(std::span<const TilePlan> plan) {
  int rows = 0;
  for (const TilePlan& p : plan) {
    const int gone = kBlockTokens - std::popcount(p.live);
    rows += (p.k_kind != kind::kNone ? gone : 0) + (p.v_kind != kind::kNone ? gone : 0);
  }
  return static_cast<float>(rows) / static_cast<float>(2 * kBlockTokens * plan.size());
}

}  // namespace dyna
