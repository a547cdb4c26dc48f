// Facts for people: counters, contexts, and one block as `inspect` shows it.
#include <algorithm>
#include <array>
#include <cmath>

#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

// Bits of a K or V element as stored, codes only.
float BitsOf(uint8_t k, bool is_k, const Basis* basis, int head, DType dtype) {
  if (k == kind::kRaw) return 8.0f * static_cast<float>(DTypeBytes(dtype));
  if (k == kind::kFp8 || k == kind::kPlain8) return 8;
  if (k == kind::kPlain4) return 4;
  if (k < kind::kLevel0) return 0;
  if (!is_k) return static_cast<float>(k - kind::kLevel0);
  return basis == nullptr ? 0 : static_cast<float>(basis->mean_bits(head, k - kind::kLevel0));
}

double L2Error(const Basis& basis) {
  double sum = 0;
  int n = 0;
  for (int h = basis.info().head0; h < basis.info().head0 + basis.info().kv_heads; ++h)
    if (basis.seen(h)) {
      sum += basis.relative_error(h, basis.LevelOf(2));
      ++n;
    }
  return n == 0 ? 0 : sum / n;
}

// Bits that the ladder saves against a plain code of the same error: what learning was worth.
double BitsSaved(const Basis& basis) {
  // Plain4's error on K is about .0085 of the variance (formats 1); L2 reaches l2 with 2 bits, and
  // six decibels are one bit.
  const double l2 = L2Error(basis);
  return l2 <= 0 ? 0 : std::max(0.0, (4.0 - 0.5 * std::log2(l2 / PlainError(4))) - 2.0);
}

}  // namespace

StoreStats Store::stats() const {
  const Impl& s = *impl_;
  StoreStats out = s.counts;
  out.budget_bytes = s.Limit();
  out.token_budget = s.options.token_budget;
  out.charged_bytes = s.Charged();
  out.young_bytes = *s.nursery;
  out.aux_bytes = s.aux_bytes;
  out.basis_bytes = s.basis_bytes;
  out.raw_bytes = s.raw_bytes;
  out.leases = s.leases.size();
  out.leased_bytes = s.leases.held_bytes();
  out.contexts = s.contexts.size();
  out.host.blocks = s.resident;
  out.host.bytes = s.arena.used_bytes();
  if (s.spill != nullptr) {
    const SpillStats d = s.spill->stats();
    out.spill = {d.blocks, d.live_bytes};
  }
  if (s.bank != nullptr) {
    const SpillStats d = s.bank->stats();
    out.bank = {d.blocks, d.live_bytes};
  }
  for (const auto& [id, session] : s.sessions) out.writing_blocks += session.writing.size();
  double bits = 0, nmse = 0, weight = 0;
  s.blocks.ForEach([&](Block& b) {
    if (b.state() != BlockState::kResident || b.opaque) return;
    for (const record::Cell& c : b.cells) {
      ++out.k_tiles[c.k_kind];
      ++out.v_tiles[c.v_kind];
    }
    for (const BlockHistory& h : b.history) out.history_bytes += h.serialized_bytes();
    const auto w = static_cast<double>(b.cells.size());
    bits += b.mean_bits * w;
    nmse += static_cast<double>(b.nmse()) * w;
    weight += w;
  });
  if (weight > 0) {
    out.mean_bits = bits / weight;
    out.mean_nmse = nmse / weight;
  }
  double saved = 0;
  uint64_t bases = 0;
  for (const auto& [key, ctx] : s.contexts) {
    out.learned_tokens += ctx->learned_tokens;
    out.learned_queries += ctx->learned_queries;
    for (const auto& [name, use] : ctx->bases) {
      ++bases;
      saved += BitsSaved(*use.basis);
    }
  }
  out.bases = bases;
  out.predicted_bits_saved = bases == 0 ? 0 : saved / static_cast<double>(bases);
  return out;
}

