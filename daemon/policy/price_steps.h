// The steps down that the tiles of a segment can still take, with their thresholds: what the book
// counts and what Decide takes, in one place.
//
// Thread rule: pure functions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "daemon/policy/ladder_set.h"
#include "daemon/policy/log2_byte.h"
#include "daemon/policy/price.h"

namespace dyna {

// A unit of a segment: K, V or both of one kv head.
struct PricedUnit {
  const CellLadder* cell = nullptr;
  const Ladder* ladder = nullptr;
  uint8_t k_kind = 0, v_kind = 0;  // today's; only what the unit covers counts
  int weight = 0;                  // eighths of log2 (h omega w energy)
  int dither = 0;                  // 0..63, by hash
  int floor = 0;                   // the last rung it may take
};

// The step from `rung` to the next is taken when the price is above this. Convex ladders and one
// dither a unit keep it from falling along a ladder.
inline Price ThresholdOf(const PricedUnit& unit, int rung, int bonus) {
  const int eighths =
      unit.weight + unit.ladder->rungs()[static_cast<size_t>(rung)].log2_slope + bonus;
  return std::clamp(eighths, -kPriceReach, kPriceReach - 1) * kPriceSub + unit.dither;
}

// Kinds and bytes of the unit on `rung`: never more of K or of V than today.
struct UnitKinds {
  uint8_t k_kind, v_kind;
  int64_t bytes;
};
inline UnitKinds KindsAt(const PricedUnit& unit, int rung) {
  const CellLadder& cell = *unit.cell;
  UnitKinds kinds{unit.k_kind, unit.v_kind, 0};
  if (rung >= 0) {
    const Rung& to = unit.ladder->rungs()[static_cast<size_t>(rung)];
    if (cell.k_bytes[to.k_kind & 31] < cell.k_bytes[kinds.k_kind & 31]) kinds.k_kind = to.k_kind;
    if (cell.v_bytes[to.v_kind & 31] < cell.v_bytes[kinds.v_kind & 31]) kinds.v_kind = to.v_kind;
  }
  if (unit.ladder->unit() != UnitKind::kV) kinds.bytes += cell.k_bytes[kinds.k_kind & 31];
  if (unit.ladder->unit() != UnitKind::kK) kinds.bytes += cell.v_bytes[kinds.v_kind & 31];
  return kinds;
}

// Calls visit(unit, index) for the one or two units of every head of the segment.
template <typename Visit>
void ForEachUnit(const PricedSegment& segment, Visit&& visit) {
  const uint64_t salt = MixHash(segment.block, static_cast<uint64_t>(segment.layer));
  for (size_t i = 0; i < segment.cells.size(); ++i) {
    const record::Cell& today = segment.cells[i];
    const int head = segment.head_begin + static_cast<int>(i);
    const CellLadder& cell = segment.ladders->cell(head);
    const uint64_t hash = salt * (2 * static_cast<uint64_t>(head) + 1);
    PricedUnit unit;
    unit.cell = &cell;
    unit.ladder = &cell.k;
    unit.k_kind = today.k_kind;
    unit.v_kind = today.v_kind;
    unit.dither = static_cast<int>(hash >> 58);
    unit.floor = cell.k.floor(segment.observed);
    // A pair's errors are those of a model: h and w move it, energies do not (policy 4).
    unit.weight = segment.log2_h + cell.log2_omega_k + today.log2_w_k;
    if (!cell.pair) unit.weight += today.log2_energy_k;
    visit(unit, i);
    if (cell.pair) continue;
    unit.ladder = &cell.v;
    unit.dither = static_cast<int>((hash >> 40) & (kPriceSub - 1));
    unit.floor = cell.v.floor(segment.observed);
    unit.weight = segment.log2_h + cell.log2_omega_v + today.log2_w_v + today.log2_energy_v;
    visit(unit, i);
  }
}

// The steps of a unit that stands between rungs, or so far out that thresholds are cut off: calls
// step(threshold, freed bytes) for each, and returns today's bytes.
template <typename Step>
[[gnu::noinline]] int64_t ForEachOddStep(const PricedUnit& unit, bool frozen, int bonus,
                                         Step&& step) {
  const int64_t today = KindsAt(unit, -1).bytes;
  if (frozen) return today;
  int64_t at = today;
  int rung = unit.cell->RungOf(*unit.ladder, unit.k_kind, unit.v_kind);
  if (rung < 0) {  // above the top (raw): the first step costs nothing
    rung = 0;
    const int64_t next = KindsAt(unit, 0).bytes;
    if (next != at) step(kFreePrice, at - next);
    at = next;
  }
  for (; rung < unit.floor; ++rung) {
    const int64_t next = KindsAt(unit, rung + 1).bytes;
    if (next != at) step(ThresholdOf(unit, rung, bonus), at - next);
    at = next;
  }
  return today;
}

// All steps that the tiles of a segment can still take. Nearly every unit stands on a rung of its
// ladder: run(base, rungs) says its steps at once, each threshold is base + the rung's slope in
// parts of an eighth. The others' come by step(threshold, freed bytes). Returns today's bytes.
template <typename Run, typename Step>
int64_t ForEachStep(const PricedSegment& segment, int bonus, Run&& run, Step&& step) {
  int64_t bytes = 0;
  ForEachUnit(
      segment, [&](const PricedUnit& unit, size_t) __attribute__((always_inline)) {
        const auto rungs = unit.ladder->rungs();
        const int own = unit.ladder->Find(unit.k_kind, unit.v_kind);
        const int weight = unit.weight + bonus;
        // Slopes do not fall: the first and the last threshold are the outermost.
        if (own < 0 ||
            (own < unit.floor &&
             (weight + rungs[static_cast<size_t>(own)].log2_slope < -kPriceReach ||
              weight + rungs[static_cast<size_t>(unit.floor) - 1].log2_slope >= kPriceReach))) {
          bytes += ForEachOddStep(unit, segment.frozen, bonus, step);
          return;
        }
        bytes += rungs[static_cast<size_t>(own)].bytes;
        if (!segment.frozen && own < unit.floor)
          run(weight * kPriceSub + unit.dither, rungs.data() + own, rungs.data() + unit.floor);
      });
  return bytes;
}

}  // namespace dyna
