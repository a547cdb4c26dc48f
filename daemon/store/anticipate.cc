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
  int copies = 0;
};

}  // namespace

// Sets the price at which all that is held and the blocks of this put, whole, fit. At a lower one
// they would fill the budget at many bits, and those that are complete would be pressed to their
// floors to make room for the rest: bits that nobody gets back.
void Store::Impl::Anticipate(StoreContext& ctx, TenantId tenant, const wire::Put& put) {
  const Shard& shard = put.shard;
  const auto heads = static_cast<uint16_t>(shard.head_end - shard.head_begin);
  const auto id_of = [&](int layer, BasisName basis) {
    return SegmentId{put.context,
                     basis,
                     put.hashes[0],
                     0,
                     static_cast<uint16_t>(layer),
                     shard.head_begin,
                     heads,
                     ctx.spec.layers[static_cast<size_t>(layer)].head_dim,
                     ctx.spec.dtype};
  };
  // While it fits uncompressed there is nothing to foresee: the common case, and cheap.
  uint64_t raw = 0;
  for (int layer = shard.layer_begin; layer < shard.layer_end; ++layer)
    raw += RawSegmentBytes(id_of(layer, 0));
  if (Charged() + 2 * raw * put.hashes.size() <= Target()) return;

  // Segments to come, by layer: neither held nor on their way.
  std::vector<int> copies(static_cast<size_t>(shard.layer_end - shard.layer_begin));
  for (const BlockHash& hash : put.hashes) {
    const BlockRef block = blocks.Find({tenant, put.context, hash});
    if (block && block->visible()) continue;
    for (size_t at = 0; at < copies.size(); ++at) {
      const auto writes = [&](const auto& w) { return w->shard == shard && w->taken[at]; };
      if (!block || std::none_of(block->writers.begin(), block->writers.end(), writes))
        ++copies[at];
    }
  }
  std::vector<Coming> coming;
  int64_t tile_bytes = 0, other_bytes = 0;
  for (int layer = shard.layer_begin; layer < shard.layer_end; ++layer) {
    Coming c;
    c.copies = copies[static_cast<size_t>(layer - shard.layer_begin)];
    if (c.copies == 0) continue;
    const BasisName basis = ctx.CurrentBasis(layer);
    c.ladders = ctx.Ladders(*policy, layer, basis, put.quality);
    if (!c.ladders) return;  // the put says which layer the policy cannot serve
    c.cells.resize(heads);
    c.priced = Fresh(*c.ladders, c.cells, shard, layer, put.hashes[0]);
    std::vector<TilePlan> top(heads);
    Decide(c.priced, kFreePrice, /*fresh=*/true, options.policy.price, top);
    for (size_t h = 0; h < heads; ++h) {
      c.cells[h].k_kind = top[h].k_kind;
      c.cells[h].v_kind = top[h].v_kind;
    }
    const int64_t tiles = TileBytes(c.priced);
    const auto whole =
        static_cast<int64_t>(EncodedBytes(id_of(layer, basis), top, 0, ctx.Find(basis)));
    tile_bytes += c.copies * tiles;
    other_bytes += c.copies * (whole - tiles + static_cast<int64_t>(heads * sizeof(record::Cell)));
    coming.push_back(std::move(c));
  }
  const int64_t budget_of_tiles = static_cast<int64_t>(Target()) - FixedBytes() - other_bytes;
  if (book.bytes() + tile_bytes <= budget_of_tiles) return;
  for (const Coming& c : coming) book.Expect(tenant, c.priced, c.copies);
  book.Solve(budget_of_tiles);
  for (const Coming& c : coming) book.Expect(tenant, c.priced, -c.copies);
}

}  // namespace dyna
