#include "daemon/store/block_table.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cassert>
#include <random>
#include <type_traits>

namespace dyna {

size_t BlockKeyHasher::operator()(const record::BlockKey& key) const {
  static_assert(std::has_unique_object_representations_v<record::BlockKey>);
  static const uint64_t seed = uint64_t{std::random_device{}()} << 32 | std::random_device{}();
  return XXH3_64bits_withSeed(&key, sizeof key, seed);
}

BlockRef BlockTable::Find(const record::BlockKey& key) const {
  auto it = by_key_.find(key);
  return it == by_key_.end() ? nullptr : it->second;
}

Block* BlockTable::FindSerial(uint64_t serial) const {
  auto it = by_serial_.find(serial);
  return it == by_serial_.end() ? nullptr : it->second;
}

BlockRef BlockTable::Insert(const record::BlockKey& key) {
  auto block = std::make_shared<Block>();
  block->key = key;
  block->serial = next_serial_++;
  block->generation = block->newest_generation = next_generation_;
  [[maybe_unused]] const bool fresh = by_key_.emplace(key, block).second;
  assert(fresh);
  by_serial_.emplace(block->serial, block.get());
  Touch(*block);
  return block;
}

void BlockTable::SawGeneration(uint32_t generation) {
  next_generation_ = std::max(next_generation_, generation + 1);
}

void BlockTable::Erase(Block& block) {
  // Its deletion may fail, and a crash may come before it.
  if (block.spill_touched || block.bank_touched) SawGeneration(block.newest_generation);
  Unlink(block);
  by_serial_.erase(block.serial);
  by_key_.erase(record::BlockKey(block.key));  // a copy: this may destroy the block
}

void BlockTable::Touch(Block& block) {
  if (newest_ == &block) return;
  Unlink(block);
  block.older = newest_;
  if (newest_ != nullptr) newest_->newer = &block;
  newest_ = &block;
  if (oldest_ == nullptr) oldest_ = &block;
}

void BlockTable::Unlink(Block& block) {
  if (block.newer != nullptr)
    block.newer->older = block.older;
  else if (newest_ == &block)
    newest_ = block.older;
  if (block.older != nullptr)
    block.older->newer = block.newer;
  else if (oldest_ == &block)
    oldest_ = block.newer;
  block.newer = block.older = nullptr;
}

void BlockTable::ForEach(const std::function<void(Block&)>& visit) const {
  for (const auto& [key, block] : by_key_) visit(*block);
}

}  // namespace dyna
