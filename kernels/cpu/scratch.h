// A codec thread's working memory: planes of one tile, so that no tile allocates.
//
// Thread rule: one a thread, by ThreadScratch(); valid until the thread ends.
#pragma once

#include "kernels/cpu/tile_ops.h"
#include "kernels/rope.h"

namespace dyna::cpu {

struct Scratch {
  alignas(64) float x[kMaxHeadDim * kLanes];
  alignas(64) float y[kMaxHeadDim * kLanes];
  alignas(64) float mean[kMaxHeadDim];
  alignas(64) float bias[kMaxHeadDim];
  RopeBlock rope;
};

Scratch& ThreadScratch();

// The rope of a block, made once for the jobs of a batch that share it (the heads of a layer, and
// layers of one rope). Null for no table.
class RopeOfBlock {
 public:
  explicit RopeOfBlock(RopeBlock* block) : block_(block) {}
  const RopeBlock* Get(const RopeTable* table, uint64_t first) {
    if (table == nullptr || table->kind() == RopeKind::kNone) return nullptr;
    if (table != table_ || first != first_) table->Fill(first, block_);
    table_ = table;
    first_ = first;
    return block_;
  }

 private:
  RopeBlock* block_;
  const RopeTable* table_ = nullptr;
  uint64_t first_ = 0;
};

}  // namespace dyna::cpu
