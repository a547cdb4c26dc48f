#include "client/flights.h"

#include <algorithm>
#include <cassert>
#include <string>
#include <utility>

namespace dyna {
namespace {

template <typename... F>
struct Overload : F... {
  using F::operator()...;
};

constexpr const char* kNotSent = "no connection, or no credits, within the deadline";

uint32_t MillisUntil(TimePoint when, TimePoint now) {
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(when - now).count();
  return static_cast<uint32_t>(std::clamp<int64_t>(ms, 1, UINT32_MAX));
}

std::vector<std::byte> ControlBytes(const wire::Message& message) {
  const std::vector<uint8_t> bytes = wire::Serialize(message);
  const auto* begin = reinterpret_cast<const std::byte*>(bytes.data());
  return {begin, begin + bytes.size()};
}

}  // namespace

const Status& ReplyStatus(const wire::Message& reply) {
  static const Status kOk;
  return std::visit(
      [](const auto& m) -> const Status& {
        if constexpr (requires { m.status; })
          return m.status;
        else
          return kOk;
      },
      reply);
}

void Flights::Submit(Call call) {
  ++counters_.calls;
  auto flight = std::make_shared<Flight>();
  flight->call = std::move(call);
  Status refused = lost_for_good_;
  if (refused.ok() && !flight->call.clean_up && queue_.size() + flights_.size() >= max_calls_)
    refused = Status(StatusCode::kRetry, "more than max_calls calls at once", 1);
  if (!refused.ok()) {
    ++counters_.failed;
    flight->call.done(refused);
    return;
  }
  flight->credit = flight->call.credit_bytes();
  flight->queued = true;
  queue_.push_back(flight);
  ArmDeadline(flight);
  Pump();
}

void Flights::Open(const Wire& wire) {
  wire_ = wire;
  Pump();
}

bool Flights::Fits(const Call& call) const {
  if (credit_requests_ >= wire_.request_credits) return false;
  // One call larger than all credits goes alone; whether it may is the daemon's to say.
  return credit_bytes_ == 0 || credit_bytes_ + call.credit_bytes() <= wire_.byte_credits;
}

void Flights::Pump() {
  if (pumping_) return;
  pumping_ = true;
  while (wire_.socket != nullptr && !queue_.empty() && Fits(queue_.front()->call)) {
    FlightPtr flight = std::move(queue_.front());
    queue_.pop_front();
    flight->queued = false;
    Call& call = flight->call;
    if (call.deadline <= clock_.Now()) {  // its timer is late
      Decide(flight, Status(StatusCode::kDeadline, kNotSent));
      continue;
    }
    if (call.epoch != 0 && call.epoch != wire_.epoch) {
      Decide(flight, Status(StatusCode::kLeaseLost, "the connection that gave the lease is gone"));
      continue;
    }
    if (call.region && (call.region->retired() || call.region->epoch != wire_.epoch)) {
      Decide(flight, call.region->retired()
                         ? Status(StatusCode::kInDoubt, "the region is retired: allocate another")
                         : Invalid("region: not registered with this daemon"));
      continue;
    }
    credit_bytes_ += flight->credit;
    ++credit_requests_;
    Channel* channel = call.over_ucx && wire_.ucx != nullptr ? wire_.ucx : wire_.socket;
    Send(*channel, std::move(flight));
  }
  pumping_ = false;
}

void Flights::Urgent(Channel& channel, uint64_t epoch, Call call) {
  auto flight = std::make_shared<Flight>();
  flight->call = std::move(call);
  flight->call.epoch = epoch;
  flight->urgent = true;
  ArmDeadline(flight);
  Send(channel, std::move(flight));
}

void Flights::Send(Channel& channel, FlightPtr flight) {
  Call& call = flight->call;
  flight->id = next_id_++;
  if (call.region) {
    const uint32_t id = call.region->id;
    std::visit(Overload{[&](wire::Put& m) { m.layout.region = id; },
                        [&](wire::Fetch& m) { m.layout.region = id; }, [](auto&) {}},
               call.request);
  }
  OutFrame frame;
  frame.type = static_cast<uint8_t>(wire::TypeOf(call.request));
  frame.request_id = flight->id;
  frame.deadline_ms = MillisUntil(call.deadline, clock_.Now());
  frame.control = ControlBytes(call.request);
  frame.payload = call.payload;
  frame.fds = std::move(call.fds);
  uint64_t bytes = 0;
  for (const auto& part : call.payload) bytes += part.size();

  flights_.emplace(flight->id, flight);
  flight->sending = true;
  const Status sent = channel.Send(std::move(frame), [self = self_, flight](const Status& s) {
    flight->sending = false;
    if (*self == nullptr) return;
    if (!s.ok() && !flight->outcome && !flight->call.region) flight->outcome = s;
    (*self)->FinishIfFree(flight);
  });
  if (!sent.ok()) {
    flight->sending = false;
    Decide(flight, sent);
    return;
  }
  counters_.bytes_sent += bytes;
}

void Flights::ArmDeadline(const FlightPtr& flight) {
  flight->timer = timers_.Add(flight->call.deadline, [this, flight] { Expire(flight); });
}

void Flights::Expire(const FlightPtr& flight) {
  flight->timer = 0;
  // Until then the daemon's own answer about named memory is due, and a frame may move on.
  const TimePoint last = flight->call.deadline + kLetGo;
  const bool waited = clock_.Now() >= last;
  if (!flight->outcome) {
    if (flight->id == 0 || !flight->call.region)
      Decide(flight, Status(StatusCode::kDeadline,
                            flight->id == 0 ? kNotSent : "no answer within the deadline"));
    else if (waited)
      EndInDoubt(flight, "no answer, and the daemon may still touch the named memory");
  }
  if (!flight->call.done) return;  // it has ended
  if (!waited) {
    flight->timer = timers_.Add(last, [this, flight] { Expire(flight); });
    return;
  }
  // Its memory is the channel's as long as the frame moves, which a slow peer decides.
  if (flights_.count(flight->id) > 0 && close_)
    close_(Status(StatusCode::kDeadline, "a frame did not move within its call's deadline"));
}

void Flights::EndInDoubt(const FlightPtr& flight, const char* why) {
  flight->call.region->Retire();
  Decide(flight, Status(StatusCode::kInDoubt, why));
}

Admission Flights::OnReply(const InFrame& frame) {
  const auto found = flights_.find(frame.header.request_id);
  if (found == flights_.end() || found->second->outcome) {  // late: its caller was told already
    ReleaseLate(frame);
    return frame.header.payload_len > 0 ? Admission::Refuse() : Admission::Handled();
  }
  FlightPtr flight = found->second;
  const Result<wire::Message> reply =
      wire::Parse({reinterpret_cast<const uint8_t*>(frame.control.data()), frame.control.size()});
  if (!reply.ok()) return Admission::Close(reply.status());
  if (static_cast<uint8_t>(wire::TypeOf(*reply)) != frame.header.type)
    return Admission::Close(Invalid("a frame's type is not its message's"));
  const uint64_t bytes = frame.header.payload_len;
  if (bytes == 0) {
    Decide(flight, *reply);
    return Admission::Handled();
  }
  std::vector<std::span<std::byte>> parts;
  if (flight->call.receive) parts = flight->call.receive(*reply, bytes);
  if (parts.empty()) {
    Decide(flight, Internal("the daemon sent " + std::to_string(bytes) +
                            " bytes of payload where others were expected"));
    return Admission::Refuse();
  }
  flight->receiving = true;
  return Admission::Into(std::move(parts),
                         [self = self_, flight, message = *reply, bytes](const Status& s) {
                           flight->receiving = false;
                           if (*self == nullptr) return;
                           (*self)->counters_.bytes_received += bytes;
                           if (s.ok())
                             (*self)->Decide(flight, message);
                           else
                             (*self)->Decide(flight, s);
                         });
}

// A lease that nobody knows of would hold its blocks until it expires.
void Flights::ReleaseLate(const InFrame& frame) {
  if (frame.header.type != static_cast<uint8_t>(wire::Type::kLookupReply)) return;
  const auto reply =
      wire::Parse({reinterpret_cast<const uint8_t*>(frame.control.data()), frame.control.size()});
  const auto* lookup = reply.ok() ? std::get_if<wire::LookupReply>(&*reply) : nullptr;
  if (lookup == nullptr || lookup->lease == 0) return;
  Call call;
  call.request = wire::ReleaseLease{lookup->lease};
  call.epoch = wire_.epoch;
  call.clean_up = true;
  call.deadline = TimePoint::max();
  call.done = [](const Result<wire::Message>&) {};
  Submit(std::move(call));
}

void Flights::Decide(const FlightPtr& flight, Result<wire::Message> outcome) {
  if (!flight->outcome) flight->outcome = std::move(outcome);
  FinishIfFree(flight);
}

void Flights::FinishIfFree(const FlightPtr& flight) {
  if (!flight->outcome || flight->sending || flight->receiving || !flight->call.done) return;
  Drop(flight);
  if (!flight->outcome->ok() || !ReplyStatus(**flight->outcome).ok()) ++counters_.failed;
  auto done = std::exchange(flight->call.done, nullptr);
  Call finished = std::move(flight->call);  // its memory and region go after `done`
  done(std::move(*flight->outcome));
  Pump();
}

void Flights::Drop(const FlightPtr& flight) {
  if (flight->timer != 0) timers_.Cancel(std::exchange(flight->timer, 0));
  if (flights_.erase(flight->id) > 0 && !flight->urgent) {
    credit_bytes_ -= flight->credit;
    --credit_requests_;
  }
  if (std::exchange(flight->queued, false))
    queue_.erase(std::remove(queue_.begin(), queue_.end(), flight), queue_.end());
}

void Flights::Lost(const Status& why) {
  wire_ = {};
  auto flights = std::move(flights_);
  flights_.clear();
  credit_bytes_ = 0;
  credit_requests_ = 0;
  for (auto& [id, flight] : flights) {
    if (flight->outcome) continue;  // waits for its channel to let go, then finishes
    if (flight->call.region)
      unsettled_.push_back(flight);
    else
      Decide(flight, why);
  }
}

void Flights::Settle(bool daemon_is_dead, const Status& why) {
  auto unsettled = std::move(unsettled_);
  unsettled_.clear();
  for (const FlightPtr& flight : unsettled) {
    if (flight->outcome) continue;  // its deadline came first
    if (daemon_is_dead)
      Decide(flight, why);
    else
      EndInDoubt(flight, "the connection is gone, and the daemon may still touch the named memory");
  }
}

void Flights::LostForGood(const Status& why) {
  if (lost_for_good_.ok()) lost_for_good_ = why;
  while (!queue_.empty()) {
    const FlightPtr flight = queue_.front();
    Decide(flight, why);
  }
}

void Flights::Stop() {
  const Status closed(StatusCode::kCancelled, "the client is closed");
  Lost(closed);
  Settle(false, closed);
  LostForGood(closed);
  *self_ = nullptr;
}

}  // namespace dyna
