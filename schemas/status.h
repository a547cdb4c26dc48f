// Status and Result<T>: how every function of the project reports failure.
//
// The codes are part of the wire format and of the on-disk format: never renumber one. Each says
// what the caller can do about it; the message says it for a person.
#pragma once

#include <cassert>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace dyna {

enum class StatusCode : uint8_t {
  kOk = 0,
  kExists = 1,           // a success: the block is already held at this quality or a higher one
  kMiss = 2,             // not held (or not at the demanded quality)
  kPending = 3,          // being written by somebody: ask again
  kRetry = 4,            // no room right now: ask again after retry_after_ms
  kQuota = 5,            // the tenant's or the bank's budget is full
  kTooLarge = 6,         // over a stated limit
  kInvalid = 7,          // malformed or contradicts what is known; the message names the field
  kUnauthenticated = 8,  // forged or missing token, uid not allowed
  kUnsupported = 9,      // understood, and not served by this build or configuration
  kDeadline =
      10,  // the caller's deadline passed; the memory named in the call is the caller's again
  kCancelled = 11,       // cancelled by the caller, or the peer went away before it started
  kInDoubt = 12,         // the deadline passed and the daemon may still touch the named memory
  kLeaseLost = 13,       // the lease expired, was revoked, or is of another daemon instance
  kContextUnknown = 14,  // open the context again (the daemon restarted)
  kInternal = 15,        // a defect or a failing device; logged by the daemon
};

// "INVALID", "MISS", ...: the names used in logs, on the command line and in JSON.
std::string_view StatusName(StatusCode code);

// OK is free (a null pointer). Const methods need no lock; assignment needs the owner's.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message, uint32_t retry_after_ms = 0) {
    if (code != StatusCode::kOk)
      rep_ = std::make_shared<const Rep>(Rep{code, retry_after_ms, std::move(message)});
  }
  static Status Ok() { return {}; }

  bool ok() const { return rep_ == nullptr; }
  StatusCode code() const { return rep_ ? rep_->code : StatusCode::kOk; }
  std::string_view message() const { return rep_ ? std::string_view(rep_->message) : ""; }
  uint32_t retry_after_ms() const { return rep_ ? rep_->retry_after_ms : 0; }
  // "INVALID: layer 31 of a context with 30 layers"
  std::string ToString() const;

 private:
  struct Rep {
    StatusCode code;
    uint32_t retry_after_ms;
    std::string message;
  };
  std::shared_ptr<const Rep> rep_;
};

inline Status Invalid(std::string message) { return {StatusCode::kInvalid, std::move(message)}; }
inline Status Unsupported(std::string m) { return {StatusCode::kUnsupported, std::move(m)}; }
inline Status Internal(std::string message) { return {StatusCode::kInternal, std::move(message)}; }
inline Status TooLarge(std::string message) { return {StatusCode::kTooLarge, std::move(message)}; }

// A value, or the Status that says why there is none. value() REQUIRES ok().
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit on purpose
  Result(Status status) : status_(std::move(status)) { assert(!status_.ok()); }  // NOLINT

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() { return *value_; }
  const T& value() const { return *value_; }
  T& operator*() { return *value_; }
  const T& operator*() const { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace dyna

#define DYNA_RETURN_IF_ERROR(expr)               \
  do {                                           \
    ::dyna::Status dyna_status_ = (expr);        \
    if (!dyna_status_.ok()) return dyna_status_; \
  } while (0)
#define DYNA_CONCAT_(a, b) a##b
#define DYNA_CONCAT(a, b) DYNA_CONCAT_(a, b)
#define DYNA_ASSIGN_OR_RETURN(lhs, expr)                 \
  auto DYNA_CONCAT(dyna_result_, __LINE__) = (expr);     \
  if (!DYNA_CONCAT(dyna_result_, __LINE__).ok())         \
    return DYNA_CONCAT(dyna_result_, __LINE__).status(); \
  lhs = std::move(DYNA_CONCAT(dyna_result_, __LINE__).value())
