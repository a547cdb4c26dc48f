#include "daemon/policy/policy.h"

#include <algorithm>
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
    {"printed", MakePrintedPolicy},
    {"printed_corrected", MakePrintedCorrectedPolicy},
    {"fastkv", MakeFastKvPolicy},
    {"dynamickv", MakeDynamicKvPolicy},
    {"kvdistill", MakeKvDistillPolicy},
    {"snapkv", MakeSnapKvPolicy},
    {"h2o", MakeH2oPolicy},
    {"keydiff", MakeKeyDiffPolicy},
    {"expected_attention", MakeExpectedAttentionPolicy},
    {"streamingllm", MakeStreamingLlmPolicy},
    {"random", MakeRandomPolicy},
};

constexpr double kFreeStep = 64;  // octaves: more than a history's byte can say

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

void Policy::ScoreKeys(std::span<const float>, int, std::span<float> score) const {
  std::fill(score.begin(), score.end(), 1.0f);
}

Status Policy::SelectLive(const ChainView&, ChainChoice*) const {
  return Unsupported("policy " + std::string(name()) + " drops no tokens");
}

void Policy::Imply(PolicyOptions* options) const {
  if (!drops_tokens() || scores() != ScoreSource::kReports) return;
  options->grain = HistoryGrain::kToken;
  // The bounded step protects a shared price from one report; here it would tie all tokens that
  // the first report puts beyond it, and the ranking is the method.
  options->history.max_step = kFreeStep;
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