std::vector<ContextFact> Store::Contexts(TenantId tenant) const {
  std::vector<ContextFact> out;
  for (const auto& [key, ctx] : impl_->contexts) {
    if (tenant != 0 && key.first != tenant) continue;
    ContextFact f;
    f.context = ctx->fingerprint;
    f.tenant = ctx->tenant;
    f.model = ctx->spec.model;
    f.revision = ctx->spec.revision;
    f.blocks = ctx->blocks;
    f.basis_bytes = ctx->basis_bytes();
    f.omega_learned = ctx->omega_learned;
    f.profile = ctx->profiled || (!ctx->omega.empty() && !ctx->omega_learned);
    f.learned_tokens = ctx->learned_tokens;
    f.learned_queries = ctx->learned_queries;
    f.learn_seconds = ctx->learn_seconds;
    double saved = 0;
    for (const auto& [name, use] : ctx->bases) {
      const BasisInfo& info = use.basis->info();
      f.bases.push_back({ctx->fingerprint, info.layer, name, info.source, info.tokens, info.queries,
                         use.segments, use.basis->bytes().size(), L2Error(*use.basis)});
      saved += BitsSaved(*use.basis);
    }
    std::sort(f.bases.begin(), f.bases.end(),
              [](const BasisFact& a, const BasisFact& b) { return a.layer < b.layer; });
    if (!f.bases.empty()) f.predicted_bits_saved = saved / static_cast<double>(f.bases.size());
    impl_->blocks.ForEach([&](Block& b) {
      if (b.context != ctx.get()) return;
      f.encoded_bytes += b.segment_bytes();
      for (const Segment& s : b.segments)
        if (!b.opaque)
          f.raw_bytes +=
              2 * s.kv_heads * RawTileBytes(ctx->spec.layers[s.layer].head_dim, ctx->spec.dtype);
    });
    out.push_back(std::move(f));
  }
  return out;
}

bool Store::NeedsClock() const {
  return impl_->leases.size() != 0 || !impl_->sessions.empty() || !impl_->drops_due.empty() ||
         !impl_->young.empty();
}

std::vector<TenantUse> Store::Tenants() const {
  std::vector<TenantUse> out;
  for (const auto& [id, t] : impl_->tenants) out.push_back({id, t.name, t.charged, t.quota});
  return out;
}

std::vector<record::BlockMeta> Store::Banked(TenantId tenant, const wire::Query& query) const {
  std::vector<record::BlockMeta> out;
  impl_->blocks.ForEach([&](Block& b) {
    if (out.size() < query.limit && b.key.tenant == tenant && b.bank &&
        (query.context == 0 || b.key.context == query.context))
      out.push_back(*b.bank);
  });
  return out;
}

std::vector<BlockFact> Store::Inspect(TenantId tenant, const wire::Query& query) const {
  std::vector<BlockFact> out;
  auto show = [&](Block& b) {
    if (out.size() >= query.limit || b.key.tenant != tenant ||
        (query.context != 0 && b.key.context != query.context) || !b.visible())
      return;
    BlockFact f;
    f.context = b.key.context;
    f.hash = b.key.hash;
    f.parent = b.parent;
    f.index = b.index;
    f.generation = b.generation;
    f.revision = b.revision;
    f.leases = b.leases;
    f.tier = b.state() == BlockState::kResident ? Tier::kHost
             : impl_->SpillHolds(b)             ? Tier::kSpill
                                                : Tier::kBank;
    f.quality = b.quality;
    f.persistent = b.bank != nullptr;
    f.pinned = b.pinned;
    f.opaque = b.opaque;
    f.nmse = b.nmse();
    f.reuse =
        static_cast<float>(b.reuse.At(impl_->clock.UnixMillis(), impl_->options.reuse_half_life_s));
    f.bytes = b.segment_bytes();
    f.charged = b.charged;
    for (const Segment& s : b.segments) {
      if (b.opaque) break;
      BlockFact::Row row;
      row.layer = s.layer;
      row.head_begin = s.head_begin;
      row.kv_heads = s.kv_heads;
      row.bytes = s.bytes;
      row.basis = s.basis;
      row.nmse = s.nmse;
      const Basis* basis = b.context->Find(s.basis);
      for (int h = 0; h < s.kv_heads; ++h) {
        const record::Cell& c = b.cells[s.cell + static_cast<size_t>(h)];
        const int head = s.head_begin + h;
        row.k_kind.push_back(c.k_kind);
        row.v_kind.push_back(c.v_kind);
        row.k_bits.push_back(BitsOf(c.k_kind, true, basis, head, b.context->spec.dtype));
        row.v_bits.push_back(BitsOf(c.v_kind, false, basis, head, b.context->spec.dtype));
        std::array<float, 8> r;
        r.fill(1);
        for (const BlockHistory& history : b.history)
          if (history.Covers(s.layer) && history.observed(s.layer) &&
              head >= history.shard().head_begin && head < history.shard().head_end)
            history.Groups(s.layer, head, r);
        row.importance.insert(row.importance.end(), r.begin(), r.end());
      }
      f.rows.push_back(std::move(row));
    }
    out.push_back(std::move(f));
  };
  if (query.hashes.empty()) {
    for (Block* b = impl_->blocks.newest(); b != nullptr && out.size() < query.limit; b = b->older)
      show(*b);
    return out;
  }
  for (const BlockHash& hash : query.hashes)
    if (BlockRef b = impl_->blocks.Find({tenant, query.context, hash})) show(*b);
  return out;
}

}  // namespace dyna
