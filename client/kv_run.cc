#include "client/kv_run.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace dyna {

Result<KvRun> KvRun::Create(const ContextSpec& spec, uint16_t layer_begin, uint16_t layers,
                            uint32_t blocks, uint16_t heads, KvMemory memory,
                            DeviceCopier* device) {
  const size_t segments = size_t{blocks} * layers;
  if (segments == 0 || heads == 0) return Invalid("no block, layer or head is named");
  if (memory.k.size() != segments || memory.v.size() != segments)
    return Invalid("memory: " + std::to_string(memory.k.size()) + " addresses of k and " +
                   std::to_string(memory.v.size()) + " of v, " + std::to_string(segments) +
                   " segments");
  for (const auto* addresses : {&memory.k, &memory.v})
    for (const std::byte* a : *addresses)
      if (a == nullptr) return Invalid("memory: an address is null");
  KvRun run;
  run.device_ = device;
  run.memory_ = std::move(memory);
  run.blocks_ = blocks;
  run.layers_ = layers;
  run.heads_ = heads;
  run.first_block_.assign(layers, 0);
  for (size_t i = layer_begin; i < size_t{layer_begin} + layers; ++i) {
    if (spec.layers[i].kind == LayerKind::kOpaque)
      return Unsupported("layer " + std::to_string(i) + " is opaque: use PutOpaque");
    run.head_dims_.push_back(spec.layers[i].head_dim);
    run.dense_bytes_.push_back(
        DenseSegmentBytes(heads, spec.layers[i].head_dim, run.memory_.dtype));
  }
  return run;
}

size_t KvRun::Index(const Piece& p, size_t segment) const {
  return (p.block + segment / p.layers) * layers_ + p.layer + segment % p.layers;
}

uint64_t KvRun::DenseBytes(const Piece& p) const {
  uint64_t block = 0;
  for (size_t l = p.layer; l < size_t{p.layer} + p.layers; ++l) block += dense_bytes_[l];
  return block * p.blocks;
}

void KvRun::SkipBefore(uint16_t layer, uint32_t block) {
  first_block_[layer] = std::min(block, blocks_);
}

std::vector<Piece> KvRun::Split(size_t max_segments, uint64_t max_bytes) const {
  std::vector<uint32_t> ends(first_block_);  // between two of them the same layers are wanted
  ends.push_back(blocks_);
  std::sort(ends.begin(), ends.end());
  std::vector<Piece> pieces;
  uint32_t begin = 0;
  for (const uint32_t end : ends) {
    for (uint16_t l = 0; begin < end && l < layers_;) {
      Piece whole{begin, end - begin, l, 0};
      while (l < layers_ && first_block_[l] <= begin) ++whole.layers, ++l;
      if (whole.layers != 0) SplitInto(whole, max_segments, max_bytes, &pieces);
      if (l < layers_) ++l;  // one that is not wanted here
    }
    begin = end;
  }
  return pieces;
}

void KvRun::SplitInto(const Piece& whole, size_t max_segments, uint64_t max_bytes,
                      std::vector<Piece>* pieces) const {
  const uint32_t end = whole.block + whole.blocks;
  const auto layer_end = static_cast<uint16_t>(whole.layer + whole.layers);
  const uint64_t block_bytes = DenseBytes(Piece{0, 1, whole.layer, whole.layers});
  // One set of strides describes a message, so a piece has one head_dim.
  const bool uniform = std::all_of(head_dims_.begin() + whole.layer, head_dims_.begin() + layer_end,
                                   [&](uint16_t d) { return d == head_dims_[whole.layer]; });
  if (uniform && whole.layers <= max_segments && block_bytes <= max_bytes) {  // whole blocks
    const uint64_t by_bytes = max_bytes / block_bytes;
    const auto step = static_cast<uint32_t>(std::min<uint64_t>(
        std::min<uint64_t>(max_segments / whole.layers, by_bytes), wire::kMaxBlocksPerMessage));
    for (uint32_t b = whole.block; b < end; b += step)
      pieces->push_back({b, std::min(step, end - b), whole.layer, whole.layers});
    return;
  }
  for (uint32_t b = whole.block; b < end; ++b)  // parts of one block
    for (uint16_t l = whole.layer; l < layer_end;) {
      Piece p{b, 1, l, 1};
      while (l + p.layers < layer_end && p.layers < max_segments &&
             head_dims_[l + p.layers] == head_dims_[l] &&
             DenseBytes(Piece{b, 1, l, static_cast<uint16_t>(p.layers + 1)}) <= max_bytes)
        ++p.layers;
      l = static_cast<uint16_t>(l + p.layers);
      pieces->push_back(p);
    }
}

