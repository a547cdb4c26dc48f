// dynacompress: all kinds of policy 4 at one price.
#include "daemon/policy/policies.h"

namespace dyna {
namespace {

class Dynacompress final : public Policy {
 public:
  std::string_view name() const override { return "dynacompress"; }
  Result<CellLadder> MakeCell(const LayerModel& layer, int head,
                              QualityClass quality) const override {
    return CompressingCell(layer, head, quality);
  }
};

}  // namespace

Result<std::unique_ptr<Policy>> MakeDynacompressPolicy(const PolicyOptions&) {
  return std::unique_ptr<Policy>(std::make_unique<Dynacompress>());
}

}  // namespace dyna
