#include "schemas/status.h"

namespace dyna {

std::string_view StatusName(StatusCode code) {
  switch (code) {
    case StatusCode::kOk:
      return "OK";
    case StatusCode::kExists:
      return "EXISTS";
    case StatusCode::kMiss:
      return "MISS";
    case StatusCode::kPending:
      return "PENDING";
    case StatusCode::kRetry:
      return "RETRY";
    case StatusCode::kQuota:
      return "QUOTA";
    case StatusCode::kTooLarge:
      return "TOO_LARGE";
    case StatusCode::kInvalid:
      return "INVALID";
    case StatusCode::kUnauthenticated:
      return "UNAUTHENTICATED";
    case StatusCode::kUnsupported:
      return "UNSUPPORTED";
    case StatusCode::kDeadline:
      return "DEADLINE";
    case StatusCode::kCancelled:
      return "CANCELLED";
    case StatusCode::kInDoubt:
      return "IN_DOUBT";
    case StatusCode::kLeaseLost:
      return "LEASE_LOST";
    case StatusCode::kContextUnknown:
      return "CONTEXT_UNKNOWN";
    case StatusCode::kInternal:
      return "INTERNAL";
  }
  return "UNKNOWN";
}

std::string Status::ToString() const {
  std::string out(StatusName(code()));
  if (!message().empty()) out.append(": ").append(message());
  return out;
}

}  // namespace dyna
