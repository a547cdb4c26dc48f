// query_window: a score job (backend.h) has attended with the window's queries over the held
// blocks; its answer is relative attention already, and is only checked.
#include <algorithm>

#include "daemon/policy/scorer_methods.h"

namespace dyna {
namespace {

class QueryWindow final : public Scorer {
 public:
  std::string_view name() const override { return "query_window"; }
  uint64_t ValuesOf(int kv_heads, uint32_t tokens) const override {
    return static_cast<uint64_t>(kv_heads) * tokens;
  }
  Status Score(const AttentionReport& report, std::span<float> x) const override {
    DYNA_RETURN_IF_ERROR(CheckShape(*this, report, x));
    for (size_t i = 0; i < report.values.size(); ++i) {
      if (!(report.values[i] >= 0 && report.values[i] <= kMaxRelative))
        return BadValue(report, i / report.tokens, i % report.tokens, "token");
    }
    std::copy(report.values.begin(), report.values.end(), x.begin());
    return {};
  }
};

}  // namespace

const Scorer* QueryWindowScorer() {
  static const QueryWindow kScorer;
  return &kScorer;
}

}  // namespace dyna
