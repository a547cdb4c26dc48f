// Bytes that steps would free, by threshold: pages of 64 slots, made when first touched.
//
// Thread rule: belongs to the loop.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "daemon/policy/price.h"

namespace dyna {

class PriceHistogram {
 public:
  // REQUIRES kFreePrice <= threshold < kDearestPrice.
  void Add(Price threshold, int64_t bytes);
  int64_t Below(Price price) const;  // freed at this price
  // The least price that frees `bytes`; kDearestPrice when all of it does not.
  Price Reach(int64_t bytes) const;
  int64_t all() const { return all_; }

 private:
  static constexpr size_t kPages = 2 * kPriceReach;
  using Page = std::array<int64_t, kPriceSub>;
  std::array<int64_t, kPages> coarse_{};
  std::array<std::unique_ptr<Page>, kPages> fine_;
  int64_t all_ = 0;
};

}  // namespace dyna
