// What new tiles take, what the budget counts, and what the price book knows of a block.
#include <algorithm>
#include <cmath>

#include "daemon/policy/log2_byte.h"
#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

constexpr double kTrigger = 1.0 / 128;  // pressure begins this far below the limit
constexpr uint64_t kEntryBytes = 96;    // of a block in RAM, as design 2 counts it
constexpr float kRebookRatio = 1.4f;    // a reuse that moved by half an octave is told to the book

uint64_t HashWord(const BlockHash& hash) { return static_cast<uint64_t>(BlockHashHasher{}(hash)); }

double KBits(uint8_t k, const Basis* basis, int head, DType dtype) {
  if (k == kind::kRaw) return 8.0 * DTypeBytes(dtype);
  if (k == kind::kFp8 || k == kind::kPlain8) return 8;
  if (k == kind::kPlain4) return 4;
  if (kind::IsLevel(k) && basis != nullptr && basis->Covers(head))
    return basis->mean_bits(head, k - kind::kLevel0);
  return 0;
}

double VBits(uint8_t v, DType dtype) {
  if (v == kind::kRaw) return 8.0 * DTypeBytes(dtype);
  if (v == kind::kFp8) return 8;
  return v >= kind::kLevel0 ? v - kind::kLevel0 : 0;
}

// The class that a tile of these bits still satisfies (design 2). L2 means its name, not exactly
// 2 bits: the longest prefix within the target may be a little narrower.
QualityClass ClassOf(uint8_t kind_id, double bits, double l2_bits) {
  if (kind_id == kind::kRaw) return QualityClass::kExact;
  if (bits >= 8) return QualityClass::kHigh;
  return bits >= l2_bits ? QualityClass::kBalanced : QualityClass::kSmall;
}

}  // namespace

uint64_t Store::Impl::Limit() const {
  const auto room =
      static_cast<uint64_t>(static_cast<double>(arena.capacity()) * (1 - options.headroom)) -
      NurseryRoom();
  return budget == 0 ? room : std::min(budget, room);
}

uint64_t Store::Impl::Target() const {
  const uint64_t limit = Limit();
  return limit - static_cast<uint64_t>(static_cast<double>(limit) * kTrigger);
}

uint64_t Store::Impl::Charged() const {
  return arena.used_bytes() - *nursery + aux_bytes + basis_bytes;
}

int64_t Store::Impl::FixedBytes() const {
  return static_cast<int64_t>(Charged() - arena.stats().retired_bytes - transcode_copies) -
         book.bytes();
}

Result<Extent> Store::Impl::Reserve(uint64_t bytes, uint64_t serial, bool nursed) {
  if (!nursed && !Fits(bytes)) {
    wanted_room = std::max(wanted_room, bytes);
    NeedTick();
    return Status(StatusCode::kRetry, "the budget is full: tiles are being demoted or moved", 5);
  }
  auto extent = arena.Allocate(bytes, serial);
  if (!extent.ok()) {
    wanted_range = std::max(wanted_range, bytes);
    NeedTick();
  } else {
    wanted_room -= std::min(wanted_room, bytes);  // it is had: not to be made once more
  }
  return extent;
}

SegmentId Store::Impl::IdOf(const StoreContext& ctx, const Shard& shard, int layer,
                            const BlockHash& hash, uint32_t index, BasisName basis) {
  return {ctx.fingerprint,
          basis,
          hash,
          index,
          static_cast<uint16_t>(layer),
          shard.head_begin,
          static_cast<uint16_t>(shard.head_end - shard.head_begin),
          ctx.spec.layers[static_cast<size_t>(layer)].head_dim,
          ctx.spec.dtype};
}

PricedSegment Store::Impl::Fresh(const LadderSet& ladders, std::span<const record::Cell> cells,
                                 const Shard& shard, int layer, const BlockHash& hash) {
  PricedSegment priced;
  priced.ladders = &ladders;
  priced.cells = cells;
  priced.head_begin = shard.head_begin;
  priced.layer = layer;
  priced.block = HashWord(hash);
  return priced;
}

