// omega, normalised (policy 4): a profile's sensitivities on the scale on which contexts without
// one already are, so that all meet at one price and no client buys the budget with a profile.
// The scale: the step of K from 4 to 2 bits costs 1 a byte in the mean over the context's cells.
//
// Thread rule: const after it was made.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "daemon/policy/ladder_set.h"
#include "daemon/policy/options.h"
#include "schemas/context.h"
#include "schemas/status.h"

namespace dyna {

// What a profile says of one (layer, kv head).
struct CellSensitivity {
  float omega_k = 0, omega_v = 0;        // nats of KL per unit of predicted error; > 0
  float k_error_l4 = 0, k_error_l2 = 0;  // K's relative error at L4 and L2 of the profile's basis
};

class Sensitivity {
 public:
  // cells: [layer][kv head]. INVALID naming the cell whose value is not finite and positive, or
  // where L2 does not cost more than L4. omega is kept within +-12 octaves of the context's mean.
  // kLayer: a layer's heads all have their mean, the errors stay their own. REQUIRES not kOff.
  static Result<Sensitivity> Make(const ContextSpec& spec,
                                  std::vector<std::vector<CellSensitivity>> cells,
                                  OmegaGrain grain = OmegaGrain::kHead);
  LayerOmega layer(int layer) const {
    const auto& l = layers_[static_cast<size_t>(layer)];
    return {l.k, l.v};
  }

 private:
  struct Layer {
    std::vector<int16_t> k, v;  // eighths of log2
  };
  std::vector<Layer> layers_;
};

}  // namespace dyna
