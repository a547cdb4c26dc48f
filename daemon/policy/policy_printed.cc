// printed and printed_corrected: the proposal's own rules, for ablation (policy.md 6).
//
//   printed             b = max(b_min, b_max (1 - gamma A)),  p_prune = sigmoid(lambda (A - tau))
//   printed_corrected   b = max(b_min, round(b_max (1 - gamma (1 - u)))),
//                       p_prune = sigmoid(lambda (tau - log2 r))
//
// A = r / tokens is a token's share of attention, r relative attention, u in 0..1 the rank of r in
// its (layer, kv head). Bits belong to tiles here: a tile's A and r are its tokens' means, u ranks
// tiles, and b takes the narrowest K level and V width that has as many. Pruning is decided by
// hash. As printed both are inverted: what is attended to gets fewer bits and is pruned more.
//
// The proposal zeroes pruned rows. A tile cannot hold rows of zeros beside a mask: pruned rows are
// dropped, served as the mean of their tile's live ones with the masks beside, and whoever wants
// the zeros writes them where the mask says. Statistics: reports, per token.
#include <algorithm>
#include <cmath>
#include <string>

#include "daemon/policy/policies.h"
#include "daemon/policy/token_policy.h"

namespace dyna {
namespace {

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

class Printed final : public TokenPolicy {
 public:
  Printed(const PolicyOptions& options, bool corrected)
      : TokenPolicy(options), corrected_(corrected) {}
  std::string_view name() const override { return corrected_ ? "printed_corrected" : "printed"; }
  ScoreSource scores() const override { return ScoreSource::kReports; }

  // Until a report says what b is, tiles have b_max.
  Result<CellLadder> MakeCell(const LayerModel& layer, int head,
                              QualityClass quality) const override {
    if (quality == QualityClass::kExact) return OneRung(layer, head, kind::kRaw, kind::kRaw);
    if (quality == QualityClass::kHigh) return OneRung(layer, head, kind::kPlain8, kind::VBits(8));
    const double bits = options_.printed.b_max;
    return OneRung(layer, head, KKindFor(layer.basis.get(), head, bits), VKindFor(bits));
  }

  Status SelectLive(const ChainView& chain, ChainChoice* choice) const override {
    DYNA_RETURN_IF_ERROR(Begin(chain, choice));
    const size_t blocks = chain.tokens / kBlockTokens;
    choice->bits.resize(choice->live.size());
    for (size_t l = 0; l < choice->live.size(); ++l) {
      if (!Decides(chain, static_cast<int>(l))) continue;
      choice->bits[l].resize(choice->live[l].size());
      for (int h = 0; h < chain.spec->layers[l].kv_heads; ++h) {
        const HeadTokens head = HeadOf(chain, static_cast<int>(l), h);
        const size_t at = static_cast<size_t>(h) * blocks;
        Prune(head, std::span(choice->live[l]).subspan(at, blocks));
        Bits(head, std::span(choice->bits[l]).subspan(at, blocks));
      }
    }
    return {};
  }

 private:
  void Prune(const HeadTokens& head, std::span<uint64_t> live) const {
    const PrintedOptions& o = options_.printed;
    for (uint32_t t = head.chain.pinned; t < head.chain.tokens; ++t) {
      const double r = double{head.score[t]};
      const double p = corrected_ ? Sigmoid(o.lambda * (o.tau - std::log2(std::max(r, 0x1p-16))))
                                  : Sigmoid(o.lambda * (r / head.chain.tokens - o.tau));
      const uint32_t in_block = t % kBlockTokens;
      if (UniformOf(head.chain.blocks[t / kBlockTokens], head.layer, head.head, in_block) < p)
        live[t / kBlockTokens] &= ~(uint64_t{1} << in_block);
    }
  }

  void Bits(const HeadTokens& head, std::span<float> bits) const {
    const PrintedOptions& o = options_.printed;
    std::vector<double> mean(bits.size());
    for (size_t t = 0; t < head.score.size(); ++t)
      mean[t / kBlockTokens] += double{head.score[t]} / kBlockTokens;
    std::vector<double> sorted = mean;
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 0; i < bits.size(); ++i) {
      double b = 0;
      if (corrected_) {
        b = std::round(o.b_max * (1 - o.gamma * (1 - Rank(sorted, mean[i]))));
      } else {
        b = o.b_max * (1 - o.gamma * mean[i] / head.chain.tokens);
      }
      bits[i] = static_cast<float>(std::clamp(b, o.b_min, o.b_max));
    }
  }

  // 0 the least, 1 the most, equals in the middle of their places; a lone tile is the most.
  static double Rank(const std::vector<double>& sorted, double x) {
    if (sorted.size() < 2) return 1;
    const auto [first, last] = std::equal_range(sorted.begin(), sorted.end(), x);
    const double place =
        static_cast<double>(first - sorted.begin()) + static_cast<double>(last - first - 1) / 2;
    return place / static_cast<double>(sorted.size() - 1);
  }

  const bool corrected_;
};

Result<std::unique_ptr<Policy>> Make(const PolicyOptions& options, bool corrected) {
  const PrintedOptions& o = options.printed;
  if (!(o.b_min >= 0 && o.b_min <= o.b_max && o.b_max <= 16))
    return Invalid("policy.printed_b_min and printed_b_max are not 0 <= b_min <= b_max <= 16");
  if (!std::isfinite(o.gamma) || !std::isfinite(o.lambda) || !std::isfinite(o.tau))
    return Invalid("policy.printed_gamma, printed_lambda or printed_tau is not finite");
  return std::unique_ptr<Policy>(std::make_unique<Printed>(options, corrected));
}

}  // namespace

Result<std::unique_ptr<Policy>> MakePrintedPolicy(const PolicyOptions& options) {
  return Make(options, false);
}
Result<std::unique_ptr<Policy>> MakePrintedCorrectedPolicy(const PolicyOptions& options) {
  return Make(options, true);
}

}  // namespace dyna
