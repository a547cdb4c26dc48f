// What a price is, and what it decides for one segment (policy 4).
//
// Every step down of every unit has a threshold, log2 of (h omega w energy x cost per byte): the
// step is taken when the price is above it. All is integers: eighths of an octave, each cut in 64
// by a hash of the unit, which is how a boundary bin is taken partly, always by the same tiles.
//
// Thread rule: pure functions.
#pragma once

#include <cstdint>
#include <span>

#include "daemon/policy/ladder_set.h"
#include "daemon/policy/log2_byte.h"
#include "daemon/policy/options.h"
#include "kernels/segment.h"
#include "schemas/record.h"

namespace dyna {

// log2 of cost per byte in 1/512 octaves. 0: the price at which an average tile of an average
// context leaves 4 bits of K for 2.
using Price = int32_t;
inline constexpr int kPriceSub = 64;                           // parts of an eighth
inline constexpr int kPriceReach = 40 * kEighths;              // thresholds lie within +-40 octaves
inline constexpr Price kFreePrice = -kPriceReach * kPriceSub;  // nothing is demoted
inline constexpr Price kDearestPrice = kPriceReach * kPriceSub;  // everything is at its floor
constexpr double Log2Price(Price price) { return price / double{kEighths * kPriceSub}; }

// One segment's tiles, as the price sees them.
struct PricedSegment {
  const LadderSet* ladders = nullptr;
  std::span<const record::Cell> cells;  // of heads [head_begin, head_begin + size)
  int head_begin = 0;
  int layer = 0;
  uint64_t block = 0;     // of the block's hash
  int16_t log2_h = 0;     // reuse, and what a young tile has on top; eighths
  bool observed = false;  // a report has covered the block's layer
  bool frozen = false;    // leased or mapped: its bytes count, its steps do not
};

// Kinds at `price`, `plan` one a cell: never more bits than the cells have. `fresh`: full
// precision is at hand (a put), the ladder is entered at its top whatever kinds `cells` say, and
// without the residents' bonus. Live masks are left alone.
void Decide(const PricedSegment& segment, Price price, bool fresh, const PriceOptions& options,
            std::span<TilePlan> plan);
// Bytes of the tiles alone (no header, directory, pins or padding) at the cells' own kinds.
int64_t TileBytes(const PricedSegment& segment);

}  // namespace dyna
