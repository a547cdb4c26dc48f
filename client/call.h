// One request on its way: what is sent, where its reply's payload goes, who is told.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "client/base/clock.h"
#include "client/base/unique_fd.h"
#include "client/region_table.h"
#include "schemas/status.h"
#include "schemas/wire.h"

namespace dyna {

struct Call {
  wire::Message request;
  std::vector<std::span<const std::byte>> payload;  // stays until `done`
  std::vector<UniqueFd> fds;
  bool over_ucx = false;
  uint64_t reply_bytes = 0;  // payload that the reply may bring: counts against the credits
  // Whose memory the request names; its id is filled into the request's layout when it is sent.
  std::shared_ptr<RegisteredRegion> region;
  uint64_t epoch = 0;  // not 0: only on this connection (leases); else LEASE_LOST
  TimePoint deadline;
  // What would leave something of ours with the daemon when it got lost: max_calls is no bound.
  bool clean_up = false;
  // Memory for the reply's payload of that many bytes; empty: there is none, the call is INTERNAL.
  std::function<std::vector<std::span<std::byte>>(const wire::Message&, uint64_t)> receive;
  // Exactly once, on the loop. Not OK: there was no reply. A reply's own status is in the message.
  std::function<void(Result<wire::Message>)> done;

  uint64_t credit_bytes() const {
    uint64_t n = reply_bytes;
    for (const auto& part : payload) n += part.size();
    return n;
  }
};

// The status that a reply of any type carries; OK for messages that are no replies.
const Status& ReplyStatus(const wire::Message& reply);

// What a call came to, when the reply of type T is expected: a StatusReply in its place is an
// error.
template <typename T>
Result<T> Expect(Result<wire::Message> outcome) {
  if (!outcome.ok()) return outcome.status();
  if (const Status& s = ReplyStatus(*outcome); !s.ok() && !std::holds_alternative<T>(*outcome))
    return s;
  if (!std::holds_alternative<T>(*outcome))
    return Internal("the daemon answered with " +
                    std::string(wire::TypeName(wire::TypeOf(*outcome))));
  return std::get<T>(std::move(*outcome));
}

}  // namespace dyna
