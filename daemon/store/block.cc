#include "daemon/store/block.h"

#include <algorithm>

namespace dyna {
namespace {

// From (row) to (column): Writing, Resident, Spilled, Gone. Writing -> Spilled is how a restart
// finds a block; everything ends in Gone.
constexpr bool kLegal[4][4] = {
    {false, true, true, true},
    {false, false, true, true},
    {false, true, false, true},
    {false, false, false, false},
};

}  // namespace

std::string_view BlockStateName(BlockState state) {
  switch (state) {
    case BlockState::kWriting:
      return "writing";
    case BlockState::kResident:
      return "resident";
    case BlockState::kSpilled:
      return "spilled";
    case BlockState::kGone:
      return "gone";
  }
  return "?";
}

bool Writer::complete() const {
  return std::all_of(segments.begin(), segments.end(),
                     [](const Segment& s) { return s.bytes != 0; });
}

bool Block::To(BlockState next) {
  if (!kLegal[static_cast<int>(state_)][static_cast<int>(next)]) return false;
  if (next == BlockState::kSpilled || next == BlockState::kGone)
    for (Segment& s : segments) {
      s.extent.Retire();
      s.nursery.Release();
    }
  state_ = next;
  return true;
}

bool Block::young() const {
  return std::any_of(segments.begin(), segments.end(),
                     [](const Segment& s) { return bool{s.nursery}; });
}

uint64_t Block::segment_bytes() const {
  uint64_t sum = 0;
  for (const Segment& s : segments) sum += s.bytes;
  return sum;
}

float Block::nmse() const {
  double error = 0, weight = 0;
  for (const Segment& s : segments) {
    error += static_cast<double>(s.nmse) * s.kv_heads;
    weight += s.kv_heads;
  }
  return weight > 0 ? static_cast<float>(error / weight) : 0;
}

bool Block::Covers(const Shard& want) const {
  for (const Shard& s : shards)  // the common case: one writer held as much as the reader wants
    if (s.layer_begin <= want.layer_begin && want.layer_end <= s.layer_end &&
        s.head_begin <= want.head_begin && want.head_end <= s.head_end)
      return true;
  for (uint16_t layer = want.layer_begin; layer < want.layer_end; ++layer) {
    uint16_t head = want.head_begin;
    bool moved = true;
    while (head < want.head_end && moved) {
      moved = false;
      for (const Shard& s : shards)
        if (s.layer_begin <= layer && layer < s.layer_end && s.head_begin <= head &&
            head < s.head_end) {
          head = s.head_end;
          moved = true;
        }
    }
    if (head < want.head_end) return false;
  }
  return true;
}

Segment* Block::Find(uint16_t layer, uint16_t head) {
  auto it = std::upper_bound(
      segments.begin(), segments.end(), std::pair(layer, head),
      [](const auto& at, const Segment& s) { return at < std::pair(s.layer, s.head_begin); });
  // Overlapping shards may start between: look back while the layer is the same.
  while (it != segments.begin()) {
    --it;
    if (it->layer != layer) return nullptr;
    if (it->head_begin <= head && head < it->head_end()) return &*it;
  }
  return nullptr;
}

}  // namespace dyna
