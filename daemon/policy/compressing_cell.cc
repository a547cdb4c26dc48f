// The ladders of policy 4: the pair's without omega, one of K and one of V with it.
#include <vector>

#include "daemon/policy/ladder_set.h"

namespace dyna {
namespace {

// Never observed: L1 and V 1 bit or more. The 2 bits of V that policy 5 asks for kept whole
// contexts from their budget: a block is always put before its first report, and K paid for it.
constexpr double kUnobservedBits = 1;
// Floor of class `balanced` with omega: the cells that mind least go on to here, else 6 x would be
// (L2, 2) everywhere and omega without a say. Without it pairs end at kBalancedPairBits.
constexpr double kBalancedBits = 1;

// The pair's errors were measured as KL of a whole model at one rung (policy 4); below (2, 2) on
// two tuning passages, scaled to it. With V on the trellis (3, 2) measured as well as (2, 4) there,
// at fewer bytes, but worse in the demo, whose basis is of one document: K goes to 2 bits first.
// Not by way of 3, which the demo liked less as well (4.2 x: KL .0018 against .0013).
struct PairRung {
  double k_bits;
  int v_bits;
  double error;
};
constexpr PairRung kPairs[] = {{8, 8, 0},       {4, 4, .0004},  {2, 4, .0030}, {2, 2, .0072},
                               {1.5, 2, .0110}, {1.5, 1, .030}, {1, 1, .065}};
constexpr double kBalancedPairBits = 2;  // of K and of V
// The step of K from 4 bits to 2 then costs 1 a byte, as sensitivity.h makes it with omega.
constexpr double kPairErrorPerBit = (.0030 - .0004) / 2;

class CellMaker {
 public:
  CellMaker(const LayerModel& layer, int head)
      : layer_(layer),
        head_(head),
        cell_(CellBytes(layer, head)),
        has_basis_(layer.basis && layer.basis->Covers(head) && layer.basis->seen(head)),
        bytes_per_bit_(double{kBlockTokens} * layer.shape->head_dim / 8) {}

  CellLadder Pairs(QualityClass quality) {
    std::vector<Candidate> rungs;
    for (const PairRung& pair : kPairs) {
      if (!has_basis_ && pair.k_bits < 4) break;  // below 4 bits only with a basis
      if (quality == QualityClass::kBalanced && pair.k_bits < kBalancedPairBits) break;
      rungs.push_back(Pair(KindAt(pair.k_bits), kind::VBits(pair.v_bits),
                           pair.error / kPairErrorPerBit * bytes_per_bit_,
                           (pair.k_bits + pair.v_bits) * bytes_per_bit_));
    }
    cell_.k = Ladder(UnitKind::kPair, rungs);
    cell_.log2_omega_k = layer_.log2_weight;
    return cell_;
  }

  CellLadder WithOmega(QualityClass quality) {
    const double floor = quality == QualityClass::kSmall ? 0 : kBalancedBits;
    cell_.pair = false;
    cell_.k = KLadder(floor);
    cell_.v = VLadder(has_basis_ ? floor : 4);
    const auto head = static_cast<size_t>(head_);
    cell_.log2_omega_k = static_cast<int16_t>(layer_.omega.log2_k[head] + layer_.log2_weight);
    cell_.log2_omega_v = static_cast<int16_t>(layer_.omega.log2_v[head] + layer_.log2_weight);
    return cell_;
  }

 private:
  uint8_t KindAt(double k_bits) const {
    if (k_bits >= 8) return kind::kPlain8;
    return has_basis_ ? kind::Level(layer_.basis->LevelOf(k_bits)) : kind::kPlain4;
  }

  Candidate Pair(uint8_t k, uint8_t v, double cost, double slope_bytes) const {
    return {k, v, cell_.k_bytes[k] + cell_.v_bytes[v], cost, slope_bytes, true};
  }

  Ladder KLadder(double floor) const {
    std::vector<Candidate> rungs = {OfK(kind::kPlain8, PlainError(8), true)};
    if (!has_basis_) {
      rungs.push_back(OfK(kind::kPlain4, PlainError(4), true));
    } else {
      const Basis& basis = *layer_.basis;
      const int lowest = floor > 0 ? basis.LevelOf(floor) : 0;
      const int unobserved = basis.LevelOf(kUnobservedBits);
      for (int level = basis.info().levels - 1; level >= lowest; --level) {
        const double charge = basis.mean_bits(head_, level) > 0 ? 1 : kMeanCharge;
        rungs.push_back(OfK(kind::Level(level), charge * basis.relative_error(head_, level),
                            level >= unobserved));
      }
    }
    return Ladder(UnitKind::kK, rungs);
  }

  Ladder VLadder(double floor) const {
    std::vector<Candidate> rungs;
    for (int bits : {8, 4, 2, 1, 0}) {
      if (bits < floor) break;
      const uint8_t v = kind::VBits(bits);
      rungs.push_back({0, v, cell_.v_bytes[v], VError(bits) * (bits ? 1 : kMeanCharge), 0,
                       bits >= kUnobservedBits});
    }
    return Ladder(UnitKind::kV, rungs);
  }

  Candidate OfK(uint8_t k, double cost, bool unobserved_ok) const {
    return {k, 0, cell_.k_bytes[k], cost, 0, unobserved_ok};
  }

  const LayerModel& layer_;
  const int head_;
  CellLadder cell_;
  const bool has_basis_;
  const double bytes_per_bit_;
};

}  // namespace

CellLadder CompressingCell(const LayerModel& layer, int head, QualityClass quality) {
  if (quality == QualityClass::kExact) return OneRung(layer, head, kind::kRaw, kind::kRaw);
  if (quality == QualityClass::kHigh) return OneRung(layer, head, kind::kPlain8, kind::VBits(8));
  CellMaker maker(layer, head);
  // `small` reaches means only with omega; without it the price may not choose between cells.
  return layer.omega.log2_k.empty() ? maker.Pairs(quality) : maker.WithOmega(quality);
}

}  // namespace dyna
