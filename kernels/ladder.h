// The ladder of a basis (formats 1): which widths each level gives the runs of one kv head.
// One sequence of single steps (0 -> 2 -> 4 -> 8 of one run), dearest gain per bit first; a level
// is the longest prefix of it within the level's target, so a higher level is never narrower.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace dyna {

inline constexpr int kMaxLevels = 16;
// Mean bits of a channel that the levels aim at; L2 is the level of target 2.
inline constexpr std::array<double, 12> kLevelTargets = {0,    .5, .75, 1, 1.25, 1.5,
                                                         1.75, 2,  2.5, 3, 4,    5};

// Error of a width, relative to the variance of what it codes (formats 1); width in {0, 2, 4, 8}.
double WidthError(int width);

// Channels of a run unless tiles will be attended to in place (then always 16).
constexpr int DefaultRun(int head_dim) { return head_dim <= 64 ? 8 : 16; }

using Widths = std::vector<uint8_t>;  // [head_dim / run]

// The widths of one head for every target, before duplicates are dropped. All variances zero (a
// head that was never seen): all widths zero.
std::vector<Widths> LadderOf(std::span<const float> variances, int run);

// One ladder for all heads of a layer: levels[level][head]. A target that gives every head the
// widths of the target before it is dropped.
std::vector<std::vector<Widths>> LayerLadder(std::span<const std::span<const float>> variances,
                                             int run);

double MeanBits(std::span<const uint8_t> widths);
// Sum of the channels' variance times their width's error, over the sum of variances (0: 0).
double PredictedError(std::span<const uint8_t> widths, std::span<const float> variances);

}  // namespace dyna
