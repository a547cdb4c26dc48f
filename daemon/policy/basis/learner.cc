#include "daemon/policy/basis/learner.h"

#include <algorithm>
#include <string>

#include "daemon/policy/log2_byte.h"

namespace dyna {
namespace {

constexpr uint32_t kRowTokens = 1024;  // a row of `meta` every so many

}  // namespace

Result<std::shared_ptr<const Basis>> DueBasis::Make() const {
  DYNA_ASSIGN_OR_RETURN(std::shared_ptr<const Basis> made, BuildBasis(moments, request));
  if (!current) return made;
  DYNA_ASSIGN_OR_RETURN(const double now, PromisedError(*current, moments, request));
  DYNA_ASSIGN_OR_RETURN(const double then, PromisedError(*made, moments, request));
  if (then > (1 - min_gain) * now) made.reset();
  return made;
}

BasisLearner::BasisLearner(const ContextSpec& spec, Fingerprint fingerprint,
                           const LearnerOptions& options)
    : spec_(spec), fingerprint_(fingerprint), options_(options) {
  for (size_t l = 0; l < spec_.layers.size(); ++l) {
    const LayerShape& shape = spec_.layers[l];
    Layer& layer = layers_.emplace_back();
    layer.shape_learns =
        options_.enabled && shape.kind != LayerKind::kOpaque && DTypeBytes(spec_.dtype) > 1;
    if (!layer.shape_learns) continue;
    layer.moments = LayerMoments(static_cast<int>(l), shape.kv_heads, shape.head_dim,
                                 FrameOf(spec_, static_cast<int>(l)));
  }
}

bool BasisLearner::Provisional(const Layer& layer) const {
  return layer.basis && layer.basis->info().source == BasisSource::kKeys;
}

bool BasisLearner::WantsTile(int layer, uint64_t block) const {
  const Layer& l = at(layer);
  if (!l.shape_learns || l.made >= options_.bases_per_layer) return false;
  if (!l.basis) return true;
  return MixHash(block, 0x6261736973) % std::max(options_.sample_every, 1u) == 0;
}

bool BasisLearner::WantsQueries(int layer) const {
  const Layer& l = at(layer);
  return l.shape_learns && l.made < options_.bases_per_layer;
}

Status BasisLearner::AddTile(int layer, int head_begin, std::span<const uint32_t> count,
                             std::span<const float> sum, std::span<const float> scatter) {
  Layer& l = at(layer);
  if (!l.shape_learns) return {};
  DYNA_RETURN_IF_ERROR(l.moments.AddTile(head_begin, count, sum, scatter));
  // A full window waits for Due; one that nobody asks for does not grow for ever.
  if (l.moments.tokens() >= 2 * options_.window_tokens) {
    l.moments.Halve();
    l.saved_at = std::min(l.saved_at, l.moments.tokens());
  }
  return {};
}

Status BasisLearner::AddQueries(int layer, int head_begin, int heads,
                                std::span<const float> queries, int window, int q_heads,
                                uint32_t first_position) {
  const LayerShape& shape = spec_.layers[static_cast<size_t>(layer)];
  const Rope* rope = shape.rope < spec_.ropes.size() ? &spec_.ropes[shape.rope] : nullptr;
  SawChain(first_position + static_cast<uint32_t>(std::max(window, 0)));
  Layer& l = at(layer);
  if (!WantsQueries(layer)) return {};
  return l.moments.AddQueries(head_begin, heads, queries, window, q_heads, first_position, rope);
}

Status BasisLearner::AddQuerySums(int layer, int head_begin, std::span<const uint32_t> count,
                                  std::span<const float> second) {
  if (!WantsQueries(layer)) return {};
  return at(layer).moments.AddQuerySums(head_begin, count, second);
}

void BasisLearner::SawChain(uint32_t tokens) {
  longest_chain_ = std::max(longest_chain_, std::min(tokens, 1u << 30));
}

std::optional<DueBasis> BasisLearner::Due(int layer) {
  Layer& l = at(layer);
  if (!l.shape_learns || l.in_flight || l.made >= options_.bases_per_layer) return std::nullopt;
  const LayerShape& shape = spec_.layers[static_cast<size_t>(layer)];
  const uint32_t tokens = l.moments.tokens(), queries = l.moments.queries();
  const bool enough_queries = queries >= options_.queries_per_dim * shape.head_dim;
  bool due;
  if (!l.basis) {
    due = enough_queries
              ? tokens >= options_.min_tokens
              : tokens >= (queries == 0 ? options_.keys_only_tokens : options_.window_tokens);
  } else if (Provisional(l)) {
    due = enough_queries && tokens >= options_.min_tokens;
  } else {
    due = enough_queries && tokens >= options_.window_tokens;
  }
  if (!due) return std::nullopt;
  l.in_flight = true;
  DueBasis out;
  out.moments = l.moments;
  out.current = l.basis;
  out.min_gain = options_.min_gain;
  out.request = {fingerprint_, shape,
                 shape.rope < spec_.ropes.size() ? spec_.ropes[shape.rope] : Rope{}, longest_chain_,
                 spec_.attend};
  return out;
}

void BasisLearner::Done(int layer, const Result<std::shared_ptr<const Basis>>& made) {
  Layer& l = at(layer);
  l.in_flight = false;
  if (!made.ok() || !*made) {
    l.moments.Halve();  // the window moves on before it is asked again
    l.saved_at = std::min(l.saved_at, l.moments.tokens());
    return;
  }
  l.basis = *made;
  ++l.made;
  l.saved_at = 0;
  if (Provisional(l)) return;  // its C waits for queries
  l.moments = LayerMoments(layer, l.moments.kv_heads(), l.moments.head_dim(), l.moments.frame());
}

void BasisLearner::SetProfileBasis(int layer, std::shared_ptr<const Basis> basis) {
  at(layer).basis = std::move(basis);
}

size_t BasisLearner::memory_bytes() const {
  size_t bytes = 0;
  for (const Layer& l : layers_) bytes += l.moments.memory_bytes();
  return bytes;
}

bool BasisLearner::RowDue(int layer) const {
  const Layer& l = at(layer);
  return l.shape_learns && l.moments.tokens() >= l.saved_at + kRowTokens;
}

record::LearnerRow BasisLearner::Row(int layer, uint64_t tenant) {
  Layer& l = at(layer);
  l.saved_at = l.moments.tokens();
  return {tenant, fingerprint_, static_cast<uint16_t>(layer), LayerMoments::kVersion,
          l.moments.Serialize()};
}

Status BasisLearner::Restore(const record::LearnerRow& row) {
  if (row.version != LayerMoments::kVersion)
    return Unsupported("moments.version " + std::to_string(row.version));
  if (row.layer >= layers_.size()) return Invalid("moments.layer " + std::to_string(row.layer));
  Layer& l = at(row.layer);
  DYNA_ASSIGN_OR_RETURN(LayerMoments moments, LayerMoments::Parse(row.state));
  if (!l.shape_learns || moments.layer() != row.layer ||
      moments.kv_heads() != l.moments.kv_heads() || moments.head_dim() != l.moments.head_dim() ||
      moments.frame() != l.moments.frame())
    return Invalid("moments of layer " + std::to_string(row.layer) + " are of another shape");
  l.moments = std::move(moments);
  l.saved_at = l.moments.tokens();
  return {};
}

void BasisLearner::RestoreBasis(int layer, std::shared_ptr<const Basis> basis) {
  Layer& l = at(layer);
  l.made = std::max(l.made, 1u);
  l.basis = std::move(basis);
}

}  // namespace dyna
