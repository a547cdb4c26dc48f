// uniform: one K level and one V width everywhere. A head without a basis has plain8 or plain4,
// whichever is nearer from above.
#include <string>

#include "daemon/policy/policies.h"

namespace dyna {
namespace {

class Uniform final : public Policy {
 public:
  Uniform(double k_bits, int v_bits) : k_bits_(k_bits), v_bits_(v_bits) {}
  std::string_view name() const override { return "uniform"; }
  Result<CellLadder> MakeCell(const LayerModel& layer, int head,
                              QualityClass quality) const override {
    if (quality == QualityClass::kExact) return OneRung(layer, head, kind::kRaw, kind::kRaw);
    if (quality == QualityClass::kHigh) return OneRung(layer, head, kind::kPlain8, kind::VBits(8));
    return OneRung(layer, head, KKind(layer, head), kind::VBits(v_bits_));
  }

 private:
  uint8_t KKind(const LayerModel& layer, int head) const {
    const Basis* basis = layer.basis.get();
    if (k_bits_ < 8 && basis && basis->Covers(head) && basis->seen(head))
      return kind::Level(basis->LevelOf(k_bits_));
    return k_bits_ > 4 ? kind::kPlain8 : kind::kPlain4;
  }

  const double k_bits_;
  const int v_bits_;
};

}  // namespace

Result<std::unique_ptr<Policy>> MakeUniformPolicy(const PolicyOptions& options) {
  const int v = options.uniform_v_bits;
  if (v != 0 && v != 1 && v != 2 && v != 4 && v != 8)
    return Invalid("policy.uniform_v_bits is " + std::to_string(v) + ", not 0, 1, 2, 4 or 8");
  if (!(options.uniform_k_bits >= 0 && options.uniform_k_bits <= 8))
    return Invalid("policy.uniform_k_bits is not within 0..8");
  return std::unique_ptr<Policy>(std::make_unique<Uniform>(options.uniform_k_bits, v));
}

}  // namespace dyna
