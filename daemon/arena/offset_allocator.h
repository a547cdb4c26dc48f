// Hands out ranges of an address space it never touches: two-level bins over 256-byte units, as in
// Sebastian Aaltonen's OffsetAllocator, with 64-bit byte offsets. Allocate and Free are O(1); a
// free range merges with its neighbours at once.
//
// Single-threaded: the loop thread owns it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace dyna {

struct StorageReport {
  uint64_t free_bytes = 0;
  uint64_t largest_free_bytes = 0;  // the largest range that one Allocate can still get
  double fragmentation = 0;         // 1 - largest / free; 0 when nothing is free
  uint32_t allocations = 0;
  uint32_t free_ranges = 0;
};

class OffsetAllocator {
 public:
  using Node = uint32_t;  // names a live allocation; below max_nodes, reused after Free
  static constexpr Node kNone = ~Node{0};

  // `capacity` is rounded down to units, at most 2^32 - 1 of them (1 TiB). Every allocation and
  // every free range takes one node: an arena of `max_nodes` nodes holds at least max_nodes / 2 - 1
  // allocations, however they are laid out.
  OffsetAllocator(uint64_t capacity, uint32_t max_nodes);

  // A range of `bytes` rounded up to units, or nothing when no free range or no node is left.
  // REQUIRES bytes > 0.
  std::optional<Node> Allocate(uint64_t bytes);
  void Free(Node node);  // REQUIRES a live allocation

  uint64_t offset(Node node) const { return uint64_t{nodes_[node].offset} * kUnit; }
  uint64_t bytes(Node node) const { return uint64_t{nodes_[node].units} * kUnit; }
  uint64_t capacity() const { return uint64_t{capacity_units_} * kUnit; }
  uint64_t free_bytes() const { return uint64_t{free_units_} * kUnit; }
  StorageReport Report() const;

  // Ranges in address order, free ones among them: what a compaction plan looks at.
  Node First() const { return first_; }
  Node Next(Node node) const { return nodes_[node].next; }
  bool IsFree(Node node) const { return !nodes_[node].used; }
  // Turns a free range into an allocation, so that nothing else can take it. REQUIRES IsFree(node).
  void Reserve(Node node);

 private:
  static constexpr uint64_t kUnit = 256;
  // A bin holds sizes of one 3-bit-mantissa float value: 8 leaf bins to each of 32 top bins.
  static constexpr int kTopBins = 32, kLeafBins = 8, kBins = kTopBins * kLeafBins;
  static constexpr int kLooked = 32;

  struct Range {
    uint32_t offset = 0, units = 0;
    Node prev = kNone, next = kNone;          // in address order
    Node bin_prev = kNone, bin_next = kNone;  // among the free ranges of one bin
    bool used = false;
  };

  Node NewNode(uint32_t offset, uint32_t units);
  void DropNode(Node node);
  void InsertFree(Node node);
  void RemoveFree(Node node);
  Node FindFree(uint32_t units) const;
  // Of the first kLooked ranges of a bin; kNone where it is empty.
  Node Longest(uint32_t bin) const;

  uint32_t capacity_units_ = 0, free_units_ = 0;
  uint32_t allocations_ = 0, free_ranges_ = 0;
  uint32_t top_used_ = 0;
  std::array<uint8_t, kTopBins> leaf_used_{};
  std::array<Node, kBins> bin_head_{};
  std::vector<Range> nodes_;
  std::vector<Node> spare_;  // node numbers not in use
  Node first_ = kNone;
};

}  // namespace dyna
