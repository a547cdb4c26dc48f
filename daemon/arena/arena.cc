#include "daemon/arena/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <string>

#include "schemas/types.h"

namespace dyna {

// ---- references

ReadRef::ReadRef(const ReadRef& other) : arena_(other.arena_), node_(other.node_) {
  if (arena_ != nullptr) ++arena_->slots_[node_].readers;
}

std::span<const std::byte> ReadRef::bytes() const {
  return arena_ == nullptr ? std::span<const std::byte>() : arena_->BytesOf(node_);
}

void ReadRef::Release() {
  if (arena_ != nullptr) std::exchange(arena_, nullptr)->Unref(node_);
}

std::span<std::byte> Extent::bytes() const {
  return arena_ == nullptr ? std::span<std::byte>() : arena_->BytesOf(node_);
}

uint64_t Extent::offset() const {
  assert(arena_ != nullptr);
  return arena_->allocator_.offset(node_);
}

uint64_t Extent::owner() const {
  assert(arena_ != nullptr);
  return arena_->slots_[node_].owner;
}

bool Extent::being_read() const { return arena_ != nullptr && arena_->slots_[node_].readers > 0; }

ReadRef Extent::Read() const {
  assert(arena_ != nullptr);
  ++arena_->slots_[node_].readers;
  return ReadRef(arena_, node_);
}

void Extent::Retire() {
  if (arena_ != nullptr) std::exchange(arena_, nullptr)->Retire(node_);
}

// ---- the arena

Result<std::unique_ptr<Arena>> Arena::Create(const ArenaOptions& options) {
  const uint64_t bytes = options.bytes / kArenaUnit * kArenaUnit;
  if (bytes == 0) return Invalid("arena.bytes: below one unit of 256 bytes");
  if (bytes / kArenaUnit > UINT32_MAX) return TooLarge("arena.bytes: above 1 TiB");
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return Internal("arena: cannot map " + std::to_string(bytes) +
                    " bytes: " + std::strerror(errno));
  }
  // Huge pages where the kernel has them; refusing is no error.
  (void)madvise(base, bytes, MADV_HUGEPAGE);
  if (options.prefault && madvise(base, bytes, MADV_POPULATE_WRITE) != 0) {
    if (errno == EINVAL) {  // a kernel before 5.14
      for (uint64_t at = 0; at < bytes; at += 4096)
        static_cast<volatile std::byte*>(base)[at] = std::byte{0};
    } else {
      const std::string reason = std::strerror(errno);
      munmap(base, bytes);
      return Internal("arena: cannot pre-fault " + std::to_string(bytes) + " bytes: " + reason);
    }
  }
  uint32_t ranges = options.max_ranges;
  if (ranges == 0)
    ranges = static_cast<uint32_t>(std::clamp<uint64_t>(bytes / 2048, 64, uint64_t{16} << 20));
  return std::unique_ptr<Arena>(new Arena(static_cast<std::byte*>(base), bytes, ranges));
}

Arena::Arena(std::byte* base, uint64_t bytes, uint32_t max_ranges)
    : base_(base), mapped_bytes_(bytes), allocator_(bytes, max_ranges), slots_(max_ranges) {}

Arena::~Arena() {
  assert(extents_ == 0 && retired_extents_ == 0);
  munmap(base_, mapped_bytes_);
}

std::span<std::byte> Arena::BytesOf(OffsetAllocator::Node node) const {
  return {base_ + allocator_.offset(node), allocator_.bytes(node)};
}

Extent Arena::Adopt(OffsetAllocator::Node node, uint64_t owner) {
  Slot& slot = slots_[node];
  slot.owner = owner;
  slot.readers = 0;
  ++slot.serial;
  slot.live = true;
  slot.retired = false;
  live_bytes_ += allocator_.bytes(node);
  ++extents_;
  return Extent(this, node);
}

Result<Extent> Arena::Allocate(uint64_t bytes, uint64_t owner) {
  if (bytes == 0) return Invalid("arena: an extent of 0 bytes");
  const auto node = allocator_.Allocate(bytes);
  if (!node) {
    ++failed_allocations_;
    return Status(StatusCode::kRetry,
                  "arena: no free range of " + std::to_string(bytes) + " bytes");
  }
  return Adopt(*node, owner);
}

void Arena::Retire(OffsetAllocator::Node node) {
  Slot& slot = slots_[node];
  assert(slot.live);
  slot.live = false;
  live_bytes_ -= allocator_.bytes(node);
  --extents_;
  if (slot.readers == 0) return FreeNode(node);
  slot.retired = true;
  retired_bytes_ += allocator_.bytes(node);
  ++retired_extents_;
}

void Arena::Unref(OffsetAllocator::Node node) {
  Slot& slot = slots_[node];
  assert(slot.readers > 0);
  if (--slot.readers > 0 || !slot.retired) return;
  slot.retired = false;
  retired_bytes_ -= allocator_.bytes(node);
  --retired_extents_;
  FreeNode(node);
}

void Arena::FreeNode(OffsetAllocator::Node node) { allocator_.Free(node); }

ArenaStats Arena::stats() const {
  ArenaStats s;
  s.capacity = capacity();
  s.live_bytes = live_bytes_;
  s.retired_bytes = retired_bytes_;
  s.extents = extents_;
  s.retired_extents = retired_extents_;
  s.failed_allocations = failed_allocations_;
  s.moved_extents = moved_extents_;
  s.storage = allocator_.Report();
  return s;
}

}  // namespace dyna
