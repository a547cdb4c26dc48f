// Bytes of the nursery (young.cc) that one segment takes; given back when it grows up or goes.
//
// Thread rule: of the loop.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

namespace dyna {

class NurseryShare {
 public:
  NurseryShare() = default;
  NurseryShare(std::shared_ptr<uint64_t> used, uint64_t bytes)
      : used_(std::move(used)), bytes_(bytes) {
    *used_ += bytes_;
  }
  NurseryShare(NurseryShare&& other) noexcept
      : used_(std::move(other.used_)), bytes_(other.bytes_) {}
  NurseryShare& operator=(NurseryShare&& other) noexcept {
    Release();
    used_ = std::move(other.used_);
    bytes_ = other.bytes_;
    return *this;
  }
  ~NurseryShare() { Release(); }

  void Release() {
    if (used_) *used_ -= bytes_;
    used_.reset();
  }
  explicit operator bool() const { return used_ != nullptr; }

 private:
  std::shared_ptr<uint64_t> used_;
  uint64_t bytes_ = 0;
};

}  // namespace dyna
