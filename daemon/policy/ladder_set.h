// What kinds the tiles of a layer may take, best first, and what each step down costs (policy 4).
//
// A ladder keeps only the lower convex hull of (bytes, error), so that for a price every unit
// decides alone and the whole is optimal for its own byte total. With omega K and V of a head are
// units of their own; without it the unit is the pair and the errors are those of a whole model.
//
// Thread rule: const after it was made; share it by shared_ptr<const LadderSet>.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/basis.h"
#include "schemas/context.h"
#include "schemas/status.h"
#include "schemas/types.h"

namespace dyna {

enum class UnitKind : uint8_t { kPair, kK, kV };

// A kind that the hull may take. For kK `v_kind` is 0, for kV `k_kind` is 0.
struct Candidate {
  uint8_t k_kind = 0, v_kind = 0;
  uint32_t bytes = 0;
  double cost = 0;            // relative error, a mean already charged 4 x
  double slope_bytes = 0;     // what the slope divides by; 0: bytes
  bool unobserved_ok = true;  // a tile that no report covered may take it
};

struct Rung {
  uint8_t k_kind = 0, v_kind = 0;
  int16_t log2_slope = 0;  // eighths of log2 (cost per byte) of the step down to the next rung
  uint32_t bytes = 0;
  uint32_t freed = 0;  // by that step
};

class Ladder {
 public:
  static constexpr int kMaxRungs = 20;
  Ladder() = default;
  // REQUIRES 1..kMaxRungs candidates. Dominated ones and those above the hull are left out; the
  // best and the cheapest always stay.
  Ladder(UnitKind unit, std::span<const Candidate> candidates);

  UnitKind unit() const { return unit_; }
  std::span<const Rung> rungs() const { return {rungs_.data(), static_cast<size_t>(count_)}; }
  int floor(bool observed) const { return observed ? count_ - 1 : unobserved_floor_; }
  // The rung of these kinds, of which those count that the unit covers; -1: there is none.
  int Find(uint8_t k_kind, uint8_t v_kind) const {
    if (unit_ != UnitKind::kPair) {
      const uint8_t found = first_[(unit_ == UnitKind::kV ? v_kind : k_kind) & 31];
      return found < count_ ? found : -1;
    }
    for (int r = first_[k_kind & 31]; r < count_; ++r)
      if (rungs_[static_cast<size_t>(r)].k_kind == k_kind &&
          rungs_[static_cast<size_t>(r)].v_kind == v_kind)
        return r;
    return -1;
  }

 private:
  // What a walk over all tiles reads, close together.
  UnitKind unit_ = UnitKind::kPair;
  uint8_t count_ = 0, unobserved_floor_ = 0;
  std::array<uint8_t, 32> first_{};  // by kind, of V for V's: the first rung with it, or count_
  std::array<Rung, kMaxRungs> rungs_{};
};

// One (layer, kv head).
struct CellLadder {
  bool pair = true;
  int16_t log2_omega_k = 0, log2_omega_v = 0;  // eighths, with the context's weight
  Ladder k;                                    // the pair's when `pair`
  Ladder v;
  std::array<uint32_t, 32> k_bytes{}, v_bytes{};  // of every kind; 0 where it does not exist here

  // Where a tile of these kinds stands: the last rung that has no fewer bytes of K and of V.
  int RungOf(const Ladder& ladder, uint8_t k_kind, uint8_t v_kind) const;
};

// What a profile says of a layer, normalised (sensitivity.h); empty spans: no profile.
struct LayerOmega {
  std::span<const int16_t> log2_k, log2_v;  // [kv heads of the layer], eighths
};

// Everything a policy may look at to make the ladders of a layer.
struct LayerModel {
  const LayerShape* shape = nullptr;
  DType dtype = DType::kBf16;
  bool masks = false;
  std::shared_ptr<const Basis> basis;  // null: none yet
  LayerOmega omega;
  int16_t log2_weight = 0;  // of the context (config), eighths
};

// The ladders of one layer, for one basis and one class.
class LadderSet {
 public:
  LadderSet(std::shared_ptr<const Basis> basis, std::vector<CellLadder> cells)
      : basis_(std::move(basis)), cells_(std::move(cells)) {}
  const std::shared_ptr<const Basis>& basis() const { return basis_; }
  int heads() const { return static_cast<int>(cells_.size()); }
  const CellLadder& cell(int head) const { return cells_[static_cast<size_t>(head)]; }  // absolute

 private:
  std::shared_ptr<const Basis> basis_;
  std::vector<CellLadder> cells_;
};

// Relative errors by kind (formats 2): of V with b bits, of a plain K with b bits.
double VError(int bits);
double PlainError(int bits);
inline constexpr double kMeanCharge = 4;  // errors that all tokens of a tile share add up
inline constexpr double kMaskCharge = 16;

// The narrowest kinds of at least `bits` an element. K below 4 bits only with a basis that has seen
// the head; above 8 it is raw.
uint8_t KKindFor(const Basis* basis, int head, double bits);
uint8_t VKindFor(double bits);

// Fills the byte tables of a head; the ladders are the policy's.
CellLadder CellBytes(const LayerModel& layer, int head);
// The ladder of one rung: the price has nothing to decide.
CellLadder OneRung(const LayerModel& layer, int head, uint8_t k_kind, uint8_t v_kind);
// The ladder of pairs (no omega) and the two of K and V (omega) for a class, floors included.
// `exact` has the one rung (raw, raw), `high` (plain8, 8).
CellLadder CompressingCell(const LayerModel& layer, int head, QualityClass quality);

}  // namespace dyna
