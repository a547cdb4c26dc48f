// Bases that came from the daemon, kept for what is decoded as stored. Bounded: the one that was
// used longest ago goes first. Lives on the loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>

#include "kernels/basis.h"

namespace dyna {

class BasisCache {
 public:
  explicit BasisCache(size_t max_bytes = 256u << 20) : max_bytes_(max_bytes) {}

  std::shared_ptr<const Basis> Find(BasisName name) {
    const auto it = index_.find(name);
    if (it == index_.end()) return nullptr;
    order_.splice(order_.begin(), order_, it->second);
    return order_.front();
  }
  void Add(std::shared_ptr<const Basis> basis) {
    if (Find(basis->name())) return;
    bytes_ += basis->memory_bytes();
    order_.push_front(std::move(basis));
    index_[order_.front()->name()] = order_.begin();
    while (bytes_ > max_bytes_ && order_.size() > 1) {
      bytes_ -= order_.back()->memory_bytes();
      index_.erase(order_.back()->name());
      order_.pop_back();
    }
  }
  size_t size() const { return order_.size(); }

 private:
  using Order = std::list<std::shared_ptr<const Basis>>;
  const size_t max_bytes_;
  size_t bytes_ = 0;
  Order order_;
  std::unordered_map<BasisName, Order::iterator> index_;
};

}  // namespace dyna
