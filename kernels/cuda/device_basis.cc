#include "kernels/cuda/device_basis.h"

#include <cstring>

#include "kernels/codec_math.h"
#include "kernels/cuda/fragment.h"

namespace dyna::cuda {
namespace {

constexpr int kPlainRun = 16;
constexpr size_t kRunsOfDim = kMaxHeadDim / kPlainRun;

uint32_t Two(float low, float high) {
  return codec::F32ToF16(low) | static_cast<uint32_t>(codec::F32ToF16(high)) << 16;
}

// A [d][d] as operand A: rows are channels of y, columns those of a row of x.
void OrderA(const float* a, int d, uint32_t* out) {
  for (int m = 0; m < d / 16; ++m)
    for (int k = 0; k < d / 16; ++k)
      for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) {
          const int g = lane / 4, q = lane % 4, first = i & 2;
          const float* row = a + (16 * m + g + 8 * (i & 1)) * d + 16 * k;
          *out++ = Two(row[RowChannel(q, first)], row[RowChannel(q, first + 1)]);
        }
}

// B [d][d] as operand B of two n-tiles: rows are channels of x, columns those of planes of y.
void OrderB(const float* b, int d, uint32_t* out) {
  for (int m = 0; m < d / 16; ++m)
    for (int k = 0; k < d / 16; ++k)
      for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) {
          const int g = lane / 4, q = lane % 4, e = i / 2, first = 2 * (i & 1);
          const float* row = b + (16 * m + OutChannel(e, g)) * d + 16 * k;
          *out++ = Two(row[PlaneChannel(q, first)], row[PlaneChannel(q, first + 1)]);
        }
}

template <typename T>
void Put(std::vector<std::byte>* bytes, size_t at, const T* from, size_t count) {
  std::memcpy(bytes->data() + at, from, count * sizeof(T));
}

Status Upload(const std::vector<std::byte>& bytes, DeviceMemory* to) {
  DYNA_RETURN_IF_ERROR(to->Reserve(bytes.size()));
  DYNA_RETURN_IF_ERROR(CopyToDevice(to->data(), bytes.data(), bytes.size(), nullptr));
  return WaitFor(nullptr);
}

}  // namespace

std::vector<RunPlace> PlaceRuns(std::span<const uint8_t> widths, int run, int head_dim) {
  std::vector<RunPlace> places;
  size_t at = 2 * static_cast<size_t>(head_dim);
  for (const uint8_t w : widths) {
    places.push_back({w, static_cast<uint16_t>(at), 0});
    at += static_cast<size_t>(w == 0 ? 0 : (w == 2 ? 1 : 2) * run);
  }
  at = (at + 15) / 16 * 16;
  for (RunPlace& place : places) {
    place.code_at = static_cast<uint32_t>(at);
    at += static_cast<size_t>(8 * run * place.width);
  }
  return places;
}

Result<std::shared_ptr<const DeviceBasis>> DeviceBasis::Create(std::shared_ptr<const Basis> basis) {
  std::shared_ptr<DeviceBasis> out(new DeviceBasis);
  const BasisInfo& info = basis->info();
  const int d = info.head_dim;
  const size_t matrix = 2 * static_cast<size_t>(d) * static_cast<size_t>(d);
  const size_t mu = 4 * static_cast<size_t>(d);
  const size_t heads = info.kv_heads, runs = static_cast<size_t>(basis->runs());
  const size_t cells = (heads * sizeof(BasisCell) + 255) / 256 * 256;
  out->runs_at_ = cells + heads * (2 * matrix + mu);
  std::vector<std::byte> bytes(out->runs_at_ + heads * info.levels * runs * sizeof(RunPlace));
  DYNA_RETURN_IF_ERROR(out->memory_.Reserve(bytes.size()));
  std::vector<uint32_t> ordered(matrix / 4);
  for (size_t i = 0; i < heads; ++i) {
    const int head = info.head0 + static_cast<int>(i);
    const size_t at = cells + i * (2 * matrix + mu);
    OrderA(basis->a(head), d, ordered.data());
    Put(&bytes, at, ordered.data(), ordered.size());
    OrderB(basis->b(head), d, ordered.data());
    Put(&bytes, at + matrix, ordered.data(), ordered.size());
    Put(&bytes, at + 2 * matrix, basis->mu(head), static_cast<size_t>(d));
    const std::byte* base = out->memory_.data() + at;
    const BasisCell cell{reinterpret_cast<const uint32_t*>(base),
                         reinterpret_cast<const uint32_t*>(base + matrix),
                         reinterpret_cast<const float*>(base + 2 * matrix)};
    Put(&bytes, i * sizeof cell, &cell, 1);
    for (int level = 0; level < info.levels; ++level) {
      const auto places = PlaceRuns(basis->widths(head, level), info.run, d);
      Put(&bytes,
          out->runs_at_ + (i * info.levels + static_cast<size_t>(level)) * runs * sizeof(RunPlace),
          places.data(), places.size());
    }
  }
  DYNA_RETURN_IF_ERROR(Upload(bytes, &out->memory_));
  out->basis_ = std::move(basis);
  return std::shared_ptr<const DeviceBasis>(std::move(out));
}

const BasisCell* DeviceBasis::cell(int head) const {
  return reinterpret_cast<const BasisCell*>(memory_.data()) + (head - basis_->info().head0);
}

const RunPlace* DeviceBasis::runs(int head, int level) const {
  const int index = (head - basis_->info().head0) * basis_->info().levels + level;
  return reinterpret_cast<const RunPlace*>(memory_.data() + runs_at_) + index * basis_->runs();
}

Result<std::shared_ptr<const DeviceRope>> DeviceRope::Create(
    std::shared_ptr<const RopeTable> table) {
  std::shared_ptr<DeviceRope> out(new DeviceRope);
  const int pairs = table->rotary_dim() / 2;
  std::vector<std::byte> bytes(static_cast<size_t>(kBlockTokens * pairs) * sizeof(Turn));
  for (int t = 0; t < kBlockTokens; ++t)
    for (int p = 0; p < pairs; ++p) {
      const Turn turn{table->cos_at(p, t), table->sin_at(p, t)};
      Put(&bytes, static_cast<size_t>(t * pairs + p) * sizeof turn, &turn, 1);
    }
  if (!bytes.empty()) DYNA_RETURN_IF_ERROR(Upload(bytes, &out->memory_));
  out->table_ = std::move(table);
  return std::shared_ptr<const DeviceRope>(std::move(out));
}

Status PlainRuns::Open() {
  std::vector<std::byte> bytes(2 * kRunsOfDim * kRunsOfDim * sizeof(RunPlace));
  for (size_t groups = 1; groups <= kRunsOfDim; ++groups)
    for (const uint8_t width : {uint8_t{8}, uint8_t{4}}) {
      const std::vector<uint8_t> widths(groups, width);
      const auto places = PlaceRuns(widths, kPlainRun, static_cast<int>(groups) * kPlainRun);
      Put(&bytes, ((groups - 1) * 2 + (width == 4 ? 1 : 0)) * kRunsOfDim * sizeof(RunPlace),
          places.data(), places.size());
    }
  return Upload(bytes, &memory_);
}

const RunPlace* PlainRuns::of(int head_dim, uint8_t k_kind) const {
  const size_t index =
      (static_cast<size_t>(head_dim) / kPlainRun - 1) * 2 + (k_kind == kind::kPlain4 ? 1 : 0);
  return reinterpret_cast<const RunPlace*>(memory_.data()) + index * kRunsOfDim;
}

}  // namespace dyna::cuda
