// The methods behind the table of scorer.cc, and what they share. Only scorer*.cc include it.
#pragma once

#include <cstddef>
#include <span>

#include "daemon/policy/scorer.h"

namespace dyna {

const Scorer* KeysOnlyScorer();
const Scorer* QueryWindowScorer();
const Scorer* ColumnMassScorer();
const Scorer* TileMassScorer();

// INVALID unless the report has the values its shape demands and x the places.
Status CheckShape(const Scorer& scorer, const AttentionReport& report, std::span<const float> x);
Status BadValue(const AttentionReport& report, size_t head, size_t at, const char* what);

}  // namespace dyna
