#include "daemon/policy/ladder_set.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "daemon/policy/log2_byte.h"
#include "kernels/segment.h"

namespace dyna {
namespace {

constexpr double kLeastStep = 1e-12;  // of cost: a step that costs nothing still has a logarithm

int16_t Log2Slope(double cost, double bytes) {
  const double slope = std::max(cost, kLeastStep) / bytes;
  return static_cast<int16_t>(std::lround(kEighths * std::log2(slope)));
}

double SlopeBytes(const Candidate& c) { return c.slope_bytes > 0 ? c.slope_bytes : c.bytes; }

double SlopeOf(const Candidate& from, const Candidate& to) {
  return std::max(to.cost - from.cost, kLeastStep) / (SlopeBytes(from) - SlopeBytes(to));
}

}  // namespace

Ladder::Ladder(UnitKind unit, std::span<const Candidate> candidates) : unit_(unit) {
  assert(!candidates.empty() && candidates.size() <= size_t{kMaxRungs});
  std::vector<Candidate> sorted(candidates.begin(), candidates.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const Candidate& a, const Candidate& b) {
    return a.bytes != b.bytes ? a.bytes > b.bytes : a.cost < b.cost;
  });
  // Monotone chain from the top; the first, the top of the ladder, is never dropped.
  std::vector<Candidate> hull;
  for (const Candidate& c : sorted) {
    if (!hull.empty() && SlopeBytes(c) >= SlopeBytes(hull.back())) continue;
    while (hull.size() > 1 &&
           (c.cost <= hull.back().cost ||
            SlopeOf(hull[hull.size() - 2], hull.back()) >= SlopeOf(hull.back(), c)))
      hull.pop_back();
    hull.push_back(c);
  }
  count_ = static_cast<uint8_t>(hull.size());
  for (size_t i = 0; i < hull.size(); ++i) {
    rungs_[i] = {hull[i].k_kind, hull[i].v_kind, INT16_MAX, hull[i].bytes, 0};
    if (i + 1 < hull.size()) {
      rungs_[i].log2_slope =
          Log2Slope(hull[i + 1].cost - hull[i].cost, SlopeBytes(hull[i]) - SlopeBytes(hull[i + 1]));
      rungs_[i].freed = hull[i].bytes - hull[i + 1].bytes;
    }
    if (hull[i].unobserved_ok && unobserved_floor_ + 1u >= i)
      unobserved_floor_ = static_cast<uint8_t>(i);
  }
  first_.fill(count_);
  for (size_t i = hull.size(); i-- > 0;)
    first_[(unit == UnitKind::kV ? hull[i].v_kind : hull[i].k_kind) & 31] = static_cast<uint8_t>(i);
}

int CellLadder::RungOf(const Ladder& ladder, uint8_t k_kind, uint8_t v_kind) const {
  const bool of_k = ladder.unit() != UnitKind::kV, of_v = ladder.unit() != UnitKind::kK;
  int at = -1;
  for (const Rung& rung : ladder.rungs()) {
    if (of_k && k_bytes[rung.k_kind & 31] < k_bytes[k_kind & 31]) break;
    if (of_v && v_bytes[rung.v_kind & 31] < v_bytes[v_kind & 31]) break;
    ++at;
  }
  return at;
}

double PlainError(int bits) { return bits >= 16 ? 0 : WidthError(bits); }

// Of Gaussian rows with the quantiser's unbiased gains, simulated at d = 64 and 128.
double VError(int bits) {
  switch (bits) {
    case 0:
      return 1;
    case 1:
      return .466;
    case 2:
      return .096;
    case 4:
      return .0095;
    case 8:
      return 4e-5;
    default:
      return 0;  // raw
  }
}

uint8_t KKindFor(const Basis* basis, int head, double bits) {
  if (bits > 8) return kind::kRaw;
  if (basis != nullptr && basis->Covers(head) && basis->seen(head)) {
    for (int level = 0; level < basis->info().levels; ++level)
      if (basis->target(level) >= bits) return kind::Level(level);
    return kind::kPlain8;
  }
  return bits > 4 ? kind::kPlain8 : kind::kPlain4;
}

uint8_t VKindFor(double bits) {
  for (int width : {0, 1, 2, 4, 8})
    if (width >= bits) return kind::VBits(width);
  return kind::kRaw;
}

CellLadder CellBytes(const LayerModel& layer, int head) {
  CellLadder cell;
  const int d = layer.shape->head_dim;
  const bool covered = layer.basis && layer.basis->Covers(head);
  for (int k = 0; k < 32; ++k) {
    const auto kind = static_cast<uint8_t>(k);
    if (kind::IsLevel(kind) && !covered) continue;
    cell.k_bytes[static_cast<size_t>(k)] = static_cast<uint32_t>(
        KTileBytes(kind, d, layer.dtype, covered ? layer.basis.get() : nullptr, head).value_or(0));
  }
  for (int v = 0; v < 32; ++v)
    cell.v_bytes[static_cast<size_t>(v)] =
        static_cast<uint32_t>(VTileBytes(static_cast<uint8_t>(v), d, layer.dtype).value_or(0));
  return cell;
}

CellLadder OneRung(const LayerModel& layer, int head, uint8_t k_kind, uint8_t v_kind) {
  CellLadder cell = CellBytes(layer, head);
  const Candidate only{k_kind, v_kind, cell.k_bytes[k_kind] + cell.v_bytes[v_kind], 0, 0, true};
  cell.k = Ladder(UnitKind::kPair, {&only, 1});
  return cell;
}

}  // namespace dyna
