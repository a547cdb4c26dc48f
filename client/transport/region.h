// Shared memory that two processes address: the client allocates a region, the daemon maps it.
//
// Region, ClientMemory and MappedRegion are immutable after creation; any thread may use them. A
// job that reads or writes a range holds the shared_ptr: the mapping lives until the last one lets
// go.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "client/base/fork_guard.h"
#include "client/base/unique_fd.h"
#include "client/transport/sigbus_guard.h"
#include "schemas/status.h"

namespace dyna {

// One dimension of a strided access: `count` steps of `stride` bytes.
struct Axis {
  uint64_t count = 1;
  int64_t stride = 0;
};

// INVALID unless every byte of rows of `row_bytes` at offset + sum(i * stride) lies in [0, size),
// for all 0 <= i < count. Arithmetic that cannot overflow; counts of 0 are refused.
Status CheckStrided(uint64_t size, uint64_t offset, uint64_t row_bytes, std::span<const Axis> axes);

// Client side: a sealed memfd on tmpfs, pre-faulted, not inherited by a forked child.
class Region {
 public:
  static Result<std::shared_ptr<Region>> Allocate(uint64_t bytes);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  std::span<std::byte> bytes() const { return {base_, static_cast<size_t>(size_)}; }
  uint64_t size() const { return size_; }
  // To send with the registration: the receiver owns the copy.
  Result<UniqueFd> DuplicateFd() const;
  // The offset of memory inside this region; INVALID where `memory` is not.
  Result<uint64_t> OffsetOf(std::span<const std::byte> memory) const;

 private:
  Region(UniqueFd fd, std::byte* base, uint64_t size)
      : fd_(std::move(fd)), base_(base), size_(size) {}
  UniqueFd fd_;
  std::byte* base_;
  uint64_t size_;
  const ForkGuard fork_guard_;
};

// Daemon side: memory of a client that its calls may name, of whatever kind. This is where offsets
// and strides become addresses.
class ClientMemory {
 public:
  virtual ~ClientMemory();
  ClientMemory(const ClientMemory&) = delete;
  ClientMemory& operator=(const ClientMemory&) = delete;

  uint64_t size() const { return size_; }
  bool on_device() const { return on_device_; }  // addresses are the device's: KvView::on_device
  // The address of `offset`, once CheckStrided() agreed to every row.
  Result<std::byte*> Strided(uint64_t offset, uint64_t row_bytes, std::span<const Axis> axes) const;

  // A page of it went away under us and was replaced by zeros: the results of every job that
  // touched it are INVALID. Ask after the job, before its result is used.
  virtual bool poisoned() const { return false; }
  Status CheckIntact() const;

  // `released` runs when the memory is not ours any more, on the thread that let go of it (it posts
  // to where it belongs). REQUIRES a reference held by the caller.
  void OnReleased(std::function<void()> released);

 protected:
  ClientMemory(std::byte* base, uint64_t size, bool on_device)
      : base_(base), size_(size), on_device_(on_device) {}
  // For memory that is let go of elsewhere: whoever takes them runs them.
  std::vector<std::function<void()>> TakeReleased();

  std::byte* const base_;
  const uint64_t size_;

 private:
  const bool on_device_;
  std::mutex mutex_;
  std::vector<std::function<void()>> released_;
};

// The mapping of a client's region of the host. The client may scribble, punch holes or die.
class MappedRegion final : public ClientMemory {
 public:
  // UNSUPPORTED: not a memfd on tmpfs (hugetlbfs, a file, a device). INVALID: size 0, shorter than
  // `size`, without the seals SHRINK and GROW, not writable. TOO_LARGE: over `max_bytes`.
  // Cheap: page tables fill on use, or by Prefault().
  static Result<std::shared_ptr<MappedRegion>> Map(UniqueFd fd, uint64_t size, uint64_t max_bytes);
  ~MappedRegion() override;

  // Fills the page tables; takes about 0.1 s a GiB, so not on the loop. Failure is harmless.
  void Prefault() const;

  // The whole range, checked. INVALID names what is out of bounds.
  Result<std::span<std::byte>> Range(uint64_t offset, uint64_t length) const;
  bool poisoned() const override { return guard_.poisoned(); }

 private:
  MappedRegion(std::byte* base, uint64_t size);
  SigbusGuard guard_;
};

}  // namespace dyna
