// What a window of queries says of how much the heads of a layer mind errors, measured on the chain
// as it is held (daemon/policy/basis/traffic_sensitivity.h).
//
// Thread rule: of codec threads.
#pragma once

#include "daemon/policy/basis/traffic_sensitivity.h"
#include "kernels/backend.h"

namespace dyna {

// score: the same window's job; its chain covers heads [head_begin, head_begin + heads).
Result<WindowSensitivity> MeasureChain(Backend& backend, const ScoreJob& score, int head_begin,
                                       int heads, int head_dim);

}  // namespace dyna
