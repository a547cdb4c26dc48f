// One message of each type, filled by a seeded generator within the bounds of the door. Tests only.
#pragma once

#include <random>

#include "schemas/wire.h"

namespace dyna::wire {

// `rng` decides every field; the same state gives the same message.
Message RandomMessage(Type type, std::mt19937_64& rng);

}  // namespace dyna::wire
