#include "daemon/arena/offset_allocator.h"

#include <algorithm>
#include <bit>
#include <cassert>

namespace dyna {
namespace {

// Sizes as floats of 3 mantissa bits: below 8 exact, then 8 steps a doubling (at most 12.5 %
// apart).
constexpr int kMantissaBits = 3;
constexpr uint32_t kMantissaCount = 1u << kMantissaBits;

// The bin whose sizes are all <= `units`'s own: where a free range of `units` is kept.
uint32_t BinOfRange(uint32_t units) {
  if (units < kMantissaCount) return units;
  const uint32_t shift = 31u - static_cast<uint32_t>(std::countl_zero(units)) - kMantissaBits;
  const uint32_t mantissa = (units >> shift) & (kMantissaCount - 1);
  return ((shift + 1) << kMantissaBits) + mantissa;
}

// The first bin all of whose ranges are at least `units` long.
uint32_t BinOfRequest(uint32_t units) {
  const uint32_t bin = BinOfRange(units);
  if (units < kMantissaCount) return bin;
  const uint32_t shift = (bin >> kMantissaBits) - 1;
  const bool exact = (units & ((1u << shift) - 1)) == 0;
  return exact ? bin : bin + 1;
}

// The lowest set bit at or above `from`, or -1.
int LowestBitFrom(uint32_t mask, uint32_t from) {
  if (from >= 32) return -1;
  mask &= ~uint32_t{0} << from;
  return mask == 0 ? -1 : std::countr_zero(mask);
}

}  // namespace

OffsetAllocator::OffsetAllocator(uint64_t capacity, uint32_t max_nodes)
    : capacity_units_(static_cast<uint32_t>(std::min<uint64_t>(capacity / kUnit, UINT32_MAX))),
      nodes_(std::max<uint32_t>(max_nodes, 1)) {
  bin_head_.fill(kNone);
  spare_.reserve(nodes_.size());
  for (size_t i = nodes_.size(); i-- > 0;) spare_.push_back(static_cast<Node>(i));
  if (capacity_units_ == 0) return;
  first_ = NewNode(0, capacity_units_);
  InsertFree(first_);
}

OffsetAllocator::Node OffsetAllocator::NewNode(uint32_t offset, uint32_t units) {
  const Node node = spare_.back();
  spare_.pop_back();
  nodes_[node] = Range{};
  nodes_[node].offset = offset;
  nodes_[node].units = units;
  return node;
}

void OffsetAllocator::DropNode(Node node) { spare_.push_back(node); }

void OffsetAllocator::InsertFree(Node node) {
  Range& range = nodes_[node];
  const uint32_t bin = BinOfRange(range.units);
  range.bin_prev = kNone;
  range.bin_next = bin_head_[bin];
  if (range.bin_next != kNone) nodes_[range.bin_next].bin_prev = node;
  bin_head_[bin] = node;
  leaf_used_[bin / kLeafBins] |= static_cast<uint8_t>(1u << (bin % kLeafBins));
  top_used_ |= 1u << (bin / kLeafBins);
  free_units_ += range.units;
  ++free_ranges_;
}

void OffsetAllocator::RemoveFree(Node node) {
  Range& range = nodes_[node];
  if (range.bin_next != kNone) nodes_[range.bin_next].bin_prev = range.bin_prev;
  if (range.bin_prev != kNone) {
    nodes_[range.bin_prev].bin_next = range.bin_next;
  } else {
    const uint32_t bin = BinOfRange(range.units);
    bin_head_[bin] = range.bin_next;
    if (range.bin_next == kNone) {
      uint8_t& leaf = leaf_used_[bin / kLeafBins];
      leaf &= static_cast<uint8_t>(~(1u << (bin % kLeafBins)));
      if (leaf == 0) top_used_ &= ~(1u << (bin / kLeafBins));
    }
  }
  range.bin_prev = range.bin_next = kNone;
  free_units_ -= range.units;
  --free_ranges_;
}

OffsetAllocator::Node OffsetAllocator::FindFree(uint32_t units) const {
  const uint32_t bin = BinOfRequest(units);
  const uint32_t top = bin / kLeafBins;
  if (top < kTopBins) {
    const int leaf = LowestBitFrom(leaf_used_[top], bin % kLeafBins);
    if (leaf >= 0) return bin_head_[top * kLeafBins + static_cast<uint32_t>(leaf)];
    const int next = LowestBitFrom(top_used_, top + 1);
    if (next >= 0) {
      const auto t = static_cast<uint32_t>(next);
      return bin_head_[t * kLeafBins + static_cast<uint32_t>(std::countr_zero(leaf_used_[t]))];
    }
  }
  // The last resort of a full arena: the bin below holds ranges some of which may be long enough.
  const Node longest = Longest(BinOfRange(units));
  return longest != kNone && nodes_[longest].units >= units ? longest : kNone;
}

OffsetAllocator::Node OffsetAllocator::Longest(uint32_t bin) const {
  Node longest = bin_head_[bin];
  int looked = 0;
  for (Node n = longest; n != kNone && looked < kLooked; n = nodes_[n].bin_next, ++looked)
    if (nodes_[n].units > nodes_[longest].units) longest = n;
  return longest;
}

std::optional<OffsetAllocator::Node> OffsetAllocator::Allocate(uint64_t bytes) {
  assert(bytes > 0);
  const uint64_t wanted = bytes / kUnit + (bytes % kUnit != 0);
  if (wanted > free_units_) return std::nullopt;
  const auto units = static_cast<uint32_t>(wanted);
  const Node node = FindFree(units);
  if (node == kNone) return std::nullopt;
  const uint32_t rest = nodes_[node].units - units;
  if (rest > 0 && spare_.empty()) return std::nullopt;

  RemoveFree(node);
  nodes_[node].used = true;
  nodes_[node].units = units;
  ++allocations_;
  if (rest > 0) {
    const Node tail = NewNode(nodes_[node].offset + units, rest);
    nodes_[tail].prev = node;
    nodes_[tail].next = nodes_[node].next;
    if (nodes_[tail].next != kNone) nodes_[nodes_[tail].next].prev = tail;
    nodes_[node].next = tail;
    InsertFree(tail);
  }
  return node;
}

void OffsetAllocator::Free(Node node) {
  assert(node < nodes_.size() && nodes_[node].used);
  nodes_[node].used = false;
  --allocations_;
  // The merged range keeps the lowest node of the three, so that first_ never moves.
  const Node next = nodes_[node].next;
  if (next != kNone && !nodes_[next].used) {
    RemoveFree(next);
    nodes_[node].units += nodes_[next].units;
    nodes_[node].next = nodes_[next].next;
    if (nodes_[node].next != kNone) nodes_[nodes_[node].next].prev = node;
    DropNode(next);
  }
  const Node prev = nodes_[node].prev;
  if (prev != kNone && !nodes_[prev].used) {
    RemoveFree(prev);
    nodes_[prev].units += nodes_[node].units;
    nodes_[prev].next = nodes_[node].next;
    if (nodes_[prev].next != kNone) nodes_[nodes_[prev].next].prev = prev;
    DropNode(node);
    node = prev;
  }
  InsertFree(node);
}

void OffsetAllocator::Reserve(Node node) {
  assert(IsFree(node));
  RemoveFree(node);
  nodes_[node].used = true;
  ++allocations_;
}

StorageReport OffsetAllocator::Report() const {
  StorageReport report;
  report.free_bytes = free_bytes();
  report.allocations = allocations_;
  report.free_ranges = free_ranges_;
  if (top_used_ != 0) {
    const auto top = 31u - static_cast<uint32_t>(std::countl_zero(top_used_));
    const auto leaf = 31u - static_cast<uint32_t>(std::countl_zero(uint32_t{leaf_used_[top]}));
    report.largest_free_bytes = bytes(Longest(top * kLeafBins + leaf));
    report.fragmentation = 1.0 - static_cast<double>(report.largest_free_bytes) /
                                     static_cast<double>(report.free_bytes);
  }
  return report;
}

}  // namespace dyna
