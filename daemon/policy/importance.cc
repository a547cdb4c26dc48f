#include "daemon/policy/importance.h"

#include <algorithm>
#include <cmath>

#include "daemon/policy/log2_byte.h"

namespace dyna {
namespace {

constexpr double kLeastZ = 0x1p-20;  // nobody attended to anything that is held
constexpr float kMaxTokens = 1e9f;
constexpr uint32_t kMeanTiles = 256;  // the energy means forget beyond this many
constexpr int kEnergyReach = 6 * kEighths;

template <typename Cell>
std::vector<std::vector<Cell>> CellsOf(const ContextSpec& spec) {
  std::vector<std::vector<Cell>> cells(spec.layers.size());
  for (size_t l = 0; l < cells.size(); ++l) cells[l].resize(spec.layers[l].kv_heads);
  return cells;
}

int8_t RelativeEnergy(double energy, float* mean, uint32_t tiles) {
  if (!std::isfinite(energy) || energy < 0) return 0;
  *mean += static_cast<float>((energy - *mean) / std::min(tiles, kMeanTiles));
  if (!(*mean > 0)) return 0;
  return static_cast<int8_t>(
      std::clamp<int>(Log2Byte(energy / *mean), -kEnergyReach, kEnergyReach));
}

}  // namespace

HedgeNormaliser::HedgeNormaliser(const ContextSpec& spec) : cells_(CellsOf<Mean>(spec)) {}

void HedgeNormaliser::Update(int layer, int head, std::span<const float> x, uint32_t advance,
                             const HedgeOptions& options) {
  double sum = 0;
  size_t covered = 0;
  for (float value : x) {
    if (std::isnan(value)) continue;
    // g = 1/2 is the default: no power is needed then.
    sum += options.gamma == 0.5 ? double{value} : std::pow(double{value}, 2 * options.gamma);
    ++covered;
  }
  if (covered == 0) return;
  Mean& cell = cells_[static_cast<size_t>(layer)][static_cast<size_t>(head)];
  const double rho = std::exp2(-1.0 / std::max(options.half_life_tokens, 1.0));
  const double keep = std::pow(rho, std::clamp(advance, 1u, 1u << 20));
  const double old_weight = keep * (1 - std::pow(rho, double{cell.tokens}));
  const double new_weight = 1 - keep;
  cell.mean = static_cast<float>((old_weight * cell.mean + new_weight * sum / double(covered)) /
                                 (old_weight + new_weight));
  cell.tokens = std::min(cell.tokens + static_cast<float>(advance), kMaxTokens);
}

double HedgeNormaliser::z(int layer, int head) const {
  const Mean& cell = cells_[static_cast<size_t>(layer)][static_cast<size_t>(head)];
  return cell.tokens > 0 ? std::max<double>(cell.mean, kLeastZ) : 1.0;
}

double HedgedWeight(double r, double z, const HedgeOptions& options) {
  const double seen = options.gamma == 0.5 ? r : std::pow(r, 2 * options.gamma);
  return (1 - options.hedge) + options.hedge * seen / z;
}

double TileWeight(std::span<const float, 8> r, double z, std::span<const float> energy,
                  const HedgeOptions& options) {
  double sum = 0, weight = 0, plain = 0;
  for (size_t g = 0; g < r.size(); ++g) {
    const double w = HedgedWeight(double{r[g]}, z, options);
    plain += w;
    if (energy.empty()) continue;
    sum += double{energy[g]} * w;
    weight += double{energy[g]};
  }
  return weight > 0 ? sum / weight : plain / double(r.size());
}

EnergyMeans::EnergyMeans(const ContextSpec& spec) : cells_(CellsOf<Means>(spec)) {}

void EnergyMeans::Fold(int layer, int head, double k_energy, double v_energy, record::Cell* cell) {
  Means& means = cells_[static_cast<size_t>(layer)][static_cast<size_t>(head)];
  means.tiles = std::min(means.tiles + 1, kMeanTiles);
  cell->log2_energy_k = RelativeEnergy(k_energy, &means.k, means.tiles);
  cell->log2_energy_v = RelativeEnergy(v_energy, &means.v, means.tiles);
}

double Reuse::At(int64_t now_ms, double half_life_s) const {
  const double age_s = static_cast<double>(std::max<int64_t>(now_ms - at_ms, 0)) / 1000;
  return std::max(1.0, double{hits} * std::exp2(-age_s / std::max(half_life_s, 1e-3)));
}

double Reuse::Weight(int64_t now_ms, double half_life_s) const {
  return std::min(At(now_ms, half_life_s), kMostReuse);
}

void Reuse::Hit(int64_t now_ms, double half_life_s) {
  hits = static_cast<float>(std::min(At(now_ms, half_life_s) + 1, 1e6));
  at_ms = now_ms;
}

}  // namespace dyna
