#include <cmath>
#include <cstring>
#include <string>

#include "kernels/codec_math.h"
#include "kernels/cpu/jobs.h"

namespace dyna::cpu {
namespace {

float GetElement(const std::byte* row, DType dtype, int c) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, row + 4 * c, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, row + 2 * c, 2);
  return dtype == DType::kF16 ? codec::F16ToF32(bits) : codec::Bf16ToF32(bits);
}

void PutElement(std::byte* row, DType dtype, int c, float value) {
  if (dtype == DType::kF32) {
    std::memcpy(row + 4 * c, &value, 4);
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? codec::F32ToF16(value) : codec::F32ToBf16(value);
  std::memcpy(row + 2 * c, &bits, 2);
}

}  // namespace

Scratch& ThreadScratch() {
  static thread_local const std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();
  return *scratch;
}

Status AtToken(const SegmentId& id, int head, int token, const std::string& what) {
  return Invalid("layer " + std::to_string(id.layer) + ", head " + std::to_string(head) +
                 ", token " + std::to_string(token) + ": " + what);
}

Status NotCodable(const SegmentId& id, int head, const char* what, const float* planes, int d) {
  int token = 0;
  float most = -1;
  for (int i = 0; i < d * kLanes; ++i) {
    const float size = std::abs(planes[i]);
    if (size > most || std::isnan(size)) {
      most = size;
      token = i % kLanes;
    }
  }
  return AtToken(id, head, token, std::string(what) + " is outside the range of f16");
}

void ConvertRow(const std::byte* from, DType from_type, std::byte* to, DType to_type, int d) {
  if (from_type == to_type) {
    std::memcpy(to, from, static_cast<size_t>(d * DTypeBytes(from_type)));
    return;
  }
  for (int c = 0; c < d; ++c) PutElement(to, to_type, c, GetElement(from, from_type, c));
}

void SetLane(float* planes, int lane, const std::byte* row, DType dtype, int d) {
  for (int c = 0; c < d; ++c) planes[c * kLanes + lane] = GetElement(row, dtype, c);
}

void GetLane(const float* planes, int lane, std::byte* row, DType dtype, int d) {
  for (int c = 0; c < d; ++c) PutElement(row, dtype, c, planes[c * kLanes + lane]);
}

}  // namespace dyna::cpu