std::vector<TilePlan> Store::Impl::PlanPut(StoreContext& ctx, TenantId tenant, const Shard& shard,
                                           int layer, QualityClass quality, const BlockHash& hash,
                                           bool nursed, BasisName* basis) {
  const size_t heads = static_cast<size_t>(shard.head_end - shard.head_begin);
  *basis = ctx.CurrentBasis(layer);
  auto ladders = ctx.Ladders(*policy, layer, *basis, quality);
  if (!ladders) return {};
  std::vector<record::Cell> cells(heads);
  std::vector<TilePlan> out(heads);
  PricedSegment priced = Fresh(*ladders, cells, shard, layer, hash);
  if (nursed) priced.log2_h = YoungEighths();
  Decide(priced, book.price(tenant), /*fresh=*/true, options.policy.price, out);
  if (std::none_of(out.begin(), out.end(),
                   [](const TilePlan& p) { return kind::IsLevel(p.k_kind); }))
    *basis = 0;
  return out;
}

void Store::Impl::PlanOfToday(const Block& block, const Segment& s, std::vector<TilePlan>* plan) {
  plan->resize(s.kv_heads);
  for (size_t h = 0; h < plan->size(); ++h) {
    const record::Cell& cell = block.cells[s.cell + h];
    (*plan)[h] = {cell.k_kind, cell.v_kind, s.live.empty() ? ~uint64_t{0} : s.live[h]};
  }
}

bool Store::Impl::Priced(const Block& block) const {
  return block.state() == BlockState::kResident && !block.opaque &&
         block.quality != QualityClass::kExact;
}

bool Store::Impl::Frozen(const Block& block) {
  return block.pinned || block.frozen > 0 ||
         (block.leases > 0 && block.lease_floor > block.quality);
}

PricedSegment Store::Impl::AsPriced(const Block& block, const Segment& s,
                                    std::span<const record::Cell> cells) const {
  PricedSegment p;
  p.ladders = s.booked.get();
  p.cells = cells.subspan(s.cell, s.kv_heads);
  p.head_begin = s.head_begin;
  p.layer = s.layer;
  p.block = HashWord(block.key.hash);
  p.log2_h = s.booked_h;
  p.observed = s.booked_observed;
  p.frozen = s.booked_frozen;
  return p;
}

std::shared_ptr<const LadderSet> Store::Impl::LaddersOf(const Block& block, const Segment& s,
                                                        QualityClass quality) {
  StoreContext& ctx = *block.context;
  const BasisName basis = s.basis != 0 ? s.basis : ctx.CurrentBasis(s.layer);
  return ctx.Ladders(*policy, s.layer, basis, quality);
}

void Store::Impl::Book(Block& block, Segment& s) {
  if (s.booked || s.nursery || !Priced(block) || !s.extent) return;
  s.booked = LaddersOf(block, s, block.quality);
  if (!s.booked) return;
  s.booked_frozen = Frozen(block);
  s.booked_observed = std::any_of(block.history.begin(), block.history.end(), [&](const auto& h) {
    return h.Covers(s.layer) && h.observed(s.layer);
  });
  s.booked_h = Log2Byte(block.reuse.Weight(clock.UnixMillis(), options.reuse_half_life_s));
  book.Add(block.key.tenant, AsPriced(block, s, block.cells));
}

void Store::Impl::Unbook(Block& block, Segment& s) {
  if (!s.booked) return;
  book.Remove(block.key.tenant, AsPriced(block, s, block.cells));
  s.booked.reset();
}

void Store::Impl::BookOpen(const Block& block, Writer& writer, Segment& s) {
  s.booked = LaddersOf(block, s, writer.quality);
  if (!s.booked) return;
  s.booked_h = 0;
  s.booked_frozen = s.booked_observed = false;
  book.Add(block.key.tenant, AsPriced(block, s, writer.cells));
}

void Store::Impl::UnbookOpen(const Block& block, const Writer& writer, Segment& s) {
  if (!s.booked) return;
  book.Remove(block.key.tenant, AsPriced(block, s, writer.cells));
  s.booked.reset();
}

void Store::Impl::BookAll(Block& block) {
  for (Segment& s : block.segments) Book(block, s);
}
void Store::Impl::UnbookAll(Block& block) {
  for (Segment& s : block.segments) Unbook(block, s);
}

