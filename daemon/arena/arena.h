// The host arena: one allocation, handed out as extents of 256-byte units.
//
// Single-threaded: the loop thread owns the arena, its extents and its read references. Only the
// bytes behind a span travel to other threads; whoever sends one keeps a ReadRef (or the Extent)
// until the completion is back on the loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "daemon/arena/offset_allocator.h"
#include "schemas/status.h"

namespace dyna {

class Arena;

// Keeps the bytes of one extent in place while somebody reads them. Copyable.
class ReadRef {
 public:
  ReadRef() = default;
  ReadRef(const ReadRef& other);
  ReadRef(ReadRef&& other) noexcept
      : arena_(std::exchange(other.arena_, nullptr)), node_(other.node_) {}
  ReadRef& operator=(ReadRef other) noexcept {
    std::swap(arena_, other.arena_);
    std::swap(node_, other.node_);
    return *this;
  }
  ~ReadRef() { Release(); }

  explicit operator bool() const { return arena_ != nullptr; }
  std::span<const std::byte> bytes() const;
  void Release();

 private:
  friend class Extent;
  ReadRef(Arena* arena, OffsetAllocator::Node node) : arena_(arena), node_(node) {}
  Arena* arena_ = nullptr;
  OffsetAllocator::Node node_ = OffsetAllocator::kNone;
};

// A piece of the arena, owned. Dropping it retires it: the bytes are free again at once, or after
// the last ReadRef.
class Extent {
 public:
  Extent() = default;
  Extent(Extent&& other) noexcept
      : arena_(std::exchange(other.arena_, nullptr)), node_(other.node_) {}
  Extent& operator=(Extent&& other) noexcept {
    if (this != &other) {
      Retire();
      arena_ = std::exchange(other.arena_, nullptr);
      node_ = other.node_;
    }
    return *this;
  }
  ~Extent() { Retire(); }

  explicit operator bool() const { return arena_ != nullptr; }
  std::span<std::byte> bytes() const;
  size_t size() const { return bytes().size(); }  // a multiple of kArenaUnit
  uint64_t offset() const;                        // in the arena
  uint64_t owner() const;                         // the number given to Allocate
  bool being_read() const;
  ReadRef Read() const;  // REQUIRES a live extent
  void Retire();

 private:
  friend class Arena;
  Extent(Arena* arena, OffsetAllocator::Node node) : arena_(arena), node_(node) {}
  Arena* arena_ = nullptr;
  OffsetAllocator::Node node_ = OffsetAllocator::kNone;
};

struct ArenaOptions {
  uint64_t bytes = 0;
  uint32_t max_ranges = 0;  // 0: one for every 2 KiB, at most 16 M
  bool prefault = false;    // touch every page now: the first put then costs no page fault
};

struct ArenaStats {
  uint64_t capacity = 0, live_bytes = 0, retired_bytes = 0;  // retired: dropped, still being read
  uint32_t extents = 0, retired_extents = 0;
  uint64_t failed_allocations = 0, moved_extents = 0;
  StorageReport storage;
};

class Arena {
 public:
  static Result<std::unique_ptr<Arena>> Create(const ArenaOptions& options);
  ~Arena();  // REQUIRES that no Extent or ReadRef is left
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // RETRY when there is no room (or only in pieces: see PlanCompaction). `owner` is the caller's
  // number for whoever holds the extent, given back when compaction wants it moved.
  Result<Extent> Allocate(uint64_t bytes, uint64_t owner = 0);

  std::byte* base() const { return base_; }
  uint64_t capacity() const { return allocator_.capacity(); }
  uint64_t used_bytes() const { return capacity() - allocator_.free_bytes(); }  // live and retired
  ArenaStats stats() const;

  // A window of addresses that, once emptied, gives one free range of `want` bytes. While the plan
  // lives the window's holes are withheld from Allocate (and count as live). Empty when there is
  // nothing to gain: a range of that size is free already, or no window can be emptied into the
  // room outside it.
  class Plan {
   public:
    Plan() = default;
    Plan(Plan&&) noexcept = default;
    Plan& operator=(Plan&&) noexcept = default;
    bool empty() const { return moves_.empty(); }
    uint64_t bytes() const { return bytes_; }  // to be moved
    size_t size() const { return moves_.size(); }

   private:
    friend class Arena;
    struct Move {
      OffsetAllocator::Node node;
      uint32_t serial;  // of the allocation that was planned
    };
    std::vector<Extent> holes_;
    std::vector<Move> moves_;
    uint64_t bytes_ = 0;
  };
  Plan PlanCompaction(uint64_t want);

  // Carries out up to `max_bytes` of the plan (one extent at least). For each extent `mover` gets
  // its owner, its place and a fresh extent: it copies the bytes and swaps `fresh` with the extent
  // that the owner holds (so that the emptied place stays with the plan), or returns false to leave
  // it. True when the plan is finished and its window free.
  using Mover = std::function<bool(uint64_t owner, uint64_t offset, Extent& fresh)>;
  bool CompactStep(Plan& plan, uint64_t max_bytes, const Mover& mover);

 private:
  friend class Extent;
  friend class ReadRef;
  struct Slot {
    uint64_t owner = 0;
    uint32_t readers = 0;
    uint32_t serial = 0;
    bool live = false, retired = false;
  };

  Arena(std::byte* base, uint64_t bytes, uint32_t max_ranges);
  std::span<std::byte> BytesOf(OffsetAllocator::Node node) const;
  Extent Adopt(OffsetAllocator::Node node, uint64_t owner);
  void Retire(OffsetAllocator::Node node);
  void Unref(OffsetAllocator::Node node);
  void FreeNode(OffsetAllocator::Node node);
  bool Movable(OffsetAllocator::Node node) const;

  std::byte* base_;
  uint64_t mapped_bytes_;
  OffsetAllocator allocator_;
  std::vector<Slot> slots_;  // by node
  uint64_t live_bytes_ = 0, retired_bytes_ = 0;
  uint32_t extents_ = 0, retired_extents_ = 0;
  uint64_t failed_allocations_ = 0, moved_extents_ = 0;
};

}  // namespace dyna
