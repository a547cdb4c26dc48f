// The calls of one connection: queued, in flight, within the credits that the daemon granted.
// Decides when a call's memory is its caller's again. Lives on the loop.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>

#include "client/base/deadline_queue.h"
#include "client/call.h"
#include "client/transport/channel.h"

namespace dyna {

class Flights {
 public:
  struct Counters {
    uint64_t calls = 0, failed = 0, bytes_sent = 0, bytes_received = 0, bytes_in_place = 0;
  };
  // How long the daemon may take to let go of named memory after the deadline it was told, and a
  // frame to end.
  static constexpr std::chrono::milliseconds kLetGo{1000};

  Flights(Executor& executor, const Clock& clock, size_t max_calls)
      : clock_(clock), max_calls_(max_calls), timers_(executor, clock) {}

  // Queues; sends at once when connected and within the credits. RETRY above max_calls
  // (clean-up is taken all the same).
  void Submit(Call call);

  // Before this nothing of the queue is sent; `ucx` may be null. Urgent() passes the queue.
  struct Wire {
    Channel* socket = nullptr;
    Channel* ucx = nullptr;
    uint64_t epoch = 0;
    uint32_t request_credits = 1;
    uint64_t byte_credits = 0;
  };
  void Open(const Wire& wire);
  // How a connection is given up whose peer does not take or give a frame in time: that ends in
  // Lost(), and the channel lets go of the frame's memory.
  void OnStuck(std::function<void(const Status&)> close) { close_ = std::move(close); }
  // Sends outside the queue and the credits: the handshake and what it registers again.
  void Urgent(Channel& channel, uint64_t epoch, Call call);

  // Both for FrameSink. CLOSE when the peer broke the protocol.
  Admission OnReply(const InFrame& frame);
  // The connection is gone. Calls that name no memory end with `why`; the others are returned to
  // be settled once it is known whether the daemon lives.
  void Lost(const Status& why);
  bool has_unsettled() const { return !unsettled_.empty(); }
  // There is no next connection: what is queued, and every later call, ends with `why`.
  void LostForGood(const Status& why);
  const Status& lost_for_good() const { return lost_for_good_; }
  // The daemon is dead (true: memory is the caller's again) or may live on (IN_DOUBT).
  void Settle(bool daemon_is_dead, const Status& why);
  // Ends everything, queued calls too. REQUIRES channels closed and let go of all memory.
  void Stop();

  size_t in_flight() const { return flights_.size(); }
  size_t queued() const { return queue_.size(); }
  const Counters& counters() const { return counters_; }

 private:
  struct Flight {
    Call call;
    uint64_t id = 0;
    uint64_t credit = 0;  // bytes
    bool urgent = false;  // takes no credits
    bool queued = false;
    bool sending = false;    // the channel may read the payload
    bool receiving = false;  // the channel may write the reply's payload
    std::optional<Result<wire::Message>> outcome;
    DeadlineQueue::TimerId timer = 0;
  };
  using FlightPtr = std::shared_ptr<Flight>;

  void Pump();
  bool Fits(const Call& call) const;
  void Send(Channel& channel, FlightPtr flight);
  void ArmDeadline(const FlightPtr& flight);
  void Expire(const FlightPtr& flight);
  void Decide(const FlightPtr& flight, Result<wire::Message> outcome);
  void FinishIfFree(const FlightPtr& flight);
  void Drop(const FlightPtr& flight);
  void EndInDoubt(const FlightPtr& flight, const char* why);
  void ReleaseLate(const InFrame& frame);

  const Clock& clock_;
  const size_t max_calls_;
  DeadlineQueue timers_;
  Wire wire_;
  uint64_t next_id_ = 1;
  std::deque<FlightPtr> queue_;
  std::unordered_map<uint64_t, FlightPtr> flights_;
  std::deque<FlightPtr> unsettled_;
  uint64_t credit_bytes_ = 0;
  uint32_t credit_requests_ = 0;
  bool pumping_ = false;
  Counters counters_;
  Status lost_for_good_;
  std::function<void(const Status&)> close_;
  std::shared_ptr<Flights*> self_ = std::make_shared<Flights*>(this);  // null inside once gone
};

}  // namespace dyna
