// A snapshot for people and programs: JSON, and a page of the same facts. Pure functions.
#pragma once

#include <string>

#include "daemon/admin/metrics.h"

namespace dyna::admin {

// One object: ready, tiers, budget, fidelity, traffic, pressure, contexts with their bases.
std::string StatusJson(const Snapshot& snapshot);
// A page without scripts or anything fetched from elsewhere; every text in it is escaped.
std::string StatusPage(const Snapshot& snapshot);

// "1.5 GiB", for people.
std::string HumanBytes(double bytes);

}  // namespace dyna::admin
