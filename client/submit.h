// Requests that are one message and one reply. On the loop unless said otherwise.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "client/core.h"

namespace dyna {

inline uint32_t Millis(std::chrono::milliseconds ms) {
  return static_cast<uint32_t>(std::clamp<int64_t>(ms.count(), 0, UINT32_MAX));
}

// A request whose reply is one message of type R without payload.
template <typename R, typename T>
void SubmitFor(ClientCore& core, wire::Message request, Deadline deadline,
               std::function<void(T)> done, std::function<T(R)> convert) {
  Call call;
  call.request = std::move(request);
  call.deadline = core.DeadlineOf(deadline);
  call.done = [done = std::move(done),
               convert = std::move(convert)](Result<wire::Message> outcome) {
    auto reply = Expect<R>(std::move(outcome));
    if (!reply.ok()) return done(FailedWith<T>(reply.status()));
    if (!reply->status.ok()) return done(FailedWith<T>(reply->status));
    done(convert(std::move(*reply)));
  };
  core.Submit(std::move(call));
}

// From any thread but the loop: how many blocks a request concerned.
inline Result<uint64_t> AwaitCount(const std::shared_ptr<ClientCore>& core, wire::Message request,
                                   Deadline deadline) {
  using Count = Result<uint64_t>;
  return Await<Count>(core, [&](std::function<void(Count)> done) {
    RunAsync<Count>(
        core, std::move(done),
        [core, request = std::move(request), deadline](std::function<void(Count)> then) mutable {
          SubmitFor<wire::CountReply, Count>(
              *core, std::move(request), deadline, std::move(then),
              [](wire::CountReply reply) -> Count { return reply.count; });
        });
  });
}
// The same for what is answered by its status alone.
inline Status AwaitStatus(const std::shared_ptr<ClientCore>& core, wire::Message request,
                          Deadline deadline) {
  return Await<Status>(core, [&](std::function<void(Status)> done) {
    RunAsync<Status>(
        core, std::move(done),
        [core, request = std::move(request), deadline](std::function<void(Status)> then) mutable {
          SubmitFor<wire::StatusReply, Status>(
              *core, std::move(request), deadline, std::move(then),
              [](const wire::StatusReply& reply) { return reply.status; });
        });
  });
}

}  // namespace dyna
