#include "daemon/net/staging.h"

#include <sys/mman.h>

#include <algorithm>

namespace dyna {
namespace {
constexpr size_t kGrain = 64u << 10;  // capacities are powers of two from here: few distinct sizes

size_t CapacityFor(uint64_t bytes) {
  size_t capacity = kGrain;
  while (capacity < bytes) capacity *= 2;
  return capacity;
}
}  // namespace

std::shared_ptr<StagingPool> StagingPool::Create(uint64_t max_bytes, uint64_t keep_bytes) {
  return std::shared_ptr<StagingPool>(new StagingPool(max_bytes, keep_bytes));
}

StagingPool::~StagingPool() {
  for (const auto& [capacity, data] : idle_) munmap(data, capacity);
}

StagingPool::Buffer::~Buffer() { pool_->Return(data_, capacity_); }

Result<std::shared_ptr<StagingPool::Buffer>> StagingPool::Take(uint64_t bytes) {
  if (bytes > max_) return TooLarge("payload of " + std::to_string(bytes) + " bytes");
  const size_t capacity = CapacityFor(bytes);
  if (out_ + capacity > std::max<uint64_t>(max_, CapacityFor(max_)))
    return Status(StatusCode::kRetry, "staging memory is in use", 5);
  std::byte* data = nullptr;
  if (auto it = idle_.find(capacity); it != idle_.end()) {
    data = it->second;
    idle_.erase(it);
    idle_bytes_ -= capacity;
  } else {
    void* p = mmap(nullptr, capacity, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (p == MAP_FAILED) return Status(StatusCode::kRetry, "no memory for staging", 20);
    data = static_cast<std::byte*>(p);
  }
  out_ += capacity;
  return std::shared_ptr<Buffer>(new Buffer(shared_from_this(), data, bytes, capacity));
}

void StagingPool::Return(std::byte* data, size_t capacity) {
  out_ -= capacity;
  if (idle_bytes_ + capacity <= keep_) {
    idle_.emplace(capacity, data);
    idle_bytes_ += capacity;
  } else {
    munmap(data, capacity);
  }
}

}  // namespace dyna
