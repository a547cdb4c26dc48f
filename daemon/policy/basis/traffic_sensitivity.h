// omega without a profile: what errors of a head's K and V do to the output of its layer, measured
// in windows of queries over the chain that is held. To first order (policy 8), with a the softmax
// weights and o = sum a v,
//
//   V: sum a_i^2 |v_i|^2          per unit of V's relative error,
//   K: sum a_i^2 |v_i - o|^2 s^2  per unit of K's, s^2 the variance of logits within a tile,
//
// over the squared output of the layer's heads: a layer whose output barely moves matters little.
// What lies behind the output (its matrix, later layers) is unknown here and taken for equal; that
// is what a profile measures. Pinned tokens do not count, nor does the window itself, whose
// attention to itself says nothing of older tokens.
//
// Thread rule: MeasureWindow anywhere; TrafficSensitivity belongs to the loop.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "daemon/policy/sensitivity.h"
#include "kernels/basis.h"
#include "schemas/context.h"
#include "schemas/status.h"

namespace dyna {

struct QueryWindow {
  std::span<const float> queries;  // [queries][q_heads][head_dim], post-RoPE
  std::span<const float> k, v;     // [kv_heads][tokens][head_dim] of the chain from its root
  int q_heads = 0, kv_heads = 0, head_dim = 0;
  uint32_t tokens = 0, first_position = 0;
  uint32_t sliding = 0;  // tokens that a query sees, itself included; 0: all
  float scale = 0;
};

// Means over the window's queries, [kv_heads] each, not yet over the layer's output.
struct WindowSensitivity {
  std::vector<double> key, value, output;
};

// At most 8 queries of the window, evenly spaced: what they say varies little. INVALID where no
// whole tile lies before the window, or a value is not finite.
Result<WindowSensitivity> MeasureWindow(const QueryWindow& window);

class TrafficSensitivity {
 public:
  // windows: of each layer, then no more are wanted; 0: none ever.
  TrafficSensitivity(const ContextSpec& spec, uint32_t windows);

  static constexpr uint32_t kFewestTokens = 256, kMostTokens = 4096;  // of a chain that is measured
  bool Wants(int layer, uint32_t tokens) const;
  void Add(int layer, int head_begin, const WindowSensitivity& measured);
  // When every layer has been seen often enough, twice: after a few windows and after all.
  bool Due() const;
  // Ends what Due began: [layer][kv head]. bases: by layer; nullopt while one is missing.
  std::optional<std::vector<std::vector<CellSensitivity>>> Take(
      std::span<const std::shared_ptr<const Basis>> bases);

 private:
  struct Cell {
    double key = 0, value = 0, output = 0;
    uint32_t windows = 0;
  };
  uint32_t Seen() const;  // windows of the layer that has the fewest

  std::vector<std::vector<Cell>> layers_;
  uint32_t most_, next_;
};

}  // namespace dyna
