// One price for all tiles of a tier (policy 4), kept as tiles come, change and go.
//
// The histogram holds, by threshold, the bytes that the steps still to be taken would free; a
// solve walks it until enough is freed. So what a solve promises is exact for any statistics.
//
// The book remembers no segment: Remove gets the very values that Add got. A sweep over all
// segments can therefore stop and go on anywhere, and a full rebuild is a second book, filled in
// slices and moved over the first.
//
// Thread rule: belongs to the loop.
#pragma once

#include <cstdint>
#include <map>

#include "daemon/policy/price_histogram.h"

namespace dyna {

class PriceBook {
 public:
  explicit PriceBook(const PriceOptions& options = {}) : options_(options) {}

  void Add(uint64_t tenant, const PricedSegment& segment) { Apply(tenant, segment, +1); }
  void Remove(uint64_t tenant, const PricedSegment& segment) { Apply(tenant, segment, -1); }
  // What is to come: `copies` of a segment count until as many are taken back (negative).
  void Expect(uint64_t tenant, const PricedSegment& segment, int copies) {
    Apply(tenant, segment, copies);
  }
  void SetQuota(uint64_t tenant, int64_t tile_bytes);  // 0: none

  // Sets the prices so that what is left once every step below them is taken fits `budget`: that
  // of the tiles alone, what else is live is the caller's to take off (live bytes - bytes()).
  // Hysteresis: prices rise at once, a little further than needed, and fall slowly, only when more
  // than a band of the budget is free. False: even the floors do not fit; what is over then is the
  // caller's to move away or to refuse.
  bool Solve(int64_t budget);

  // What a tenant's tiles are decided at: the tier's price, or its own higher one over its quota.
  Price price(uint64_t tenant) const;
  Price price() const { return price_; }
  void set_price(Price price) { price_ = price; }  // after a restart

  int64_t bytes() const { return bytes_; }  // of all tiles, as they are
  int64_t bytes(uint64_t tenant) const;
  int64_t projected() const { return projected(price_); }  // after every step below today's prices
  int64_t projected(Price price) const { return bytes_ - FreedAt(price); }  // the same at `price`
  int64_t floor_bytes() const;  // after every step there is
  const PriceOptions& options() const { return options_; }

 private:
  struct Tenant {
    PriceHistogram steps;
    int64_t bytes = 0, quota = 0, segments = 0;
    Price own = kFreePrice;
  };
  void Apply(uint64_t tenant, const PricedSegment& segment, int sign);
  int64_t FreedAt(Price price) const;
  Price Fall(Price price, int64_t left, int64_t budget) const;

  PriceOptions options_;
  int64_t bytes_ = 0;
  Price price_ = kFreePrice;
  std::map<uint64_t, Tenant> tenants_;  // those with tiles or a quota
};

}  // namespace dyna
