// A region that the library copies plain memory through, handed out in pieces. Lives on the loop.
// (The daemon has a StagingPool, and tests have both.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>

#include "client/base/deadline_queue.h"
#include "client/region_table.h"
#include "schemas/status.h"

namespace dyna {

class ClientStaging : public std::enable_shared_from_this<ClientStaging> {
 public:
  using Made = std::function<void(Result<std::shared_ptr<RegisteredRegion>>)>;
  using MakeRegion = std::function<void(uint64_t bytes, Made made)>;
  ClientStaging(uint64_t bytes, Executor& executor, const Clock& clock, MakeRegion make)
      : capacity_(bytes), make_(std::move(make)), timers_(executor, clock) {}

  // A piece of the region, given back when the last pointer to it goes (on the loop).
  struct Slice {
    std::shared_ptr<RegisteredRegion> region;
    uint64_t offset = 0, bytes = 0;
    std::byte* data() const { return region->region->bytes().data() + offset; }
  };
  using Waiter = std::function<void(Result<std::shared_ptr<Slice>>)>;

  uint64_t capacity() const { return capacity_; }
  // Runs `got` now or when room was given back, in order of asking. TOO_LARGE above capacity;
  // DEADLINE when there was no room until then.
  void Take(uint64_t bytes, TimePoint deadline, Waiter got);
  // What waits ends CANCELLED.
  void Stop();

 private:
  struct Waiting {
    uint64_t bytes = 0;
    Waiter got;
    DeadlineQueue::TimerId timer = 0;
  };
  std::shared_ptr<Slice> TryTake(uint64_t bytes);
  void End(std::list<Waiting>::iterator waiting, Result<std::shared_ptr<Slice>> with);
  void EndAll(const Status& status);
  void OnMade(Result<std::shared_ptr<RegisteredRegion>> region);
  void GiveBack(const Slice& slice);
  void Serve();

  const uint64_t capacity_;
  MakeRegion make_;
  std::shared_ptr<RegisteredRegion> region_;  // replaced when it is retired
  std::map<uint64_t, uint64_t> free_;         // offset -> bytes, neighbours merged
  std::list<Waiting> waiting_;                // a window of each call's pieces at most
  DeadlineQueue timers_;
  bool serving_ = false, making_ = false;
};

}  // namespace dyna
