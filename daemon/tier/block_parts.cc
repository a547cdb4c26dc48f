#include "daemon/tier/block_parts.h"

#include <algorithm>
#include <set>
#include <string>

namespace dyna {
namespace {

std::string Name(const PartId& id) {
  if (id.kind == PartId::Kind::kHistory) return "history";
  return "segment of layer " + std::to_string(id.layer) + ", head " + std::to_string(id.head_begin);
}

}  // namespace

std::vector<ListedPart> PartsOf(const record::BlockMeta& meta) {
  std::vector<ListedPart> parts;
  parts.reserve(meta.segments.size() + 1);
  for (const record::SegmentEntry& s : meta.segments)
    parts.push_back({{PartId::Kind::kSegment, s.layer, s.head_begin}, s.bytes});
  if (meta.history_bytes > 0) parts.push_back({{PartId::Kind::kHistory, 0, 0}, meta.history_bytes});
  return parts;
}

Status CheckWrite(const BlockWrite& write, const record::BlockMeta* stored) {
  DYNA_RETURN_IF_ERROR(record::Validate(write.meta));
  const std::vector<ListedPart> listed = PartsOf(write.meta);
  std::set<PartId> seen;
  for (const PartWrite& part : write.parts) {
    const auto at =
        std::lower_bound(listed.begin(), listed.end(), part.id,
                         [](const ListedPart& l, const PartId& id) { return l.id < id; });
    if (at == listed.end() || at->id != part.id)
      return Invalid("parts: the row does not list the " + Name(part.id));
    if (at->bytes != part.bytes.size())
      return Invalid("parts: the " + Name(part.id) + " has " + std::to_string(part.bytes.size()) +
                     " bytes, its row says " + std::to_string(at->bytes));
    if (!seen.insert(part.id).second)
      return Invalid("parts: the " + Name(part.id) + " comes twice");
  }
  std::vector<ListedPart> there;
  if (stored != nullptr && stored->generation == write.meta.generation) there = PartsOf(*stored);
  for (const ListedPart& part : listed) {
    if (seen.count(part.id) > 0) continue;
    if (std::find(there.begin(), there.end(), part) == there.end())
      return Invalid("parts: the " + Name(part.id) + " neither comes nor is stored");
  }
  return {};
}

uint64_t LiveBytes(const record::BlockMeta& meta, uint64_t row_bytes, uint64_t frame) {
  const uint64_t parts = meta.segments.size() + (meta.history_bytes > 0 ? 1 : 0);
  return row_bytes + record::SegmentBytes(meta) + meta.history_bytes + parts * frame;
}

}  // namespace dyna
