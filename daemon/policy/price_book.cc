#include "daemon/policy/price_book.h"

#include <algorithm>

#include "daemon/policy/price_steps.h"

namespace dyna {

void PriceBook::Apply(uint64_t tenant, const PricedSegment& segment, int sign) {
  Tenant& of = tenants_[tenant];
  PriceHistogram& steps = of.steps;
  const int64_t bytes =
      sign * ForEachStep(
                 segment, options_.resident_bonus,
                 [&](Price base, const Rung* begin, const Rung* end)
                     __attribute__((always_inline)) { steps.AddRun(base, begin, end, sign); },
                 [&](Price threshold, int64_t freed) { steps.Add(threshold, sign * freed); });
  bytes_ += bytes;
  of.bytes += bytes;
  of.segments += sign;
  if (of.segments == 0 && of.quota == 0) tenants_.erase(tenant);
}

void PriceBook::SetQuota(uint64_t tenant, int64_t tile_bytes) {
  Tenant& of = tenants_[tenant];
  of.quota = std::max<int64_t>(tile_bytes, 0);
  if (of.quota == 0) of.own = kFreePrice;
  if (of.segments == 0 && of.quota == 0) tenants_.erase(tenant);
}

// Bytes freed over all tenants at the tier's `price`; those over their quota have a higher one.
int64_t PriceBook::FreedAt(Price price) const {
  int64_t freed = 0;
  for (const auto& [id, tenant] : tenants_)
    freed += tenant.steps.Below(std::max(price, tenant.own));
  return freed;
}

int64_t PriceBook::floor_bytes() const { return bytes_ - FreedAt(kDearestPrice); }

// Where hysteresis lets the price go when `left` bytes would be held at `price` of `budget`.
Price PriceBook::Fall(Price price, int64_t left, int64_t budget) const {
  if (left <= 0) return kFreePrice;
  const double room = static_cast<double>(budget - left) / static_cast<double>(budget);
  if (room <= options_.band) return price;
  const int eighths = room > 4 * options_.band ? kEighths : 1;
  return std::max(kFreePrice, price - eighths * kPriceSub);
}

bool PriceBook::Solve(int64_t budget) {
  const auto target = [this](int64_t bytes) {
    return bytes - static_cast<int64_t>(options_.slack * static_cast<double>(bytes));
  };
  for (auto& [id, tenant] : tenants_) {
    if (tenant.quota == 0) continue;
    const int64_t left = tenant.bytes - tenant.steps.Below(tenant.own);
    tenant.own = left > tenant.quota ? tenant.steps.Reach(tenant.bytes - target(tenant.quota))
                                     : Fall(tenant.own, left, tenant.quota);
  }
  const int64_t left = projected();
  if (left <= budget) {
    price_ = Fall(price_, left, std::max<int64_t>(budget, 1));
    return true;
  }
  // Where the floors fit, but not with the slack: no dearer than the last step there is.
  const int64_t need = std::min(bytes_ - target(budget), FreedAt(kDearestPrice));
  Price low = price_, high = kDearestPrice;  // not enough at `low`, all there is at `high`
  while (high - low > 1) {
    const Price middle = low + (high - low) / 2;
    (FreedAt(middle) >= need ? high : low) = middle;
  }
  price_ = high;
  return projected() <= budget;
}

Price PriceBook::price(uint64_t tenant) const {
  const auto it = tenants_.find(tenant);
  return it == tenants_.end() ? price_ : std::max(price_, it->second.own);
}

int64_t PriceBook::bytes(uint64_t tenant) const {
  const auto it = tenants_.find(tenant);
  return it == tenants_.end() ? 0 : it->second.bytes;
}

}  // namespace dyna
