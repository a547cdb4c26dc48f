// Jobs of second moments, checked: what every backend's Moments and QueryMoments start from.
#pragma once

#include <cstddef>

#include "kernels/backend.h"

namespace dyna {

// Entries of an upper triangle, row after row; row i begins at i d - i (i - 1) / 2.
constexpr size_t UpperTriangle(int d) {
  return static_cast<size_t>(d) * static_cast<size_t>(d + 1) / 2;
}

// INVALID names what of the job does not fit; UNSUPPORTED: contexts of fp8. Values are not looked
// at: one that is not finite is found where they are loaded.
Status CheckMoments(const MomentsJob& job);
Status CheckMoments(const QueryMomentsJob& job);
// Positions of a window. REQUIRES a checked one.
int WindowOf(const QueryMomentsJob& job);

}  // namespace dyna
