// What wire_parse.cc reads fields with: each read states its bound and remembers the first failure.
#pragma once

#include <flatbuffers/flatbuffers.h>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "schemas/status.h"
#include "schemas/types.h"

namespace dyna::wire {

// Remembers the first bound that does not hold; reading goes on (every read is safe by itself).
class Door {
 public:
  bool Require(bool holds, const char* what, StatusCode code = StatusCode::kInvalid) {
    if (!holds && status_.ok()) status_ = Status(code, what);
    return holds;
  }
  void Take(Status s) {
    if (status_.ok()) status_ = std::move(s);
  }
  const Status& status() const { return status_; }

 private:
  Status status_;
};

template <typename V>
size_t Size(const V* vector) {
  return vector == nullptr ? 0 : vector->size();
}

inline bool Finite(float f) { return std::isfinite(f) && f >= 0; }

template <typename T, typename Fb>
std::vector<T> Copy(const flatbuffers::Vector<Fb>* v, size_t min, size_t max, const char* what,
                    Door& door) {
  const size_t n = Size(v);
  door.Require(n >= min, what);
  if (!door.Require(n <= max, what, StatusCode::kTooLarge)) return {};
  // The verifier aligns a vector's length; its elements may want more.
  if (n != 0 && !door.Require(reinterpret_cast<uintptr_t>(v->Data()) % alignof(T) == 0, what))
    return {};
  std::vector<T> out(n);
  for (size_t i = 0; i < n; ++i) out[i] = static_cast<T>(v->Get(static_cast<uint32_t>(i)));
  return out;
}

inline std::string Text(const flatbuffers::String* s, size_t max, const char* what, Door& door) {
  if (s == nullptr) return {};
  if (!door.Require(s->size() <= max, what, StatusCode::kTooLarge)) return {};
  for (unsigned char c : *s) door.Require(c >= 0x20 && c != 0x7f, what);
  return s->str();
}

template <typename E>
E Enum(uint8_t value, E first, E last, const char* what, Door& door) {
  door.Require(value >= static_cast<uint8_t>(first) && value <= static_cast<uint8_t>(last), what);
  return static_cast<E>(value);
}

inline StatusCode Code(uint8_t v, Door& door) {
  return Enum(v, StatusCode::kOk, StatusCode::kInternal, "status: unknown code", door);
}
inline DType DTypeOf(uint8_t v, Door& door) {
  return Enum(v, DType::kF32, DType::kE5m2, "dtype: unknown", door);
}
inline Durability DurabilityOf(uint8_t v, Door& door) {
  return Enum(v, Durability::kVolatile, Durability::kPersistent, "durability: unknown", door);
}
inline QualityClass QualityOf(uint8_t v, const char* what, Door& door) {
  return Enum(v, QualityClass::kSmall, QualityClass::kExact, what, door);
}
inline Tier TierOf(uint8_t v, Door& door) {
  return Enum(v, Tier::kNone, Tier::kBank, "tier: unknown", door);
}

}  // namespace dyna::wire
