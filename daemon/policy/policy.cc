#include "daemon/policy/policy.h"

#include <string>

#include "daemon/policy/policies.h"

namespace dyna {
namespace {

struct Row {
  std::string_view name;
  Result<std::unique_ptr<Policy>> (*make)(const PolicyOptions&);
};
constexpr Row kTable[] = {
    {"dynacompress", MakeDynacompressPolicy},
    {"full", MakeFullPolicy},
    {"uniform", MakeUniformPolicy},
};

}  // namespace

std::vector<std::string_view> PolicyNames() {
  std::vector<std::string_view> names;
  for (const Row& row : kTable) names.push_back(row.name);
  return names;
}

Result<std::unique_ptr<Policy>> MakePolicy(const PolicyOptions& options) {
  std::string known;
  for (const Row& row : kTable) {
    if (row.name == options.name) return row.make(options);
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  return Invalid("policy.name \"" + options.name + "\" is none of " + known);
}

Status Policy::SelectLive(const ChainView&, LiveMasks*) const {
  return Unsupported("policy " + std::string(name()) + " drops no tokens");
}

Result<std::shared_ptr<const LadderSet>> Policy::MakeLadders(const LayerModel& layer,
                                                             QualityClass quality) const {
  std::vector<CellLadder> cells;
  for (int head = 0; head < layer.shape->kv_heads; ++head) {
    if (DTypeBytes(layer.dtype) == 1) {  // an engine's fp8 cache is stored as it is (formats 5)
      cells.push_back(OneRung(layer, head, kind::kRaw, kind::kRaw));
      continue;
    }
    DYNA_ASSIGN_OR_RETURN(CellLadder cell, MakeCell(layer, head, quality));
    cells.push_back(cell);
  }
  return std::make_shared<const LadderSet>(layer.basis, std::move(cells));
}

}  // namespace dyna
