// The price of what is to come: a put is coded at once at the bits that it may keep.
#include <algorithm>

#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

// Kinds of open writers that are foreseen beside the put's own. Each costs the loop a few
// microseconds a layer; whoever splits blocks in more ways is foreseen less.
constexpr size_t kMostKinds = 16;

}  // namespace

// What is to come, layer by layer, as if it were of one block at the top of its ladders.
class Store::Impl::Foresight {
 public:
  explicit Foresight(Impl& store) : s_(store) {}

  // `copies`: segments to come, [layer - shard.layer_begin]. False: a layer that the policy cannot
  // serve; the put says which.
  bool Add(StoreContext& ctx, const Shard& shard, QualityClass quality, const BlockHash& hash,
           std::span<const uint32_t> copies) {
    for (int layer = shard.layer_begin; layer < shard.layer_end; ++layer) {
      const uint32_t n = copies[static_cast<size_t>(layer - shard.layer_begin)];
      if (n != 0 && !AddLayer(ctx, shard, layer, quality, hash, static_cast<int>(n))) return false;
    }
    return true;
  }

  // The price at which it fits beside all that is held.
  void Solve() {
    const int64_t tiles = static_cast<int64_t>(s_.Target()) - s_.FixedBytes() - other_bytes_;
    if (s_.book.bytes() + tile_bytes_ <= tiles) return;
    for (const Layer& l : layers_) s_.book.Expect(l.tenant, l.priced, l.copies);
    s_.book.Solve(tiles);
    for (const Layer& l : layers_) s_.book.Expect(l.tenant, l.priced, -l.copies);
  }

 private:
  struct Layer {
    std::shared_ptr<const LadderSet> ladders;
    std::vector<record::Cell> cells;
    PricedSegment priced;  // views the two above
    TenantId tenant = 0;
    int copies = 0;
  };

  bool AddLayer(StoreContext& ctx, const Shard& shard, int layer, QualityClass quality,
                const BlockHash& hash, int copies) {
    const BasisName basis = ctx.CurrentBasis(layer);
    Layer l;
    l.ladders = ctx.Ladders(*s_.policy, layer, basis, quality);
    if (!l.ladders) return false;
    const auto heads = static_cast<size_t>(shard.head_end - shard.head_begin);
    l.tenant = ctx.tenant;
    l.copies = copies;
    l.cells.resize(heads);
    l.priced = Fresh(*l.ladders, l.cells, shard, layer, hash);
    std::vector<TilePlan> top(heads);
    Decide(l.priced, kFreePrice, /*fresh=*/true, s_.options.policy.price, top);
    for (size_t h = 0; h < heads; ++h) {
      l.cells[h].k_kind = top[h].k_kind;
      l.cells[h].v_kind = top[h].v_kind;
    }
    const int64_t tiles = TileBytes(l.priced);
    const auto whole = static_cast<int64_t>(
        EncodedBytes(IdOf(ctx, shard, layer, hash, 0, basis), top, 0, ctx.Find(basis)));
    tile_bytes_ += copies * tiles;
    other_bytes_ += copies * (whole - tiles + static_cast<int64_t>(heads * sizeof(record::Cell)));
    layers_.push_back(std::move(l));
    return true;
  }

  Impl& s_;
  std::vector<Layer> layers_;
  int64_t tile_bytes_ = 0, other_bytes_ = 0;
};

// Blocks that the put is about to begin.
uint32_t Store::Impl::ToBegin(TenantId tenant, const wire::Put& put) const {
  const auto begun = [&](const auto& w) { return w->shard == put.shard; };
  return static_cast<uint32_t>(
      std::count_if(put.hashes.begin(), put.hashes.end(), [&](const BlockHash& hash) {
        const BlockRef block = blocks.Find({tenant, put.context, hash});
        return !block || (!block->visible() &&
                          std::none_of(block->writers.begin(), block->writers.end(), begun));
      }));
}

// Sets the price at which all that is held, the blocks of this put, whole, and the rest of those
// that any client has begun fit. At a lower one their first layers would fill the budget at many
// bits: complete blocks would be pressed to their floors for the rest, bits that nobody gets back,
// and where none is complete nothing could shrink, and nobody get on.
void Store::Impl::Anticipate(StoreContext& ctx, TenantId tenant, const wire::Put& put) {
  // While it fits uncompressed there is nothing to foresee: the common case, and cheap.
  uint64_t raw = 0;
  for (int layer = put.shard.layer_begin; layer < put.shard.layer_end; ++layer)
    raw += RawSegmentBytes(IdOf(ctx, put.shard, layer, put.hashes[0], 0, 0));
  const uint64_t most = raw * (put.hashes.size() + open_work.writers());
  if (Charged() + 2 * most <= Target()) return;
  // What the nursery takes is priced when it grows up.
  if (NurseryTakes(put.quality, most)) return;

  // A block is foreseen whole when it is begun; its next layers change nothing.
  const uint32_t fresh = ToBegin(tenant, put);
  if (fresh == 0 && open_work.begun() == foreseen_begun && book.price() >= foreseen_price) return;

  Foresight foresight(*this);
  const OpenWork::Kind* own = open_work.Find(ctx, put.shard, put.quality);
  std::vector<uint32_t> copies(static_cast<size_t>(put.shard.layer_end - put.shard.layer_begin));
  if (own != nullptr) copies = own->left;
  for (uint32_t& n : copies) n += fresh;
  bool served = foresight.Add(ctx, put.shard, put.quality, put.hashes[0], copies);
  size_t kinds = 0;
  open_work.ForEach([&](const OpenWork::Kind& kind) {
    if (&kind == own || !served || kinds++ >= kMostKinds) return;
    served = foresight.Add(*kind.context, kind.shard, kind.quality, kind.hash, kind.left);
  });
  if (!served) return;
  foresight.Solve();
  foreseen_begun = open_work.begun() + fresh;
  foreseen_price = book.price();
}

}  // namespace dyna
