// A region that the library copies plain memory through, handed out in pieces. Lives on the loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>

#include "client/region_table.h"
#include "schemas/status.h"

namespace dyna {

class StagingPool : public std::enable_shared_from_this<StagingPool> {
 public:
  using Made = std::function<void(Result<std::shared_ptr<RegisteredRegion>>)>;
  using MakeRegion = std::function<void(uint64_t bytes, Made made)>;
  StagingPool(uint64_t bytes, MakeRegion make) : capacity_(bytes), make_(std::move(make)) {}

  // A piece of the region, given back when the last pointer to it goes (on the loop).
  struct Slice {
    std::shared_ptr<RegisteredRegion> region;
    uint64_t offset = 0, bytes = 0;
    std::byte* data() const { return region->region->bytes().data() + offset; }
  };
  using Waiter = std::function<void(Result<std::shared_ptr<Slice>>)>;

  uint64_t capacity() const { return capacity_; }
  // Runs `got` now or when room was given back, in order of asking. TOO_LARGE above capacity.
  void Take(uint64_t bytes, Waiter got);
  // What waits ends CANCELLED.
  void Stop();

 private:
  std::shared_ptr<Slice> TryTake(uint64_t bytes);
  void OnMade(Result<std::shared_ptr<RegisteredRegion>> region);
  void GiveBack(const Slice& slice);
  void Serve();

  const uint64_t capacity_;
  MakeRegion make_;
  std::shared_ptr<RegisteredRegion> region_;         // replaced when it is retired
  std::map<uint64_t, uint64_t> free_;                // offset -> bytes, neighbours merged
  std::deque<std::pair<uint64_t, Waiter>> waiting_;  // bounded by the calls that may be queued
  bool serving_ = false, making_ = false;
};

}  // namespace dyna
