#include "daemon/policy/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "daemon/policy/log2_byte.h"

namespace dyna {
namespace {

constexpr int kReach = 12 * kEighths;  // of a cell's omega around what makes its context mean 1

bool Positive(float x) { return std::isfinite(x) && x > 0; }

long Eighths(double x) { return std::lround(kEighths * std::log2(x)); }

Status BadCell(size_t layer, size_t head, const char* what) {
  return Invalid("omega of layer " + std::to_string(layer) + ", head " + std::to_string(head) +
                 ": " + what);
}

// A head whose omega is no number stays for the door to name.
void ShareMean(std::vector<CellSensitivity>* heads) {
  double k = 0, v = 0;
  for (const CellSensitivity& c : *heads) {
    if (!Positive(c.omega_k) || !Positive(c.omega_v)) return;
    k += double{c.omega_k} / static_cast<double>(heads->size());
    v += double{c.omega_v} / static_cast<double>(heads->size());
  }
  for (CellSensitivity& c : *heads) {
    c.omega_k = static_cast<float>(k);
    c.omega_v = static_cast<float>(v);
  }
}

}  // namespace

Result<Sensitivity> Sensitivity::Make(const ContextSpec& spec,
                                      std::vector<std::vector<CellSensitivity>> cells,
                                      OmegaGrain grain) {
  if (cells.size() != spec.layers.size())
    return Invalid("omega has " + std::to_string(cells.size()) + " layers of " +
                   std::to_string(spec.layers.size()));
  for (auto& layer : cells)
    if (grain == OmegaGrain::kLayer) ShareMean(&layer);
  double cost = 0, bytes = 0;  // of the step of K from L4 to L2, over all cells
  double sum = 0, count = 0;   // of omega_k
  for (size_t l = 0; l < cells.size(); ++l) {
    if (cells[l].size() != spec.layers[l].kv_heads)
      return Invalid("omega of layer " + std::to_string(l) + " has " +
                     std::to_string(cells[l].size()) + " heads of " +
                     std::to_string(spec.layers[l].kv_heads));
    for (size_t h = 0; h < cells[l].size(); ++h) {
      const CellSensitivity& c = cells[l][h];
      if (!Positive(c.omega_k)) return BadCell(l, h, "omega_k is not positive");
      if (!Positive(c.omega_v)) return BadCell(l, h, "omega_v is not positive");
      if (!Positive(c.k_error_l4) || !Positive(c.k_error_l2) || c.k_error_l2 > 16)
        return BadCell(l, h, "an error of K is not positive");
      if (c.k_error_l2 <= c.k_error_l4) return BadCell(l, h, "L2 does not cost more than L4");
      cost += double{c.omega_k} * (double{c.k_error_l2} - double{c.k_error_l4});
      sum += double{c.omega_k};
      ++count;
      bytes += 2.0 * kBlockTokens * spec.layers[l].head_dim / 8;  // two bits of each channel
    }
  }
  const double scale = bytes / cost;
  if (!std::isfinite(scale) || !(scale > 0)) return Invalid("omega does not add up");

  // A unit's cost is omega x its relative error; bytes / cost makes the mean step 1 a byte.
  const long middle = Eighths(sum / count * scale);
  const auto normalised = [&](float omega) {
    return static_cast<int16_t>(
        std::clamp(Eighths(double{omega} * scale), middle - kReach, middle + kReach));
  };
  Sensitivity out;
  for (const auto& layer : cells) {
    Layer& to = out.layers_.emplace_back();
    for (const CellSensitivity& c : layer) {
      to.k.push_back(normalised(c.omega_k));
      to.v.push_back(normalised(c.omega_v));
    }
  }
  return out;
}

}  // namespace dyna
