// full: the FullCache of comparisons. Every block as it came, nothing dropped.
#include "daemon/policy/policies.h"

namespace dyna {
namespace {

class Full final : public Policy {
 public:
  std::string_view name() const override { return "full"; }
  Result<CellLadder> MakeCell(const LayerModel& layer, int head, QualityClass) const override {
    return OneRung(layer, head, kind::kRaw, kind::kRaw);
  }
};

}  // namespace

Result<std::unique_ptr<Policy>> MakeFullPolicy(const PolicyOptions&) {
  return std::unique_ptr<Policy>(std::make_unique<Full>());
}

}  // namespace dyna
