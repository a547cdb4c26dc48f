// One tenant's view of one model: its spec and tables, its bases, and what it has learned.
//
// Thread rule: the loop's. RopeTable and Basis are immutable and may be read by codec threads while
// the context lives (it lives as long as the store).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "daemon/policy/basis/learner.h"
#include "daemon/policy/basis/profile.h"
#include "daemon/policy/basis/traffic_sensitivity.h"
#include "daemon/policy/importance.h"
#include "daemon/policy/policy.h"
#include "daemon/store/disk_row.h"
#include "kernels/rope.h"
#include "schemas/context.h"
#include "schemas/record.h"

namespace dyna {

struct Tenant {
  uint64_t id = 0;
  std::string name;
  uint64_t quota = 0;    // 0: none
  uint64_t charged = 0;  // encoded bytes, resident and on disk
};

// A basis and who names it: it is kept, here and on disk, while anything does.
struct BasisUse {
  std::shared_ptr<const Basis> basis;
  uint64_t segments = 0;
  DiskRows rows;
};

struct StoreContext {
  StoreContext(uint64_t tenant_id, Fingerprint id, ContextSpec context_spec,
               const LearnerOptions& learner_options);

  const uint64_t tenant;
  const Fingerprint fingerprint;
  const ContextSpec spec;
  std::vector<std::optional<RopeTable>> ropes;  // by index; empty where the kind is none
  std::map<BasisName, BasisUse> bases;
  BasisLearner learner;
  HedgeNormaliser normaliser;
  EnergyMeans energies;
  TrafficSensitivity traffic;
  std::optional<Sensitivity> sensitivity;  // a profile's omega, or one that was learned
  std::vector<float> omega;                // the same, for the context's row
  bool profiled = false;
  bool omega_learned = false;    // from traffic since the start: a profile's replaces it
  bool learning_allowed = true;  // within the tenant's cap
  DiskRows rows;

  // counted for the status page
  uint64_t blocks = 0;
  uint64_t learned_tokens = 0, learned_queries = 0;
  double learn_seconds = 0;

  const RopeTable* rope(int layer) const {
    const auto& r = ropes[spec.layers[static_cast<size_t>(layer)].rope];
    return r ? &*r : nullptr;
  }
  // What a job on a segment of `basis` needs: undone only in frame `pre`.
  const RopeTable* rope_for(int layer, const Basis* basis) const {
    return basis != nullptr && basis->info().frame == Frame::kPre ? rope(layer) : nullptr;
  }
  Frame frame() const;  // of the bases this context learns

  const Basis* Find(BasisName name) const;  // null: 0 or unknown
  std::shared_ptr<const Basis> Share(BasisName name) const;
  void AddBasis(std::shared_ptr<const Basis> basis);
  uint64_t basis_bytes() const;
  record::ContextRow Row() const;
  // Takes up omega as it is in a row, four numbers a cell; INVALID where Sensitivity::Make says so.
  // Ladders are new then.
  Status SetOmega(std::vector<float> cells, OmegaGrain grain);

  // The ladders of a layer for a class; `basis` null: none yet. Made once each.
  std::shared_ptr<const LadderSet> Ladders(const Policy& policy, int layer, BasisName basis,
                                           QualityClass quality);
  // What new tiles of a layer are coded in.
  BasisName CurrentBasis(int layer) const;

 private:
  std::map<std::tuple<int, BasisName, QualityClass>, std::shared_ptr<const LadderSet>> ladders_;
};

}  // namespace dyna
