// dynamickv: DynamicKV (arXiv 2412.14838). Scores as SnapKV's over the last W = 8 queries (pooled,
// kernel 7). Every layer first holds at most 10 x base candidates of each head, base = C - W; after
// every fourth layer the best base x layers x heads of all candidates so far are counted by layer,
// the counts set the layers' budgets (their sum stays base a layer), and all layers so far are cut
// to them. So it is one threshold on attention over all layers, found on the way up.
//
// Statistics: a `query_window` report of the last 8 queries, or `column_mass`. Decided once every
// full layer has been reported. Its code max-pools or mean-pools by script: mean here.
// Weaker than the paper: kv heads where it has query heads, a group reduced by max (or by the
// worker); what layers compare is attention relative to a uniform share with the sinks taken out,
// which is comparable over layers where raw attention is only assumed to be. The pinned tokens are
// within C.
#include <algorithm>
#include <utility>

#include "daemon/policy/policies.h"
#include "daemon/policy/token_policy.h"

namespace dyna {
namespace {

constexpr size_t kMostCandidates = 10;  // x base; the paper's r_max
constexpr size_t kLayersBetween = 4;    // the paper's m

// One full layer: each head's candidates, best first, of which the first `budget` count.
struct LayerCandidates {
  size_t layer = 0, budget = 0;
  std::vector<std::vector<std::pair<float, uint32_t>>> heads;
};

// Cuts `layers` to budgets whose mean is `base`, by the counts of the best base x heads of each.
void Rebalance(std::span<LayerCandidates> layers, size_t base) {
  std::vector<std::pair<float, size_t>> all;  // score, place in `layers`
  size_t best = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    best += base * layers[i].heads.size();
    for (const auto& head : layers[i].heads)
      for (size_t c = 0; c < std::min(head.size(), layers[i].budget); ++c)
        all.emplace_back(head[c].first, i);
  }
  best = std::min(best, all.size());
  std::nth_element(all.begin(), all.begin() + static_cast<long>(best), all.end(),
                   [](const auto& a, const auto& b) {
                     return a.first != b.first ? a.first > b.first : a.second < b.second;
                   });
  std::vector<double> count(layers.size());
  for (size_t i = 0; i < best; ++i)
    count[all[i].second] += 1.0 / static_cast<double>(layers[all[i].second].heads.size());
  double sum = 0;
  for (double c : count) sum += c;
  if (sum == 0) return;
  size_t left = base * layers.size();
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto share =
        static_cast<size_t>(count[i] / sum * static_cast<double>(base * layers.size()) + 1e-9);
    const size_t budget = i + 1 < layers.size() ? std::min(share, left) : left;
    left -= budget;
    layers[i].budget = std::min(layers[i].budget, budget);
  }
}

class DynamicKv final : public TokenPolicy {
 public:
  using TokenPolicy::TokenPolicy;
  std::string_view name() const override { return "dynamickv"; }
  ScoreSource scores() const override { return ScoreSource::kReports; }

  Status SelectLive(const ChainView& chain, ChainChoice* choice) const override {
    DYNA_RETURN_IF_ERROR(Begin(chain, choice));
    const uint32_t budget = Budget(chain), pinned = std::min(chain.pinned, chain.tokens);
    if (budget >= chain.tokens) return {};
    for (size_t l = 0; l < choice->live.size(); ++l)
      if (chain.spec->layers[l].kind == LayerKind::kFull && !Decides(chain, static_cast<int>(l)))
        return {};
    const uint32_t window = std::min(Window(8), budget - std::min(budget, pinned));
    const size_t base = budget - std::min(budget, pinned + window);
    std::vector<LayerCandidates> layers;
    for (size_t l = 0; l < choice->live.size(); ++l) {
      if (!Decides(chain, static_cast<int>(l))) continue;
      layers.push_back(CandidatesOf(chain, l, pinned, window, base));
      if (layers.size() % kLayersBetween == 0) Rebalance(layers, base);
    }
    if (layers.size() % kLayersBetween != 0) Rebalance(layers, base);
    for (const LayerCandidates& layer : layers) Keep(chain, layer, pinned, window, choice);
    return {};
  }

 private:
  LayerCandidates CandidatesOf(const ChainView& chain, size_t layer, uint32_t pinned,
                               uint32_t window, size_t base) const {
    LayerCandidates out;
    out.layer = layer;
    out.budget = std::min<size_t>(kMostCandidates * base, chain.tokens - pinned - window);
    for (int h = 0; h < chain.spec->layers[layer].kv_heads; ++h) {
      const HeadTokens head = HeadOf(chain, static_cast<int>(layer), h);
      const std::vector<float> pooled = Pool(head.score, Pooling::kMean, Kernel(7));
      auto& list = out.heads.emplace_back();
      for (uint32_t t = pinned; t < chain.tokens - window; ++t)
        if (head.lives(t)) list.emplace_back(pooled[t], t);
      const size_t most = std::min(out.budget, list.size());
      std::partial_sort(list.begin(), list.begin() + static_cast<long>(most), list.end(),
                        [](const auto& a, const auto& b) {
                          return a.first != b.first ? a.first > b.first : a.second < b.second;
                        });
      list.resize(most);
    }
    return out;
  }

  static void Keep(const ChainView& chain, const LayerCandidates& layer, uint32_t pinned,
                   uint32_t window, ChainChoice* choice) {
    auto& masks = choice->live[layer.layer];
    std::fill(masks.begin(), masks.end(), uint64_t{0});
    const size_t blocks = chain.tokens / kBlockTokens;
    for (size_t h = 0; h < layer.heads.size(); ++h) {
      const auto take = [&](uint32_t t) {
        masks[h * blocks + t / kBlockTokens] |= uint64_t{1} << (t % kBlockTokens);
      };
      for (uint32_t t = 0; t < pinned; ++t) take(t);
      for (uint32_t t = chain.tokens - window; t < chain.tokens; ++t) take(t);
      for (size_t c = 0; c < std::min(layer.budget, layer.heads[h].size()); ++c)
        take(layer.heads[h][c].second);
    }
  }
};

}  // namespace

Result<std::unique_ptr<Policy>> MakeDynamicKvPolicy(const PolicyOptions& options) {
  return MakeTokenPolicy<DynamicKv>(options);
}

}  // namespace dyna
