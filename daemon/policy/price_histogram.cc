#include "daemon/policy/price_histogram.h"

namespace dyna {
namespace {

size_t PageOf(Price threshold) { return static_cast<size_t>((threshold - kFreePrice) / kPriceSub); }
size_t SlotOf(Price threshold) { return static_cast<size_t>((threshold - kFreePrice) % kPriceSub); }

}  // namespace

void PriceHistogram::Add(Price threshold, int64_t bytes) {
  const size_t page = PageOf(threshold);
  coarse_[page] += bytes;
  all_ += bytes;
  if (!fine_[page]) fine_[page] = std::make_unique<Page>();
  (*fine_[page])[SlotOf(threshold)] += bytes;
}

int64_t PriceHistogram::Below(Price price) const {
  if (price >= kDearestPrice) return all_;
  if (price <= kFreePrice) return 0;
  const size_t page = PageOf(price);
  int64_t sum = 0;
  for (size_t i = 0; i < page; ++i) sum += coarse_[i];
  if (fine_[page])
    for (size_t slot = 0; slot < SlotOf(price); ++slot) sum += (*fine_[page])[slot];
  return sum;
}

Price PriceHistogram::Reach(int64_t bytes) const {
  if (bytes <= 0) return kFreePrice;
  if (bytes > all_) return kDearestPrice;
  size_t page = 0;
  int64_t sum = 0;
  while (page + 1 < kPages && sum + coarse_[page] < bytes) sum += coarse_[page++];
  if (!fine_[page]) return kDearestPrice;
  for (size_t slot = 0; slot < size_t{kPriceSub}; ++slot) {
    sum += (*fine_[page])[slot];
    if (sum >= bytes) return kFreePrice + static_cast<Price>(page * kPriceSub + slot) + 1;
  }
  return kDearestPrice;
}

}  // namespace dyna
