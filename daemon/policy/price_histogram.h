// Bytes that steps would free, by threshold. A step costs one addition: sums over pages of 64 slots
// are brought up to date by the next question, over what was touched since the last one.
//
// Thread rule: belongs to the loop; questions change what is kept for the next.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

#include "daemon/policy/price.h"

namespace dyna {

class PriceHistogram {
 public:
  PriceHistogram();
  // REQUIRES kFreePrice <= threshold < kDearestPrice.
  void Add(Price threshold, int64_t bytes) {
    const Price slot = threshold - kFreePrice;
    slots_[static_cast<size_t>(slot)] += bytes;
    low_ = std::min(low_, slot);
    high_ = std::max(high_, slot);
  }
  // `times` what each step frees, at base + its slope. REQUIRES begin < end, slopes that do not
  // fall, and thresholds as above.
  void AddRun(Price base, const Rung* begin, const Rung* end, int64_t times) {
    const Price slot = base - kFreePrice;
    low_ = std::min(low_, slot + begin->log2_slope * kPriceSub);
    high_ = std::max(high_, slot + end[-1].log2_slope * kPriceSub);
    int64_t* const slots = slots_.get() + slot;
    for (const Rung* step = begin; step != end; ++step)
      slots[step->log2_slope * kPriceSub] += times * step->freed;
  }
  int64_t Below(Price price) const;  // freed at this price
  // The least price that frees `bytes`; kDearestPrice when all of it does not.
  Price Reach(int64_t bytes) const;
  int64_t all() const { return Below(kDearestPrice); }

 private:
  static constexpr size_t kPages = 2 * kPriceReach;
  struct Free {
    void operator()(int64_t* p) const { std::free(p); }
  };
  void Sum() const;

  // [kPages][kPriceSub]. From calloc: what no threshold ever touched takes no memory.
  std::unique_ptr<int64_t[], Free> slots_;
  mutable std::array<int64_t, kPages> pages_{};      // sum of each
  mutable std::array<int64_t, kPages + 1> below_{};  // of those before it
  mutable Price low_, high_;                         // slots that `pages_` does not know yet
};

}  // namespace dyna
