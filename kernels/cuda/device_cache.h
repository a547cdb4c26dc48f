// Device copies of the bases and ropes that jobs name, kept from batch to batch.
//
// Thread rule: belongs to one thread at a time.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cuda/device_basis.h"

namespace dyna::cuda {

// Device copies of what jobs name, kept from batch to batch.
class DeviceCache {
 public:
  Result<const DeviceBasis*> Get(const Basis* basis) {
    if (basis == nullptr) return nullptr;
    auto& held = bases_[basis->name()];
    if (held == nullptr) {
      // Its own copy: the caller's may be gone before the next batch.
      DYNA_ASSIGN_OR_RETURN(std::shared_ptr<const Basis> copy, Basis::Parse(basis->bytes()));
      DYNA_ASSIGN_OR_RETURN(held, DeviceBasis::Create(std::move(copy)));
    }
    return held.get();
  }
  Result<const DeviceRope*> Get(const RopeTable* rope) {
    if (rope == nullptr) return nullptr;
    if (rope == last_.first) return last_.second;  // a chain names one again and again
    auto& held = ropes_[{rope->kind(), {rope->inv_freq().begin(), rope->inv_freq().end()}}];
    if (held == nullptr) {
      DYNA_ASSIGN_OR_RETURN(held, DeviceRope::Create(std::make_shared<const RopeTable>(*rope)));
    }
    last_ = {rope, held.get()};
    return held.get();
  }
  void Trim() {  // between calls, and before each: the last one's ropes may be gone
    last_ = {};
    if (bases_.size() > kCachedBases) bases_.clear();
    if (ropes_.size() > kCachedRopes) ropes_.clear();
  }

 private:
  static constexpr size_t kCachedBases = 256, kCachedRopes = 64;
  std::map<BasisName, std::shared_ptr<const DeviceBasis>> bases_;
  std::pair<const RopeTable*, const DeviceRope*> last_{};
  std::map<std::pair<RopeKind, std::vector<double>>, std::shared_ptr<const DeviceRope>> ropes_;
};

}  // namespace dyna::cuda
