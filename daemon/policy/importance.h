// From history to the weight of a tile (policy 4): hedged, so that neither history nor a hostile
// report can starve a token below 1 - hedge.
//
//   w_i = (1 - hedge) + hedge r_i^(2g) / Z        Z: decayed mean of x^(2g) of (layer, kv head)
//
// Thread rule: free functions, and books of one (tenant, context) that belong to the loop.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "daemon/policy/history.h"
#include "schemas/context.h"
#include "schemas/record.h"

namespace dyna {

// Z of every (layer, kv head) of one tenant's context, made where the chain is held.
class HedgeNormaliser {
 public:
  explicit HedgeNormaliser(const ContextSpec& spec);
  // x of all visible tokens of one report, NaN where not covered.
  void Update(int layer, int head, std::span<const float> x, uint32_t advance,
              const HedgeOptions& options);
  double z(int layer, int head) const;  // 1 while nothing was reported

 private:
  struct Mean {
    float mean = 0;
    float tokens = 0;  // clock, for the bias correction
  };
  std::vector<std::vector<Mean>> cells_;  // [layer][kv head]
};

// w of one token or group.
double HedgedWeight(double r, double z, const HedgeOptions& options);

// Energy-weighted mean of w over a tile's 8 groups. `energy` is [8] or empty (all alike); groups
// without a live token carry energy 0. No energy at all counts as all alike.
double TileWeight(std::span<const float, 8> r, double z, std::span<const float> energy,
                  const HedgeOptions& options);

// Running means of the energy of K and V of every cell: what a tile's energy is relative to.
class EnergyMeans {
 public:
  explicit EnergyMeans(const ContextSpec& spec);
  // Takes the measured energies of one tile (backend.h: TileMeasure) into the means and sets the
  // two energy bytes of `cell`: log2 of energy / mean in eighths, within +-6 octaves.
  void Fold(int layer, int head, double k_energy, double v_energy, record::Cell* cell);

 private:
  struct Means {
    float k = 0, v = 0;
    uint32_t tiles = 0;
  };
  std::vector<std::vector<Means>> cells_;
};

inline constexpr double kMostReuse = 4;  // of a block's weight in the price

// Reuse of a block: decayed count of its hits, never below 1 (design 2).
struct Reuse {
  float hits = 1;
  int64_t at_ms = 0;
  double At(int64_t now_ms, double half_life_s) const;
  // What the price multiplies by. A reader makes hits at will, of its own blocks: without a bound
  // one tenant's lookups grind another's blocks to their floor. Two octaves are one bit.
  double Weight(int64_t now_ms, double half_life_s) const;
  void Hit(int64_t now_ms, double half_life_s);
};

}  // namespace dyna
