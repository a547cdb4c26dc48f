// LayerMoments as bytes for a row of `meta`, and the door back:
//   layer u16, kv_heads u16, head_dim u16, frame u8, reserved u8, then per kv head
//   tokens u32, queries u32, mean f64[d], scatter f32[d (d + 1) / 2], qq likewise.
#include <cmath>
#include <cstring>
#include <string>

#include "daemon/policy/basis/moments.h"

namespace dyna {
namespace {

constexpr size_t kHeaderBytes = 8;

size_t CellBytes(int d) {
  return 8 + 8 * static_cast<size_t>(d) + 2 * sizeof(float) * TriangleSize(d);
}

template <typename T>
uint8_t* Put(uint8_t* to, const std::vector<T>& values) {
  std::memcpy(to, values.data(), values.size() * sizeof(T));
  return to + values.size() * sizeof(T);
}

template <typename T>
const uint8_t* Take(const uint8_t* from, std::vector<T>* values) {
  std::memcpy(values->data(), from, values->size() * sizeof(T));
  return from + values->size() * sizeof(T);
}

template <typename T>
bool Finite(const std::vector<T>& values) {
  for (T v : values)
    if (!std::isfinite(v)) return false;
  return true;
}

bool DiagonalPositive(const std::vector<float>& triangle, int d) {
  size_t at = 0;
  for (int i = 0; i < d; at += static_cast<size_t>(d - i), ++i)
    if (triangle[at] < 0) return false;
  return true;
}

}  // namespace

std::vector<uint8_t> LayerMoments::Serialize() const {
  std::vector<uint8_t> bytes(kHeaderBytes + cells_.size() * CellBytes(d_));
  const uint16_t header[3] = {static_cast<uint16_t>(layer_), static_cast<uint16_t>(kv_heads()),
                              static_cast<uint16_t>(d_)};
  std::memcpy(bytes.data(), header, sizeof header);
  bytes[6] = static_cast<uint8_t>(frame_);
  uint8_t* to = bytes.data() + kHeaderBytes;
  for (const CellMoments& cell : cells_) {
    std::memcpy(to, &cell.tokens, 4);
    std::memcpy(to + 4, &cell.queries, 4);
    to = Put(Put(Put(to + 8, cell.mean), cell.scatter), cell.qq);
  }
  return bytes;
}

Result<LayerMoments> LayerMoments::Parse(std::span<const uint8_t> bytes) {
  if (bytes.size() < kHeaderBytes) return Invalid("moments: shorter than their header");
  uint16_t header[3];
  std::memcpy(header, bytes.data(), sizeof header);
  const int layer = header[0], heads = header[1], d = header[2];
  if (layer >= kMaxLayers) return Invalid("moments.layer " + std::to_string(layer));
  if (heads < 1 || heads > kMaxKvHeads) return Invalid("moments.kv_heads " + std::to_string(heads));
  if (d < 16 || d > kMaxHeadDim || d % 16 != 0)
    return Invalid("moments.head_dim " + std::to_string(d));
  if (bytes[6] > static_cast<uint8_t>(Frame::kPost) || bytes[7] != 0)
    return Invalid("moments.frame");
  if (bytes.size() != kHeaderBytes + static_cast<size_t>(heads) * CellBytes(d))
    return Invalid("moments.bytes: " + std::to_string(bytes.size()));
  LayerMoments moments(layer, heads, d, static_cast<Frame>(bytes[6]));
  const uint8_t* from = bytes.data() + kHeaderBytes;
  for (int h = 0; h < heads; ++h) {
    CellMoments& cell = moments.cells_[static_cast<size_t>(h)];
    std::memcpy(&cell.tokens, from, 4);
    std::memcpy(&cell.queries, from + 4, 4);
    from = Take(Take(Take(from + 8, &cell.mean), &cell.scatter), &cell.qq);
    if (!Finite(cell.mean) || !Finite(cell.scatter) || !Finite(cell.qq) ||
        !DiagonalPositive(cell.scatter, d) || !DiagonalPositive(cell.qq, d))
      return Invalid("moments of head " + std::to_string(h) + " are no sums of squares");
  }
  return moments;
}

}  // namespace dyna
