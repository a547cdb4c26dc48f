// What each block may answer, kept beside the store by rules simple enough to be believed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "daemon/store/store_harness.h"

namespace dyna::model {

// One block's content changes only where it was deleted (a key is a hash of what is under it), so
// that whatever outlived its deletion shows.
struct Truth {
  uint64_t version = 0;
  bool may_be_there = false;          // put since it was last deleted
  std::set<uint64_t> also;            // older versions that a crash may have brought back
  std::set<uint64_t> undead;          // deleted, and the disks may not know it yet
  std::set<uint64_t> undead_forever;  // the deletion may have met a fault
  bool durable = false;               // acknowledged persistent, and nobody took it back
  QualityClass durable_class = QualityClass::kSmall;
  uint64_t drops = 0;      // how often its bank copy was dropped
  int64_t latest_end = 0;  // Unix ms; 0: never

  bool ended(int64_t now_ms) const { return latest_end != 0 && latest_end <= now_ms; }
  bool must_miss(int64_t now_ms) const { return !may_be_there || ended(now_ms); }

  void Asked(int64_t end) {
    latest_end = may_be_there && (latest_end == 0 || end == 0) ? 0 : std::max(latest_end, end);
    if (!may_be_there) latest_end = end;
    may_be_there = true;
  }
  void Acknowledged(QualityClass quality) {
    durable_class = durable ? std::max(durable_class, quality) : quality;
    durable = true;
  }
  void Deleted() {
    if (may_be_there) undead.insert(version);
    undead.insert(also.begin(), also.end());
    also.clear();
    ++version;
    may_be_there = durable = false;
  }
  // Everything that was asked of the disks has been done, but for what met a fault.
  void DisksAreQuiet(bool faults) {
    if (faults) undead_forever.insert(undead.begin(), undead.end());
    undead.clear();
  }
  void Crashed() {
    also.insert(undead.begin(), undead.end());
    also.insert(undead_forever.begin(), undead_forever.end());
    undead.clear();
    undead_forever.clear();
    if (also.empty()) return;
    may_be_there = true;
    latest_end = 0;  // of an older one: not known here
  }
  std::vector<uint64_t> Versions() const {
    std::vector<uint64_t> out(also.begin(), also.end());
    out.push_back(version);
    return out;
  }
};

// [layer][head][K, V][token][dim] of a version of a block.
class Contents {
 public:
  using Data = std::shared_ptr<const std::vector<float>>;
  Data Of(uint64_t block, uint64_t version) {
    Data& data = cache_[{block, version}];
    if (!data)
      data = std::make_shared<const std::vector<float>>(
          testing::StoreHarness::Data(block * 100'003 + version));
    Data out = data;
    if (cache_.size() > 512) cache_.erase(cache_.begin());
    return out;
  }

 private:
  std::map<std::pair<uint64_t, uint64_t>, Data> cache_;
};

// A block that was put, and what had happened to it then.
struct Asked {
  uint64_t block = 0, version = 0, drops = 0;
};

inline std::string Words(const wire::Put& put) {
  return std::string(QualityName(put.quality)) +
         (put.durability == Durability::kPersistent ? " persistent" : "") + " layers " +
         std::to_string(put.layer_begin) + "+" + std::to_string(put.layer_count) + " heads " +
         std::to_string(put.shard.head_begin) + ".." + std::to_string(put.shard.head_end);
}

// The bytes of an opaque object.
inline std::vector<std::byte> Object(uint64_t n, uint64_t version) {
  std::mt19937_64 random(n * 977 + version);
  std::vector<std::byte> bytes(100 + random() % 5000);
  for (std::byte& x : bytes) x = static_cast<std::byte>(random());
  return bytes;
}

// Mean over the tiles of error / energy: what the store calls nmse. 0: byte for byte.
inline double Nmse(const float* got, const std::vector<float>& want) {
  constexpr size_t kTile = testing::StoreHarness::kTile;
  double sum = 0;
  size_t tiles = 0;
  for (size_t at = 0; at < want.size(); at += kTile, ++tiles) {
    double error = 0, energy = 0;
    for (size_t i = at; i < at + kTile; ++i) {
      const double d = static_cast<double>(got[i]) - static_cast<double>(want[i]);
      error += d * d;
      energy += static_cast<double>(want[i]) * static_cast<double>(want[i]);
    }
    sum += error / energy;
  }
  return sum / static_cast<double>(tiles);
}

}  // namespace dyna::model
