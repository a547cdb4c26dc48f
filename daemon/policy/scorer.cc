#include "daemon/policy/scorer.h"

#include <array>
#include <string>

#include "daemon/policy/scorer_methods.h"

namespace dyna {

std::span<const Scorer* const> Scorers() {
  static const std::array<const Scorer*, 4> kTable = {KeysOnlyScorer(), QueryWindowScorer(),
                                                      ColumnMassScorer(), TileMassScorer()};
  return kTable;
}

Result<const Scorer*> FindScorer(std::string_view name) {
  std::string known;
  for (const Scorer* scorer : Scorers()) {
    if (scorer->name() == name) return scorer;
    known += (known.empty() ? "" : ", ") + std::string(scorer->name());
  }
  return Invalid("score_source \"" + std::string(name) + "\" is none of " + known);
}

Status CheckShape(const Scorer& scorer, const AttentionReport& report, std::span<const float> x) {
  const uint64_t expected = scorer.ValuesOf(report.kv_heads, report.tokens);
  if (report.values.size() != expected)
    return Invalid("report.values has " + std::to_string(report.values.size()) + " of " +
                   std::to_string(expected) + " values in layer " + std::to_string(report.layer));
  const uint64_t places = static_cast<uint64_t>(report.kv_heads) * report.tokens;
  if (x.size() != places)
    return Invalid("report.tokens: " + std::to_string(x.size()) + " places for " +
                   std::to_string(places) + " in layer " + std::to_string(report.layer));
  return {};
}

Status BadValue(const AttentionReport& report, size_t head, size_t at, const char* what) {
  return Invalid("report.values of layer " + std::to_string(report.layer) + ", head " +
                 std::to_string(head) + ", " + what + " " + std::to_string(at) +
                 " is not finite, negative or too large");
}

}  // namespace dyna
