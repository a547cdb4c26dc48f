#include <utility>

#include "client/client.h"
#include "client/core.h"

namespace dyna {

uint32_t Lease::run() const { return state_ ? state_->run : 0; }
Shard Lease::shard() const { return state_ ? state_->shard : Shard{}; }
uint64_t Lease::id() const { return state_ ? state_->id : 0; }
bool Lease::lost() const { return state_ && state_->lost; }
const std::vector<wire::LookupHit>& Lease::hits() const {
  static const std::vector<wire::LookupHit> kNone;
  return state_ ? state_->hits : kNone;
}

void Lease::Release() {
  const auto lease = std::exchange(state_, nullptr);
  if (!lease || lease->id == 0 || lease->released.exchange(true)) return;
  const auto core = lease->core.lock();
  if (!core || !core->CheckUsable().ok()) return;
  core->Post([core, lease] {
    core->ForgetLease(lease->id);
    Call call;
    call.request = wire::ReleaseLease{lease->id};
    call.epoch = lease->epoch;
    call.clean_up = true;
    call.deadline = TimePoint::max();  // the end of its connection ends it
    call.done = [](const Result<wire::Message>&) {};
    core->Submit(std::move(call));
  });
}

}  // namespace dyna
