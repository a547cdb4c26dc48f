// keys_only: clients send nothing. History stays unobserved and every weight is 1.
#include <algorithm>

#include "daemon/policy/scorer_methods.h"

namespace dyna {
namespace {

class KeysOnly final : public Scorer {
 public:
  std::string_view name() const override { return "keys_only"; }
  uint64_t ValuesOf(int, uint32_t) const override { return 0; }
  bool observes() const override { return false; }
  Status Score(const AttentionReport& report, std::span<float> x) const override {
    DYNA_RETURN_IF_ERROR(CheckShape(*this, report, x));
    std::fill(x.begin(), x.end(), 1.0f);
    return {};
  }
};

}  // namespace

const Scorer* KeysOnlyScorer() {
  static const KeysOnly kScorer;
  return &kScorer;
}

}  // namespace dyna
