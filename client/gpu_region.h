// Memory of a GPU of this process that the daemon may address. Not owned: whoever allocated it
// frees it, after Client::ReleaseGpu(). Immutable; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "schemas/wire.h"

namespace dyna {

class GpuRegion {
 public:
  GpuRegion(std::byte* data, wire::RegisterRegion description)
      : data_(data), description_(std::move(description)) {}
  std::byte* data() const { return data_; }
  uint64_t size() const { return description_.size; }
  const wire::RegisterRegion& description() const { return description_; }

 private:
  std::byte* const data_;
  const wire::RegisterRegion description_;
};

}  // namespace dyna
