#include "client/staging_pool.h"

#include <utility>
#include <vector>

namespace dyna {
namespace {
constexpr uint64_t kAlign = 4096;
}

void ClientStaging::OnMade(Result<std::shared_ptr<RegisteredRegion>> region) {
  making_ = false;
  if (!region.ok()) return EndAll(region.status());
  region_ = std::move(*region);
  free_.clear();
  free_[0] = region_->region->size();
  Serve();
}

std::shared_ptr<ClientStaging::Slice> ClientStaging::TryTake(uint64_t bytes) {
  bytes = (bytes + kAlign - 1) / kAlign * kAlign;
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second < bytes) continue;
    const uint64_t offset = it->first, left = it->second - bytes;
    free_.erase(it);
    if (left > 0) free_[offset + bytes] = left;
    auto* slice = new Slice{region_, offset, bytes};
    return std::shared_ptr<Slice>(slice, [weak = weak_from_this()](Slice* s) {
      if (auto self = weak.lock()) self->GiveBack(*s);
      delete s;
    });
  }
  return nullptr;
}

void ClientStaging::GiveBack(const Slice& slice) {
  if (slice.region != region_) return;  // of a region that was retired since
  auto next = free_.emplace(slice.offset, slice.bytes).first;
  if (auto after = std::next(next);
      after != free_.end() && next->first + next->second == after->first) {
    next->second += after->second;
    free_.erase(after);
  }
  if (next != free_.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == next->first) {
      before->second += next->second;
      free_.erase(next);
    }
  }
  Serve();
}

void ClientStaging::Take(uint64_t bytes, TimePoint deadline, Waiter got) {
  if (bytes > capacity_)
    return got(TooLarge("staging: " + std::to_string(bytes) + " bytes, staging_bytes is " +
                        std::to_string(capacity_)));
  const auto at = waiting_.insert(waiting_.end(), Waiting{bytes, std::move(got)});
  at->timer = timers_.Add(deadline, [this, at] {
    End(at, Status(StatusCode::kDeadline, "no room in the staging region within the deadline"));
    Serve();  // the next one may need less
  });
  Serve();
}

void ClientStaging::Serve() {
  if (serving_ || making_ || waiting_.empty()) return;  // a waiter may give something back
  if (!region_ || region_->retired()) {
    making_ = true;
    return make_(capacity_, [weak = weak_from_this()](auto region) {
      if (auto self = weak.lock()) self->OnMade(std::move(region));
    });
  }
  serving_ = true;
  while (!waiting_.empty()) {
    auto slice = TryTake(waiting_.front().bytes);
    if (!slice) break;
    End(waiting_.begin(), std::move(slice));
  }
  serving_ = false;
}

void ClientStaging::End(std::list<Waiting>::iterator waiting, Result<std::shared_ptr<Slice>> with) {
  const Waiter got = std::move(waiting->got);
  timers_.Cancel(waiting->timer);
  waiting_.erase(waiting);
  got(std::move(with));
}

void ClientStaging::EndAll(const Status& status) {
  auto ending = std::exchange(waiting_, {});  // what asks from inside of `got` waits anew
  for (Waiting& w : ending) {
    timers_.Cancel(w.timer);
    w.got(status);
  }
}

void ClientStaging::Stop() { EndAll(Status(StatusCode::kCancelled, "the client is closed")); }

}  // namespace dyna
