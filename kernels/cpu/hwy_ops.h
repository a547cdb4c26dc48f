// The Highway tables: the inner loops of tile_ops.h for AVX2 and AVX-512. Given equal planes, what
// is marked EXACT there has the bytes of the scalar table; transforms use fused multiply-add.
//
// Highway's SSE targets are left out: without fused multiply-add they gain little.
#pragma once

#include "kernels/cpu/tile_ops.h"

namespace dyna {

// Null where this machine has not got the instructions, or this build has no x86 targets.
const TileOps* HwyAvx2TileOps();
const TileOps* HwyAvx512TileOps();

}  // namespace dyna
