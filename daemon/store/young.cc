// What a put has just written is young: its importance is not known before the first report of its
// chain, and bits that it loses until then never come back. So it is coded as if it weighed
// `young_weight` times as much, and stands in the nursery, beside the budget and outside the price
// book, until a report covers it or `young_for` is over. It then enters the price at the weight
// that it has, with all the rest. A full nursery lets its oldest go while the budget has room for
// them; a put that finds none is coded at today's price at once.
#include <cmath>

#include "daemon/policy/log2_byte.h"
#include "daemon/store/store_impl.h"

namespace dyna {
namespace {

constexpr size_t kMaxYoung = 1 << 20;  // blocks, those that grew up early among them

}  // namespace

int16_t Store::Impl::YoungEighths() const {
  return static_cast<int16_t>(
      std::lround(kEighths * std::log2(std::max(options.young_weight, 1.0))));
}

uint64_t Store::Impl::NurseryRoom() const {
  if (options.young_for.count() <= 0) return 0;
  return static_cast<uint64_t>(static_cast<double>(arena.capacity()) * options.young_share);
}

bool Store::Impl::NurseryTakes(QualityClass quality, uint64_t bytes) {
  const uint64_t room = NurseryRoom();
  // A class of one rung has nothing that a report could save.
  if (quality >= QualityClass::kHigh || bytes > room) return false;
  while (*nursery + bytes > room && !young.empty() && Charged() <= Limit()) EndYoung();
  return *nursery + bytes <= room;
}

void Store::Impl::StartYoung(const BlockRef& block) {
  if (std::none_of(block->segments.begin(), block->segments.end(),
                   [](const Segment& s) { return bool{s.nursery}; }))
    return;
  block->young_until = clock.Now() + options.young_for;
  young.push_back({block->young_until, block});
  if (young.size() > kMaxYoung) EndYoung();
}

void Store::Impl::GrowUp(Block& block, Segment& segment) {
  if (!segment.nursery) return;
  segment.nursery.Release();
  Book(block, segment);
  if (Charged() > Limit()) NeedTick();
}

void Store::Impl::YoungSlice() {
  while (!young.empty() && young.front().until <= clock.Now()) EndYoung();
}

void Store::Impl::EndYoung() {
  const Young first = std::move(young.front());
  young.pop_front();
  const BlockRef block = first.block.lock();
  if (!block || block->young_until != first.until) return;  // gone, or young again
  for (Segment& s : block->segments) GrowUp(*block, s);
}

}  // namespace dyna
