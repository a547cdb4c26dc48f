#include "daemon/policy/token_policy.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "daemon/policy/log2_byte.h"

namespace dyna {

bool HeadTokens::lives(uint32_t token) const {
  if (chain.live.empty()) return true;
  const auto layer_live = chain.live[static_cast<size_t>(layer)];
  if (layer_live.empty()) return true;
  const size_t blocks = chain.tokens / kBlockTokens;
  return (layer_live[static_cast<size_t>(head) * blocks + token / kBlockTokens] >>
              (token % kBlockTokens) &
          1) != 0;
}

std::vector<float> Pool(std::span<const float> x, Pooling pooling, int kernel) {
  std::vector<float> out(x.begin(), x.end());
  if (pooling == Pooling::kNone || kernel <= 1) return out;
  const auto n = static_cast<int64_t>(x.size());
  const int64_t half = kernel / 2;
  for (int64_t i = 0; i < n; ++i) {
    float sum = 0, most = 0;  // scores are >= 0, so the padding's zeros never win
    for (int64_t j = std::max<int64_t>(i - half, 0); j <= std::min(i + half, n - 1); ++j) {
      sum += x[static_cast<size_t>(j)];
      most = std::max(most, x[static_cast<size_t>(j)]);
    }
    out[static_cast<size_t>(i)] =
        pooling == Pooling::kMax ? most : sum / static_cast<float>(kernel);
  }
  return out;
}

void KeepBest(const HeadTokens& head, std::span<const float> score, uint32_t window,
              uint32_t budget, std::span<uint64_t> keep) {
  const uint32_t tokens = head.chain.tokens, pinned = std::min(head.chain.pinned, tokens);
  const auto take = [&](uint32_t t) {
    keep[t / kBlockTokens] |= uint64_t{1} << (t % kBlockTokens);
  };
  budget = std::clamp(budget, pinned, tokens);
  window = std::min(window, budget - pinned);
  uint32_t left = budget;
  std::vector<uint32_t> rest;
  for (uint32_t t = 0; t < tokens; ++t) {
    if (!head.lives(t)) continue;
    if (t < pinned || t >= tokens - window) {
      take(t);
      --left;
    } else {
      rest.push_back(t);
    }
  }
  const auto better = [&](uint32_t a, uint32_t b) {
    return score[a] != score[b] ? score[a] > score[b] : a < b;
  };
  if (left < rest.size()) {
    std::nth_element(rest.begin(), rest.begin() + left, rest.end(), better);
    rest.resize(left);
  }
  for (uint32_t t : rest) take(t);
}

Status TokenPolicy::Begin(const ChainView& chain, ChainChoice* choice) const {
  if (chain.spec == nullptr || chain.tokens == 0 || chain.tokens % kBlockTokens != 0)
    return Invalid("chain: it has no spec, no tokens or no whole blocks");
  const size_t layers = chain.spec->layers.size(), blocks = chain.tokens / kBlockTokens;
  if (chain.blocks.size() != blocks) return Invalid("chain.blocks is not of its length");
  if ((!chain.importance.empty() && chain.importance.size() != layers) ||
      (!chain.live.empty() && chain.live.size() != layers))
    return Invalid("chain: scores or masks are not of the spec's layers");
  *choice = {};
  for (size_t l = 0; l < layers; ++l) {
    const size_t heads = chain.spec->layers[l].kv_heads;
    if (!chain.importance.empty() && !chain.importance[l].empty() &&
        chain.importance[l].size() != heads * chain.tokens)
      return Invalid("chain.importance of layer " + std::to_string(l) + " is not of its shape");
    if (!chain.live.empty() && !chain.live[l].empty() && chain.live[l].size() != heads * blocks)
      return Invalid("chain.live of layer " + std::to_string(l) + " is not of its shape");
    choice->live.emplace_back(heads * blocks, ~uint64_t{0});
  }
  return {};
}

bool TokenPolicy::Decides(const ChainView& chain, int layer) const {
  const auto l = static_cast<size_t>(layer);
  if (chain.spec->layers[l].kind != LayerKind::kFull) return false;
  return scores() == ScoreSource::kNone ||
         (!chain.importance.empty() && !chain.importance[l].empty());
}

HeadTokens TokenPolicy::HeadOf(const ChainView& chain, int layer, int head) const {
  std::span<const float> score;
  if (scores() != ScoreSource::kNone)
    score = chain.importance[static_cast<size_t>(layer)].subspan(
        static_cast<size_t>(head) * chain.tokens, chain.tokens);
  return {chain, layer, head, score};
}

uint32_t TokenPolicy::Budget(const ChainView& chain) const {
  return static_cast<uint32_t>(std::lround(options_.drop.keep * chain.tokens));
}

Status HeadPolicy::SelectLive(const ChainView& chain, ChainChoice* choice) const {
  DYNA_RETURN_IF_ERROR(Begin(chain, choice));
  const size_t blocks = chain.tokens / kBlockTokens;
  if (Budget(chain) >= chain.tokens) return {};
  for (size_t l = 0; l < choice->live.size(); ++l) {
    const int layer = static_cast<int>(l);
    if (!Decides(chain, layer)) continue;
    auto& masks = choice->live[l];
    std::fill(masks.begin(), masks.end(), uint64_t{0});
    for (int head = 0; head < chain.spec->layers[l].kv_heads; ++head)
      SelectHead(HeadOf(chain, layer, head),
                 std::span(masks).subspan(static_cast<size_t>(head) * blocks, blocks));
  }
  return {};
}

double UniformOf(uint64_t block, int layer, int head, uint32_t token) {
  const uint64_t cell = MixHash(static_cast<uint64_t>(layer), static_cast<uint64_t>(head));
  return static_cast<double>(MixHash(MixHash(block, cell), token) >> 11) * 0x1p-53;
}

Status CheckDropOptions(const DropOptions& options) {
  if (!(options.keep >= 0 && options.keep <= 1)) return Invalid("policy.keep is not within 0..1");
  if (options.window < 0) return Invalid("policy.window is negative");
  if (options.pool < 0 || (options.pool != 0 && options.pool % 2 == 0))
    return Invalid("policy.pool is " + std::to_string(options.pool) +
                   ", not 0 or an odd number of tokens");
  return {};
}

}  // namespace dyna
