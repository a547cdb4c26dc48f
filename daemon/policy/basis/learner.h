// When a context learns (policy 2): which blocks feed the moments, when a layer's basis is due,
// and whether a newer one is worth having. The work itself is the caller's, on a codec thread:
//
//   if (learner.WantsTile(layer, block)) -> Backend::Moments -> learner.AddTile(...)
//   learner.AddQueries(...) for every query window
//   if (auto due = learner.Due(layer)) -> codec thread: due->Make() -> learner.Done(layer, result)
//
// Thread rule: one (tenant, context); belongs to the loop. Due is a copy and travels.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "daemon/policy/basis/builder.h"
#include "daemon/policy/basis/moments.h"
#include "daemon/policy/options.h"
#include "schemas/record.h"

namespace dyna {

// A basis to be made, away from the loop.
struct DueBasis {
  LayerMoments moments;
  BasisRequest request;
  std::shared_ptr<const Basis> current;  // null: the first
  double min_gain = 0;
  // The basis, or null when it does not promise enough. INVALID: the moments are degenerate.
  Result<std::shared_ptr<const Basis>> Make() const;
};

class BasisLearner {
 public:
  BasisLearner(const ContextSpec& spec, Fingerprint fingerprint, const LearnerOptions& options);

  bool WantsTile(int layer, uint64_t block) const;  // `block`: of its hash
  bool WantsQueries(int layer) const;
  Status AddTile(int layer, int head_begin, std::span<const uint32_t> count,
                 std::span<const float> sum, std::span<const float> scatter);
  // As LayerMoments::AddQueries; also notes how long the chain is.
  Status AddQueries(int layer, int head_begin, int heads, std::span<const float> queries,
                    int window, int q_heads, uint32_t first_position);
  // The same from sums that a codec thread made (LayerMoments::AddQuerySums).
  Status AddQuerySums(int layer, int head_begin, std::span<const uint32_t> count,
                      std::span<const float> second);
  void SawChain(uint32_t tokens);

  // At most one at a time a layer; nothing when one is in flight or it is not time.
  std::optional<DueBasis> Due(int layer);
  // Ends what Due began. A null basis or a failure restarts the window.
  void Done(int layer, const Result<std::shared_ptr<const Basis>>& made);
  // The operator's or client's profile: learned ones must beat it.
  void SetProfileBasis(int layer, std::shared_ptr<const Basis> basis);

  const std::shared_ptr<const Basis>& basis(int layer) const { return at(layer).basis; }
  uint32_t bases_made(int layer) const { return at(layer).made; }
  uint32_t tokens_seen(int layer) const { return at(layer).moments.tokens(); }
  uint32_t queries_seen(int layer) const { return at(layer).moments.queries(); }
  size_t memory_bytes() const;

  // `meta`: one row a layer, due every 1,024 tokens; losing one starts its learning again.
  bool RowDue(int layer) const;
  record::LearnerRow Row(int layer, uint64_t tenant);
  Status Restore(const record::LearnerRow& row);
  // A learned basis that was kept: the newest of the layer.
  void RestoreBasis(int layer, std::shared_ptr<const Basis> basis);

 private:
  struct Layer {
    LayerMoments moments;  // of the next basis
    std::shared_ptr<const Basis> basis;
    uint32_t made = 0;      // learned ones
    uint32_t saved_at = 0;  // tokens when the last row was made
    bool in_flight = false;
    bool shape_learns = false;  // compressed at all
  };
  // Made of keys alone: replaced as soon as there are queries.
  bool Provisional(const Layer& layer) const;
  const Layer& at(int layer) const { return layers_[static_cast<size_t>(layer)]; }
  Layer& at(int layer) { return layers_[static_cast<size_t>(layer)]; }

  ContextSpec spec_;
  Fingerprint fingerprint_;
  LearnerOptions options_;
  uint32_t longest_chain_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace dyna
