// The order in which a warp holds its operands of mma.m16n8k16, on the host and on the device.
//
// Lane l is (g, q) = (l / 4, l % 4). The instruction gives a lane the k indices 2q, 2q + 1, 2q + 8
// and 2q + 9; a sum does not mind which channel stands behind which k, so where rows are read the
// lane's four are channels 4q .. 4q + 3 of 16: one load. Where codes are read they are the channels
// that the tile's planes give a lane (formats 3).
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define DYNA_FRAGMENT __host__ __device__
#else
#define DYNA_FRAGMENT
#endif

namespace dyna::cuda {

// The i-th (0..3) channel of lane quarter q, of 16, where rows are read or written.
DYNA_FRAGMENT constexpr int RowChannel(int q, int i) { return 4 * q + i; }
// The same where the planes of a tile are read.
DYNA_FRAGMENT constexpr int PlaneChannel(int q, int i) { return 2 * q + (i & 1) + 4 * (i & 2); }
// Output column n (0..7) of the e-th of two n-tiles: so that a lane's columns 2q, 2q + 1 of both
// are four neighbouring channels.
DYNA_FRAGMENT constexpr int OutChannel(int e, int n) { return 4 * (n >> 1) + 2 * e + (n & 1); }

}  // namespace dyna::cuda
