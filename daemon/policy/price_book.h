// The price (policy 4): one lambda for all tiles of a tier, found from one histogram that is kept
// as tiles come, change and go.
//
// Every step down of every unit has a threshold, log2 of (h omega w energy x cost per byte): the
// step is taken when the price is above it. The histogram holds, by threshold, the bytes that the
// steps still to be taken would free; a solve walks it from the bottom until enough is freed. All
// is integers: eighths of an octave, each cut in 64 by a hash of the unit, which is how the
// boundary bin is taken partly. So what a solve promises is exact for any statistics.
//
// The book remembers no unit: Remove gets the very values that Add got. A sweep over all units can
// therefore stop and go on anywhere; a full rebuild is a second book that is swapped in.
//
// Thread rule: belongs to the loop.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "daemon/policy/ladder_set.h"
#include "daemon/policy/options.h"
#include "kernels/segment.h"
#include "schemas/record.h"

namespace dyna {

// log2 of cost per byte in 1/512 octaves. 0: the price at which an average tile of an average
// context leaves 4 bits of K for 2.
using Price = int32_t;
inline constexpr int kPriceSub = 64;                     // parts of an eighth, by hash
inline constexpr int kPriceReach = 40 * kEighths;        // thresholds lie within +-40 octaves
inline constexpr Price kFreePrice = -kPriceReach * kPriceSub;      // nothing is demoted
inline constexpr Price kDearestPrice = kPriceReach * kPriceSub;    // everything is at its floor

// One segment's tiles, as the price sees them.
struct PricedSegment {
  const LadderSet* ladders = nullptr;
  std::span<const record::Cell> cells;  // of heads [head_begin, head_begin + size)
  int head_begin = 0;
  int layer = 0;
  uint64_t block = 0;        // of the block's hash
  int16_t log2_h = 0;        // reuse, eighths
  bool observed = false;     // a report has covered the block's layer
  bool frozen = false;       // leased or mapped: its bytes count, its steps do not
};

// Kinds at `price`: never more bits than the cells have. `fresh`: full precision is at hand (a
// put): starts from the top of the ladder whatever `cells` say, without the residents' bonus.
void Decide(const PricedSegment& segment, Price price, bool fresh, const PriceOptions& options,
            std::span<TilePlan> plan);
// Bytes of the tiles alone (no header, directory, pins or padding) at the cells' own kinds.
int64_t TileBytes(const PricedSegment& segment);

// Bytes that steps would free, by threshold.
class PriceHistogram {
 public:
  void Add(Price threshold, int64_t bytes);
  int64_t Below(Price price) const;  // freed at this price
  // The least price that frees `bytes`, not below `from`; kDearestPrice when nothing does.
  Price Reach(int64_t bytes, Price from = kFreePrice) const;
  int64_t all() const { return all_; }

 private:
  friend class PriceBook;
  using Page = std::array<int64_t, kPriceSub>;
  std::array<int64_t, 2 * kPriceReach> coarse_{};
  std::array<std::unique_ptr<Page>, 2 * kPriceReach> fine_;
  int64_t all_ = 0;
};

class PriceBook {
 public:
  explicit PriceBook(const PriceOptions& options = {}) : options_(options) {}

  void Add(uint64_t tenant, const PricedSegment& segment) { Apply(tenant, segment, +1); }
  void Remove(uint64_t tenant, const PricedSegment& segment) { Apply(tenant, segment, -1); }
  void SetQuota(uint64_t tenant, int64_t tile_bytes);  // 0: none

  // Sets the prices so that what is left after every step below them fits `tile_bytes`: the budget
  // less what is not tiles (the caller knows: live bytes - bytes()). False: even the floors do not
  // fit; the price is then the dearest, and what remains is the caller's to move or refuse.
  bool Solve(int64_t tile_bytes);
  // What a tenant's tiles are decided at: the tier's price, or its own higher one over its quota.
  Price price(uint64_t tenant) const;
  Price price() const { return price_; }
  void set_price(Price price) { price_ = price; }  // after a restart

  int64_t bytes() const { return bytes_; }         // of all tiles, as they are
  int64_t bytes(uint64_t tenant) const;
  int64_t projected() const;                       // after every step below today's prices
  int64_t floor_bytes() const { return bytes_ - all_.all(); }
  const PriceOptions& options() const { return options_; }

 private:
  struct Tenant {
    PriceHistogram steps;
    int64_t bytes = 0, quota = 0, units = 0;
    Price own = kFreePrice;
  };
  void Apply(uint64_t tenant, const PricedSegment& segment, int sign);
  int64_t FreedAt(Price price) const;

  PriceOptions options_;
  PriceHistogram all_;
  int64_t bytes_ = 0;
  Price price_ = kFreePrice;
  std::map<uint64_t, Tenant> tenants_;  // those with tiles or a quota
};

}  // namespace dyna
