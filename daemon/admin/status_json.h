// Pieces of the status JSON that other answers share. nlohmann stays in this folder.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "daemon/store/stats.h"

namespace dyna::admin {

nlohmann::json ContextToJson(const ContextFact& context);

}  // namespace dyna::admin
