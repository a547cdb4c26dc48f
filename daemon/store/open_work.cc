#include "daemon/store/open_work.h"

#include <cassert>

namespace dyna {

void OpenWork::Begin(StoreContext& context, const Writer& writer, const BlockHash& hash) {
  Kind& kind = kinds_[KeyOf(context, writer.shard, writer.quality)];
  if (kind.writers++ == 0) {
    kind.context = &context;
    kind.shard = writer.shard;
    kind.quality = writer.quality;
    kind.hash = hash;
    kind.left.assign(writer.taken.size(), 0);
  }
  for (uint32_t& left : kind.left) ++left;
  ++writers_;
  ++begun_;
}

OpenWork::Kind* OpenWork::Of(StoreContext& context, const Writer& writer) {
  const auto it = kinds_.find(KeyOf(context, writer.shard, writer.quality));
  assert(it != kinds_.end());
  return it == kinds_.end() ? nullptr : &it->second;
}

void OpenWork::Take(StoreContext& context, const Writer& writer, size_t layer) {
  if (Kind* kind = Of(context, writer)) --kind->left[layer];
}

void OpenWork::GiveBack(StoreContext& context, const Writer& writer, size_t layer) {
  if (Kind* kind = Of(context, writer)) ++kind->left[layer];
}

void OpenWork::End(StoreContext& context, const Writer& writer) {
  Kind* kind = Of(context, writer);
  if (kind == nullptr) return;
  for (size_t l = 0; l < kind->left.size(); ++l) kind->left[l] -= !writer.taken[l];
  --writers_;
  if (--kind->writers == 0) kinds_.erase(KeyOf(context, writer.shard, writer.quality));
}

const OpenWork::Kind* OpenWork::Find(StoreContext& context, const Shard& shard,
                                     QualityClass quality) const {
  const auto it = kinds_.find(KeyOf(context, shard, quality));
  return it == kinds_.end() ? nullptr : &it->second;
}

}  // namespace dyna
