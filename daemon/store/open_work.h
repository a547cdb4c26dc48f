// What clients have begun and not finished, by kind: how many segments of each layer are still to
// come. Kept as writers begin, take layers and end, so that a put need not ask each of them.
//
// Thread rule: the loop's.
#pragma once

#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "daemon/store/block.h"

namespace dyna {

class OpenWork {
 public:
  // Writers that are alike.
  struct Kind {
    StoreContext* context = nullptr;
    Shard shard;
    QualityClass quality = QualityClass::kBalanced;
    BlockHash hash;  // of the first one's block
    uint32_t writers = 0;
    std::vector<uint32_t> left;  // [layer - shard.layer_begin]: segments that nobody has put yet
  };

  void Begin(StoreContext& context, const Writer& writer, const BlockHash& hash);
  // A layer, from the shard's first, was put; or what was put could not be coded.
  void Take(StoreContext& context, const Writer& writer, size_t layer);
  void GiveBack(StoreContext& context, const Writer& writer, size_t layer);
  // Committed or given up. REQUIRES that it was begun, and is asked once.
  void End(StoreContext& context, const Writer& writer);

  const Kind* Find(StoreContext& context, const Shard& shard, QualityClass quality) const;
  // Any order.
  template <typename Visit>
  void ForEach(Visit&& visit) const {
    for (const auto& [key, kind] : kinds_) visit(kind);
  }
  uint64_t writers() const { return writers_; }
  uint64_t begun() const { return begun_; }  // ever

 private:
  using Key = std::tuple<StoreContext*, uint16_t, uint16_t, uint16_t, uint16_t, QualityClass>;
  static Key KeyOf(StoreContext& context, const Shard& shard, QualityClass quality) {
    return {&context,         shard.layer_begin, shard.layer_end,
            shard.head_begin, shard.head_end,    quality};
  }
  Kind* Of(StoreContext& context, const Writer& writer);

  std::map<Key, Kind> kinds_;  // no more of them than writers
  uint64_t writers_ = 0, begun_ = 0;
};

}  // namespace dyna
