// Pre-faulted buffers for payloads that are sent instead of named: first touch costs more than the
// copy (1.0-1.6 GB/s), so buffers are kept and used again, within a bound.
//
// Thread rule: the loop's; a Buffer may be dropped by any job that held it, on the loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>

#include "schemas/status.h"

namespace dyna {

class StagingPool : public std::enable_shared_from_this<StagingPool> {
 public:
  // At most `max_bytes` are out at once; up to `keep_bytes` idle ones are kept.
  static std::shared_ptr<StagingPool> Create(uint64_t max_bytes, uint64_t keep_bytes);
  ~StagingPool();

  class Buffer {
   public:
    ~Buffer();
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    std::span<std::byte> bytes() const { return {data_, size_}; }

   private:
    friend class StagingPool;
    Buffer(std::shared_ptr<StagingPool> pool, std::byte* data, size_t size, size_t capacity)
        : pool_(std::move(pool)), data_(data), size_(size), capacity_(capacity) {}
    std::shared_ptr<StagingPool> pool_;
    std::byte* data_;
    size_t size_, capacity_;
  };

  // RETRY when too much is out. A size of 0 is allowed.
  Result<std::shared_ptr<Buffer>> Take(uint64_t bytes);
  uint64_t out_bytes() const { return out_; }
  uint64_t idle_bytes() const { return idle_bytes_; }

 private:
  StagingPool(uint64_t max_bytes, uint64_t keep_bytes) : max_(max_bytes), keep_(keep_bytes) {}
  void Return(std::byte* data, size_t capacity);

  uint64_t max_, keep_;
  uint64_t out_ = 0, idle_bytes_ = 0;
  std::multimap<size_t, std::byte*> idle_;  // by capacity
};

}  // namespace dyna
