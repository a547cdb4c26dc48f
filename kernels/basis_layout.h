// Where the fields of a basis object lie (formats 1): shared by the reader and the writer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dyna::basis_layout {

inline constexpr char kMagic[4] = {'D', 'Y', 'N', 'B'};
inline constexpr uint16_t kVersion = 1;
inline constexpr size_t kVersionAt = 4, kHeaderBytesAt = 6, kFingerprintAt = 8, kLayerAt = 16,
                        kHead0At = 18, kKvHeadsAt = 20, kHeadDimAt = 22, kFrameAt = 24, kRunAt = 25,
                        kLevelsAt = 26, kSourceAt = 27, kTokensAt = 28, kQueriesAt = 32,
                        kReservedAt = 36, kCrcAt = 60;

// Offsets of one head's parts from its start, each padded to 16 bytes.
struct CellLayout {
  CellLayout(int head_dim, int run, int levels) {
    const size_t d = static_cast<size_t>(head_dim);
    a = 2 * d;
    b = a + 2 * d * d;
    variances = b + 2 * d * d;
    widths = variances + 4 * d;
    const size_t count = static_cast<size_t>(levels * (head_dim / run));
    bytes = widths + (count + 15) / 16 * 16;
  }
  size_t mu = 0, a, b, variances, widths, bytes;
};

}  // namespace dyna::basis_layout