void Store::Impl::BookLater(Block& block) {
  if (block.queued || !Priced(block) || block.segments.empty() || !block.segments[0].booked) return;
  const Segment& s = block.segments[0];
  const bool frozen = Frozen(block);
  // Every lookup of every block comes here: logarithms only where the count moved enough to matter.
  const float moved = block.reuse.hits / block.booked_hits;
  if (frozen == s.booked_frozen && moved < kRebookRatio && moved > 1 / kRebookRatio) return;
  block.queued = true;
  to_book.push_back(blocks.Find(block.key));
  NeedTick();
}

bool Store::Impl::BookSlice(TimePoint until) {
  while (!to_book.empty()) {
    if (clock.Now() >= until) return true;
    BlockRef block = to_book.front().lock();
    to_book.pop_front();
    if (!block || block->state() == BlockState::kGone) continue;
    block->queued = false;
    block->booked_hits = block->reuse.hits;
    UnbookAll(*block);
    BookAll(*block);
  }
  if (!rebook || learning > 0) return false;
  // A new basis, or new sensitivities: what segments may become changes. Walk the table once,
  // newest first.
  BlockRef at = rebook_at.lock();
  Block* block = at && at->state() != BlockState::kGone ? at.get() : blocks.newest();
  for (; block != nullptr; block = block->older) {
    if (clock.Now() >= until) {
      rebook_at = blocks.Find(block->key);
      return true;
    }
    for (Segment& s : block->segments)
      if (s.booked && s.booked != LaddersOf(*block, s, block->quality)) {
        Unbook(*block, s);
        Book(*block, s);
      }
  }
  rebook = false;
  sweep_idle = false;
  return false;
}

void Store::Impl::Charge(Block& block) {
  Uncharge(block);
  uint64_t history = 0;
  for (const BlockHistory& h : block.history) history += h.serialized_bytes();
  for (const Segment& s : block.segments) history += s.live.size() * sizeof(uint64_t);
  block.charged = kEntryBytes + sizeof(record::Cell) * block.cells.size() + history;
  aux_bytes += block.charged;
}

void Store::Impl::Uncharge(Block& block) {
  aux_bytes -= block.charged;
  block.charged = 0;
}

void Store::Impl::Appraise(Block& block) {
  if (block.opaque) {
    block.effective = QualityClass::kExact;
    return;
  }
  const StoreContext& ctx = *block.context;
  double bits = 0, weight = 0;
  QualityClass worst = QualityClass::kExact;
  for (const Segment& s : block.segments) {
    const Basis* basis = ctx.Find(s.basis);
    const LayerShape& shape = ctx.spec.layers[s.layer];
    for (int h = 0; h < s.kv_heads; ++h) {
      const record::Cell& cell = block.cells[s.cell + static_cast<size_t>(h)];
      const int head = s.head_begin + h;
      const double k = KBits(cell.k_kind, basis, head, ctx.spec.dtype);
      const double v = VBits(cell.v_kind, ctx.spec.dtype);
      double l2 = 2;
      if (basis != nullptr && basis->seen(head))
        l2 = std::min(l2, basis->mean_bits(head, basis->LevelOf(2)));
      worst = std::min({worst, ClassOf(cell.k_kind, k, l2), ClassOf(cell.v_kind, v, 2)});
      bits += (k + v) * shape.head_dim;
      weight += 2.0 * shape.head_dim;
    }
  }
  // Whatever its tiles have, a block without some of its tokens keeps no class's promise.
  block.effective = block.dropped ? QualityClass::kSmall : worst;
  block.mean_bits = weight > 0 ? static_cast<float>(bits / weight) : 0;
  block.appraised_bytes = block.segment_bytes();
  block.appraised_nmse = block.nmse();
}

void Store::Impl::UseBasis(StoreContext& ctx, BasisName name, int change) {
  if (name == 0) return;
  auto it = ctx.bases.find(name);
  if (it == ctx.bases.end()) return;
  it->second.segments = static_cast<uint64_t>(static_cast<int64_t>(it->second.segments) + change);
}

}  // namespace dyna
