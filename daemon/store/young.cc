// What a put has just written is young: its importance is not known before the first report of its
// chain, and bits that it loses until then never come back. So it counts `young_weight` times its
// weight, at the put and in the price book, until a report covers it or `young_for` is over.
// Nothing ticks for it: it ends at the first tick after. Who never reports gains nothing for
// longer.
#include <cmath>

#include "daemon/policy/log2_byte.h"
#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

constexpr size_t kMaxYoung = 1 << 20;  // blocks; beyond it the oldest is grown up at once

}  // namespace

int16_t Store::Impl::YoungEighths() const {
  if (options.young_for.count() <= 0) return 0;
  return static_cast<int16_t>(
      std::lround(kEighths * std::log2(std::max(options.young_weight, 1.0))));
}

void Store::Impl::StartYoung(Block& block) {
  if (YoungEighths() == 0 || !Priced(block)) return;
  block.young_until = clock.Now() + options.young_for;
  young.push_back({block.young_until, blocks.Find(block.key)});
  if (young.size() > kMaxYoung) EndYoung();
}

void Store::Impl::YoungSlice() {
  while (!young.empty() && young.front().until <= clock.Now()) EndYoung();
}

// The first of the list grows up; what a report has covered meanwhile is booked as that already.
void Store::Impl::EndYoung() {
  const Young first = std::move(young.front());
  young.pop_front();
  BlockRef block = first.block.lock();
  if (!block || block->young_until != first.until) return;  // gone, or young again
  block->young_until = {};
  const bool all_observed =
      std::all_of(block->segments.begin(), block->segments.end(),
                  [](const Segment& s) { return !s.booked || s.booked_observed; });
  if (all_observed || block->queued) return;
  block->queued = true;
  to_book.push_back(std::move(block));
}

}  // namespace dyna
