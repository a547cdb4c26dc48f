// Objects of unknown meaning, whole: they travel in frames.
#include <utility>

#include "client/client.h"
#include "client/submit.h"

namespace dyna {

void Context::PutOpaqueAsync(OpaquePut request, Done<Status> done) {
  RunAsync<Status>(core_, std::move(done),
                   [core = core_, state = state_, request](Done<Status> then) {
                     Call call;
                     call.request = wire::PutOpaque{state->fingerprint, request.key,
                                                    request.durability, Millis(request.ttl)};
                     if (!request.bytes.empty()) call.payload.push_back(request.bytes);
                     call.over_ucx = core->options().bulk == Bulk::kUcx;
                     call.deadline = core->DeadlineOf(request.deadline);
                     call.done = [then = std::move(then)](Result<wire::Message> outcome) {
                       const auto reply = Expect<wire::StatusReply>(std::move(outcome));
                       then(reply.ok() ? reply->status : reply.status());
                     };
                     core->Submit(std::move(call));
                   });
}
Status Context::PutOpaque(OpaquePut request) {
  return Await<Status>(core_, [&](Done<Status> done) { PutOpaqueAsync(request, std::move(done)); });
}

void Context::GetOpaqueAsync(const BlockHash& key, Done<Result<OpaqueObject>> done,
                             Deadline deadline) {
  RunAsync<Result<OpaqueObject>>(
      core_, std::move(done),
      [core = core_, state = state_, key, deadline](Done<Result<OpaqueObject>> then) {
        auto object = std::make_shared<OpaqueObject>();
        Call call;
        call.request = wire::GetOpaque{state->fingerprint, key};
        call.over_ucx = core->options().bulk == Bulk::kUcx;
        call.deadline = core->DeadlineOf(deadline);
        call.receive = [object](const wire::Message& reply, uint64_t bytes) {
          std::vector<std::span<std::byte>> parts;  // the channel's limit bounds `bytes`
          if (!std::holds_alternative<wire::OpaqueReply>(reply)) return parts;
          object->bytes.resize(bytes);
          parts.emplace_back(object->bytes);
          return parts;
        };
        call.done = [object, then = std::move(then)](Result<wire::Message> outcome) {
          const auto reply = Expect<wire::OpaqueReply>(std::move(outcome));
          if (!reply.ok()) return then(reply.status());
          if (!reply->status.ok()) return then(reply->status);
          object->tier = reply->tier;
          then(std::move(*object));
        };
        core->Submit(std::move(call));
      });
}
Result<OpaqueObject> Context::GetOpaque(const BlockHash& key, Deadline deadline) {
  return Await<Result<OpaqueObject>>(core_, [&](Done<Result<OpaqueObject>> done) {
    GetOpaqueAsync(key, std::move(done), deadline);
  });
}

}  // namespace dyna
