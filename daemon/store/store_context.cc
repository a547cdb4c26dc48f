#include "daemon/store/store_context.h"

namespace dyna {

StoreContext::StoreContext(uint64_t tenant_id, Fingerprint id, ContextSpec context_spec,
                           const LearnerOptions& learner_options)
    : tenant(tenant_id),
      fingerprint(id),
      spec(std::move(context_spec)),
      learner(spec, id, learner_options),
      normaliser(spec),
      energies(spec),
      traffic(spec, learner_options.omega_windows) {
  for (const Rope& r : spec.ropes) {
    ropes.emplace_back();
    if (r.kind != RopeKind::kNone) ropes.back().emplace(r);
  }
}

Frame StoreContext::frame() const { return spec.attend ? Frame::kPost : Frame::kPre; }

const Basis* StoreContext::Find(BasisName name) const {
  auto it = name == 0 ? bases.end() : bases.find(name);
  return it == bases.end() ? nullptr : it->second.basis.get();
}

std::shared_ptr<const Basis> StoreContext::Share(BasisName name) const {
  auto it = name == 0 ? bases.end() : bases.find(name);
  return it == bases.end() ? nullptr : it->second.basis;
}

void StoreContext::AddBasis(std::shared_ptr<const Basis> basis) {
  const BasisName name = basis->name();
  bases.try_emplace(name).first->second.basis = std::move(basis);
}

uint64_t StoreContext::basis_bytes() const {
  uint64_t sum = 0;
  for (const auto& [name, use] : bases) sum += use.basis->bytes().size();
  return sum;
}

record::ContextRow StoreContext::Row() const { return {tenant, fingerprint, spec, omega}; }

Status StoreContext::SetOmega(std::vector<float> flat, OmegaGrain grain) {
  std::vector<std::vector<CellSensitivity>> cells;
  size_t at = 0;
  for (const LayerShape& layer : spec.layers)
    for (auto& cell : cells.emplace_back(layer.kv_heads)) {
      if (at + 4 > flat.size()) return Invalid("omega: too short");
      cell = {flat[at], flat[at + 1], flat[at + 2], flat[at + 3]};
      at += 4;
    }
  if (grain != OmegaGrain::kOff) {
    auto made = Sensitivity::Make(spec, std::move(cells), grain);
    if (!made.ok()) return made.status();
    sensitivity = std::move(*made);
    ladders_.clear();
  }
  omega = std::move(flat);
  return {};
}

BasisName StoreContext::CurrentBasis(int layer) const {
  const auto& basis = learner.basis(layer);
  return basis ? basis->name() : 0;
}

std::shared_ptr<const LadderSet> StoreContext::Ladders(const Policy& policy, int layer,
                                                       BasisName basis, QualityClass quality) {
  auto& slot = ladders_[{layer, basis, quality}];
  if (slot) return slot;
  LayerModel model;
  model.shape = &spec.layers[static_cast<size_t>(layer)];
  model.dtype = spec.dtype;
  model.masks = spec.masks;
  model.basis = Share(basis);
  if (sensitivity) model.omega = sensitivity->layer(layer);
  auto made = policy.MakeLadders(model, quality);
  if (made.ok()) slot = *made;
  return slot;  // null: the policy cannot serve this class here
}

}  // namespace dyna
