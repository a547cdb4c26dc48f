// All blocks by key, and in the order of their last use.
//
// Thread rule: the loop's.
#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>

#include "daemon/store/block.h"

namespace dyna {

// Seeded anew in each process: hashes come from clients, and whoever could choose a bucket could
// make every lookup walk it.
struct BlockKeyHasher {
  size_t operator()(const record::BlockKey& key) const;
};

class BlockTable {
 public:
  BlockRef Find(const record::BlockKey& key) const;
  Block* FindSerial(uint64_t serial) const;
  // REQUIRES that the key is not there. Gives the block its serial, and a generation above all that
  // were seen on a disk: what is left there of an earlier block of that key is not taken for it.
  BlockRef Insert(const record::BlockKey& key);
  void Erase(Block& block);
  void SawGeneration(uint32_t generation);  // on a disk
  void Touch(Block& block);                 // becomes the newest

  size_t size() const { return by_key_.size(); }
  Block* oldest() const { return oldest_; }
  Block* newest() const { return newest_; }
  // Any order; `visit` may not insert or erase.
  void ForEach(const std::function<void(Block&)>& visit) const;

 private:
  void Unlink(Block& block);

  std::unordered_map<record::BlockKey, BlockRef, BlockKeyHasher> by_key_;
  std::unordered_map<uint64_t, Block*> by_serial_;
  Block *newest_ = nullptr, *oldest_ = nullptr;
  uint64_t next_serial_ = 1;
  uint32_t next_generation_ = 1;
};

}  // namespace dyna
