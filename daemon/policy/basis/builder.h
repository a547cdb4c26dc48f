// From moments to a basis (policy 2, formats 1): averages M over distances, whitens, and takes the
// eigenvectors, in double.
//
// Thread rule: free functions for codec threads; about 10 ms a head at head_dim 128.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "daemon/policy/basis/moments.h"
#include "kernels/basis.h"
#include "schemas/context.h"
#include "schemas/status.h"

namespace dyna {

struct BasisRequest {
  Fingerprint fingerprint = 0;
  LayerShape shape;
  Rope rope;                   // kNone: nothing turns
  uint32_t longest_chain = 0;  // tokens; distances are averaged over ReachOf(...)
  bool attend = false;         // runs of 16
};

// L of policy 2: a power of two, at most max_position, 4 x the longest chain; a sliding layer: its
// window.
uint32_t ReachOf(const LayerShape& shape, uint32_t longest_chain);

// A head that saw nothing, or only zeros, stays plain. Without queries M is the identity and the
// source `keys`. INVALID when no head can have a basis.
Result<std::shared_ptr<const Basis>> BuildBasis(const LayerMoments& moments,
                                                const BasisRequest& request);

// E over distances D < reach of R(D) m R(D)', in place; m is [d][d] row-major and symmetric.
void AverageOverDistances(std::span<double> m, int d, const Rope& rope, uint32_t reach);

// The error that K coded with `basis` at L2 would have under `moments`, in the metric of their M,
// over the energy there; what "10 % less error" compares. Mean over the heads both have seen;
// INVALID where there is none.
Result<double> PromisedError(const Basis& basis, const LayerMoments& moments,
                             const BasisRequest& request);

}  // namespace dyna
