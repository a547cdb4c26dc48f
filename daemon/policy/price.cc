#include "daemon/policy/price.h"

#include "daemon/policy/price_steps.h"

namespace dyna {

void Decide(const PricedSegment& segment, Price price, bool fresh, const PriceOptions& options,
            std::span<TilePlan> plan) {
  for (size_t i = 0; i < segment.cells.size(); ++i) {
    plan[i].k_kind = segment.cells[i].k_kind;
    plan[i].v_kind = segment.cells[i].v_kind;
  }
  if (segment.frozen && !fresh) return;
  ForEachUnit(segment, [&](PricedUnit unit, size_t i) {
    const bool of_k = unit.ladder->unit() != UnitKind::kV;
    const bool of_v = unit.ladder->unit() != UnitKind::kK;
    if (fresh) {
      const Rung& top = unit.ladder->rungs()[0];
      if (of_k) unit.k_kind = top.k_kind;
      if (of_v) unit.v_kind = top.v_kind;
    }
    const int start = unit.cell->RungOf(*unit.ladder, unit.k_kind, unit.v_kind);
    int rung = start < 0 ? 0 : start;
    while (rung < unit.floor && ThresholdOf(unit, rung, fresh ? 0 : options.resident_bonus) < price)
      ++rung;
    const UnitKinds kinds = rung == start ? KindsAt(unit, -1) : KindsAt(unit, rung);
    if (of_k) plan[i].k_kind = kinds.k_kind;
    if (of_v) plan[i].v_kind = kinds.v_kind;
  });
}

int64_t TileBytes(const PricedSegment& segment) {
  int64_t bytes = 0;
  ForEachUnit(segment, [&](const PricedUnit& unit, size_t) { bytes += KindsAt(unit, -1).bytes; });
  return bytes;
}

}  // namespace dyna
