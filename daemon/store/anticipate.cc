// The price of what is to come: a put is coded at once at the bits that it may keep.
#include <algorithm>

#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

// One layer of the blocks to come, as one block's, at the top of its ladders.
struct Coming {
  std::shared_ptr<const LadderSet> ladders;
  std::vector<record::Cell> cells;
  PricedSegment priced;
  TenantId tenant = 0;
  int copies = 0;
};

// Blocks to come that are alike: of one context, shard and class. `copies`: segments, by layer.
struct Group {
  StoreContext* context = nullptr;
  Shard shard;
  QualityClass quality = QualityClass::kBalanced;
  BlockHash hash;  // of one of them
  std::vector<int> copies;
};

std::vector<int>& Copies(std::vector<Group>* groups, StoreContext& context, const Shard& shard,
                         QualityClass quality, const BlockHash& hash) {
  for (Group& g : *groups)
    if (g.context == &context && g.shard == shard && g.quality == quality) return g.copies;
  const auto layers = static_cast<size_t>(shard.layer_end - shard.layer_begin);
  groups->push_back({&context, shard, quality, hash, std::vector<int>(layers)});
  return groups->back().copies;
}

}  // namespace

// Sets the price at which all that is held, the blocks of this put, whole, and the rest of those
// that any client has begun fit. At a lower one their first layers would fill the budget at many
// bits: complete blocks would be pressed to their floors for the rest, bits that nobody gets back,
// and where none is complete nothing could shrink, and nobody get on.
void Store::Impl::Anticipate(StoreContext& ctx, TenantId tenant, const wire::Put& put) {
  // While it fits uncompressed there is nothing to foresee: the common case, and cheap.
  std::vector<Group> groups;
  std::vector<int>& own = Copies(&groups, ctx, put.shard, put.quality, put.hashes[0]);
  uint64_t raw = 0, open = 0;
  for (int layer = put.shard.layer_begin; layer < put.shard.layer_end; ++layer)
    raw += RawSegmentBytes(IdOf(ctx, put.shard, layer, put.hashes[0], 0, 0));
  for (const auto& [id, session] : sessions) open += session.open_puts;
  if (Charged() + 2 * raw * (put.hashes.size() + open) <= Target()) return;
  // What the nursery takes is priced when it grows up.
  if (NurseryTakes(put.quality, raw * (put.hashes.size() + open))) return;

  for (const BlockHash& hash : put.hashes) {
    const BlockRef block = blocks.Find({tenant, put.context, hash});
    const auto begun = [&](const auto& w) { return w->shard == put.shard; };
    if (block &&
        (block->visible() || std::any_of(block->writers.begin(), block->writers.end(), begun)))
      continue;
    for (int& copies : own) ++copies;
  }
  for (const auto& [id, session] : sessions)
    for (const auto& weak : session.writing) {
      const BlockRef block = weak.lock();
      if (!block) continue;
      for (const auto& w : block->writers) {
        if (w->session != id || w->aborted) continue;
        auto& copies = Copies(&groups, *block->context, w->shard, w->quality, block->key.hash);
        for (size_t at = 0; at < copies.size(); ++at) copies[at] += !w->taken[at];
      }
    }

  std::vector<Coming> coming;
  int64_t tile_bytes = 0, other_bytes = 0;
  for (const Group& g : groups)
    for (int layer = g.shard.layer_begin; layer < g.shard.layer_end; ++layer) {
      Coming c;
      c.copies = g.copies[static_cast<size_t>(layer - g.shard.layer_begin)];
      if (c.copies == 0) continue;
      const BasisName basis = g.context->CurrentBasis(layer);
      c.ladders = g.context->Ladders(*policy, layer, basis, g.quality);
      if (!c.ladders) return;  // the put says which layer the policy cannot serve
      const auto heads = static_cast<size_t>(g.shard.head_end - g.shard.head_begin);
      c.tenant = g.context->tenant;
      c.cells.resize(heads);
      c.priced = Fresh(*c.ladders, c.cells, g.shard, layer, g.hash);
      std::vector<TilePlan> top(heads);
      Decide(c.priced, kFreePrice, /*fresh=*/true, options.policy.price, top);
      for (size_t h = 0; h < heads; ++h) {
        c.cells[h].k_kind = top[h].k_kind;
        c.cells[h].v_kind = top[h].v_kind;
      }
      const int64_t tiles = TileBytes(c.priced);
      const auto whole = static_cast<int64_t>(EncodedBytes(
          IdOf(*g.context, g.shard, layer, g.hash, 0, basis), top, 0, g.context->Find(basis)));
      tile_bytes += c.copies * tiles;
      other_bytes +=
          c.copies * (whole - tiles + static_cast<int64_t>(heads * sizeof(record::Cell)));
      coming.push_back(std::move(c));
    }
  const int64_t budget_of_tiles = static_cast<int64_t>(Target()) - FixedBytes() - other_bytes;
  if (book.bytes() + tile_bytes <= budget_of_tiles) return;
  for (const Coming& c : coming) book.Expect(c.tenant, c.priced, c.copies);
  book.Solve(budget_of_tiles);
  for (const Coming& c : coming) book.Expect(c.tenant, c.priced, -c.copies);
}

}  // namespace dyna