std::span<std::byte> KvRun::Hull() const {
  uintptr_t low = UINTPTR_MAX, high = 0;
  auto widen = [&](const std::vector<std::byte*>& at, int64_t token, int64_t head) {
    const int64_t t = (kBlockTokens - 1) * token, h = int64_t{heads_ - 1} * head;
    const int64_t least = std::min<int64_t>(t, 0) + std::min<int64_t>(h, 0);
    const int64_t most = std::max<int64_t>(t, 0) + std::max<int64_t>(h, 0);
    for (size_t s = 0; s < at.size(); ++s) {
      const auto a = reinterpret_cast<uintptr_t>(at[s]);
      low = std::min(low, a + static_cast<uintptr_t>(least));
      high = std::max(high, a + static_cast<uintptr_t>(most + RowBytes(s)));
    }
  };
  widen(memory_.k, memory_.k_token_stride, memory_.k_head_stride);
  widen(memory_.v, memory_.v_token_stride, memory_.v_head_stride);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): of addresses, in no one object
  return {reinterpret_cast<std::byte*>(low), high - low};
}

wire::Layout KvRun::NamedLayout(const Piece& p, const std::byte* base) const {
  wire::Layout layout;
  layout.dtype = memory_.dtype;
  layout.k_token_stride = memory_.k_token_stride;
  layout.k_head_stride = memory_.k_head_stride;
  layout.v_token_stride = memory_.v_token_stride;
  layout.v_head_stride = memory_.v_head_stride;
  for (size_t s = 0; s < p.segments(); ++s) {
    const size_t i = Index(p, s);
    layout.k_offsets.push_back(static_cast<uint64_t>(memory_.k[i] - base));
    layout.v_offsets.push_back(static_cast<uint64_t>(memory_.v[i] - base));
  }
  return layout;
}

wire::Layout KvRun::StagedLayout(const Piece& p, uint64_t offset) const {
  wire::Layout layout;
  layout.dtype = memory_.dtype;
  const int64_t row = RowBytes(Index(p, 0));
  layout.k_token_stride = layout.v_token_stride = row;
  layout.k_head_stride = layout.v_head_stride = 2 * kBlockTokens * row;
  for (size_t s = 0; s < p.segments(); ++s) {
    layout.k_offsets.push_back(offset);
    layout.v_offsets.push_back(offset + static_cast<uint64_t>(kBlockTokens * row));
    offset += DenseBytes(Index(p, s));
  }
  return layout;
}

template <typename Tile>
Status KvRun::ForTiles(size_t s, Tile tile) const {
  const auto bytes = static_cast<size_t>(RowBytes(s));
  for (int h = 0; h < heads_; ++h) {
    DYNA_RETURN_IF_ERROR(
        tile(memory_.k[s] + h * memory_.k_head_stride, memory_.k_token_stride, bytes));
    DYNA_RETURN_IF_ERROR(
        tile(memory_.v[s] + h * memory_.v_head_stride, memory_.v_token_stride, bytes));
  }
  return {};
}

std::span<std::byte> KvRun::DenseSpan(const Piece& p) const {
  if (memory_.on_device) return {};
  std::byte* const first = memory_.k[Index(p, 0)];
  std::byte* expected = first;
  for (size_t s = 0; s < p.segments(); ++s) {
    const size_t i = Index(p, s);
    const int64_t row = RowBytes(i), tile = kBlockTokens * row;
    const bool dense =
        memory_.k[i] == expected && memory_.v[i] == expected + tile &&
        memory_.k_token_stride == row && memory_.v_token_stride == row &&
        (heads_ == 1 || (memory_.k_head_stride == 2 * tile && memory_.v_head_stride == 2 * tile));
    if (!dense) return {};
    expected += DenseBytes(i);
  }
  return {first, expected};
}

Status KvRun::Pack(const Piece& p, std::byte* dense) const {
  for (size_t s = 0; s < p.segments(); ++s)
    DYNA_RETURN_IF_ERROR(
        ForTiles(Index(p, s), [&](const std::byte* at, int64_t stride, size_t row) -> Status {
          std::byte* to = std::exchange(dense, dense + kBlockTokens * row);
          if (memory_.on_device) return device_->ToHost(at, stride, row, kBlockTokens, to);
          if (stride == static_cast<int64_t>(row)) {
            std::memcpy(to, at, kBlockTokens * row);
            return {};
          }
          for (int t = 0; t < kBlockTokens; ++t, to += row) std::memcpy(to, at + t * stride, row);
          return {};
        }));
  return {};
}

Status KvRun::UnpackSegment(size_t segment, const std::byte* dense) const {
  return ForTiles(segment, [&](std::byte* at, int64_t stride, size_t row) -> Status {
    const std::byte* from = std::exchange(dense, dense + kBlockTokens * row);
    if (memory_.on_device) return device_->ToDevice(from, row, kBlockTokens, at, stride);
    if (stride == static_cast<int64_t>(row)) {
      std::memcpy(at, from, kBlockTokens * row);
      return {};
    }
    for (int t = 0; t < kBlockTokens; ++t, from += row) std::memcpy(at + t * stride, from, row);
    return {};
  });
}

}  // namespace dyna
