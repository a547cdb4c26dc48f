#include "daemon/policy/price_histogram.h"

#include <new>
#include <numeric>

namespace dyna {
namespace {

constexpr Price kSlots = kDearestPrice - kFreePrice;

}  // namespace

PriceHistogram::PriceHistogram()
    : slots_(static_cast<int64_t*>(std::calloc(static_cast<size_t>(kSlots), sizeof(int64_t)))),
      low_(kSlots),
      high_(-1) {
  if (!slots_) throw std::bad_alloc();
}

void PriceHistogram::Sum() const {
  if (high_ < low_) return;
  const auto begin = static_cast<size_t>(low_ / kPriceSub);
  const auto end = static_cast<size_t>(high_ / kPriceSub) + 1;
  for (size_t page = begin; page < end; ++page) {
    const int64_t* slot = slots_.get() + page * kPriceSub;
    pages_[page] = std::accumulate(slot, slot + kPriceSub, int64_t{0});
  }
  for (size_t page = begin; page < kPages; ++page) below_[page + 1] = below_[page] + pages_[page];
  low_ = kSlots;
  high_ = -1;
}

int64_t PriceHistogram::Below(Price price) const {
  Sum();
  const auto slot = static_cast<size_t>(std::clamp(price, kFreePrice, kDearestPrice) - kFreePrice);
  const size_t page = slot / kPriceSub;
  const int64_t* first = slots_.get() + page * kPriceSub;
  return std::accumulate(first, first + slot % kPriceSub, below_[page]);
}

Price PriceHistogram::Reach(int64_t bytes) const {
  if (bytes <= 0) return kFreePrice;
  Sum();
  if (bytes > below_[kPages]) return kDearestPrice;
  // The first page that, with all before it, frees enough.
  const auto found = std::lower_bound(below_.begin() + 1, below_.end(), bytes);
  const auto page = static_cast<size_t>(found - below_.begin()) - 1;
  int64_t sum = below_[page];
  for (size_t slot = 0; slot < size_t{kPriceSub}; ++slot) {
    sum += slots_[page * kPriceSub + slot];
    if (sum >= bytes) return kFreePrice + static_cast<Price>(page * kPriceSub + slot) + 1;
  }
  return kDearestPrice;
}

}  // namespace dyna
