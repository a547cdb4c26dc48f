// The regions of a client, of the host and of a GPU: found by address when a call is made
// (addresses of the two never meet), registered with every daemon that the client connects to.
//
// RegionTable: any thread. RegisteredRegion's connection fields: the loop only.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "client/gpu_region.h"
#include "client/transport/region.h"

namespace dyna {

struct RegisteredRegion {
  // `gone` runs in the destructor, on whichever thread that is.
  using Gone = std::function<void(RegisteredRegion&)>;
  RegisteredRegion(std::shared_ptr<Region> r, Gone on_gone)
      : region(std::move(r)), gone(std::move(on_gone)) {}
  RegisteredRegion(std::shared_ptr<GpuRegion> r, Gone on_gone)
      : gpu(std::move(r)), gone(std::move(on_gone)) {}
  ~RegisteredRegion() { gone(*this); }
  RegisteredRegion(const RegisteredRegion&) = delete;
  RegisteredRegion& operator=(const RegisteredRegion&) = delete;

  // Some call ended IN_DOUBT: the daemon may still touch it.
  bool retired() const { return retired_.load(std::memory_order_relaxed); }
  void Retire() { retired_.store(true, std::memory_order_relaxed); }

  bool on_device() const { return gpu != nullptr; }
  std::byte* base() const { return gpu ? gpu->data() : region->bytes().data(); }
  uint64_t size() const { return gpu ? gpu->size() : region->size(); }
  // What a daemon is told of it; of the host's with the descriptor that travels beside it.
  Result<wire::RegisterRegion> Describe(std::vector<UniqueFd>* fds) const {
    if (gpu) return gpu->description();
    DYNA_ASSIGN_OR_RETURN(UniqueFd fd, region->DuplicateFd());
    fds->push_back(std::move(fd));
    wire::RegisterRegion m;
    m.size = region->size();
    return m;
  }

  const std::shared_ptr<Region> region;  // of the host, or
  const std::shared_ptr<GpuRegion> gpu;
  const Gone gone;
  uint32_t id = 0;  // the daemon's name for it, on connection `epoch`
  uint64_t epoch = 0;

 private:
  std::atomic<bool> retired_{false};
};

class RegionTable {
 public:
  void Add(const std::shared_ptr<RegisteredRegion>& region) {
    std::lock_guard lock(mutex_);
    by_base_[region->base()] = {region->size(), region};
  }
  // From its destructor. A later registration of the same memory stays.
  void Remove(const RegisteredRegion& region) {
    std::lock_guard lock(mutex_);
    const auto it = by_base_.find(region.base());
    if (it != by_base_.end() && it->second.region.expired()) by_base_.erase(it);
  }
  // From now on nobody finds it.
  void Take(const RegisteredRegion& region) {
    std::lock_guard lock(mutex_);
    const auto it = by_base_.find(region.base());
    if (it != by_base_.end() && it->second.region.lock().get() == &region) by_base_.erase(it);
  }
  // The region that holds all of `memory`, or null.
  std::shared_ptr<RegisteredRegion> Find(std::span<const std::byte> memory) const {
    std::lock_guard lock(mutex_);
    auto it = by_base_.upper_bound(memory.data());
    if (it == by_base_.begin()) return nullptr;
    --it;
    const auto offset = static_cast<uint64_t>(memory.data() - it->first);
    const uint64_t size = it->second.size;
    if (offset > size || memory.size() > size - offset) return nullptr;
    return it->second.region.lock();
  }
  std::vector<std::shared_ptr<RegisteredRegion>> All() const {
    std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<RegisteredRegion>> all;
    for (const auto& [base, entry] : by_base_)
      if (auto region = entry.region.lock()) all.push_back(std::move(region));
    return all;
  }

 private:
  struct Entry {
    uint64_t size = 0;
    std::weak_ptr<RegisteredRegion> region;
  };
  mutable std::mutex mutex_;
  std::map<const std::byte*, Entry> by_base_;
};

}  // namespace dyna
