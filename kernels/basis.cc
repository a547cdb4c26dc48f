#include "kernels/basis.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/basis_layout.h"
#include "kernels/codec_math.h"
#include "kernels/crc32c.h"
#include "schemas/sha256.h"

namespace dyna {
namespace {

namespace at = basis_layout;

template <typename T>
T Get(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

Status Bad(const std::string& what) { return Invalid("basis: " + what); }

// A fixed sign for each (probe, channel): splitmix64's finaliser.
float Sign(int probe, int channel) {
  uint64_t x = static_cast<uint64_t>(probe * kMaxHeadDim + channel + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return ((x ^ (x >> 31)) & 1) != 0 ? 1.0f : -1.0f;
}

Status GetHalves(const std::byte* from, size_t n, const char* name, std::vector<float>* to) {
  to->resize(n);
  for (size_t i = 0; i < n; ++i) {
    (*to)[i] = codec::F16ToF32(Get<uint16_t>(from + 2 * i));
    if (!codec::IsFiniteBits((*to)[i])) return Bad(std::string(name) + " is not finite");
  }
  return {};
}

// Does B undo A? Tried on vectors of +-1: each component of B A r - r is a sum of d entries of
// B A - 1, which the rounding of A and B to f16 leaves far below 1/2 on any sane pair.
bool Inverts(const float* a, const float* b, int d) {
  std::vector<float> r(static_cast<size_t>(d)), y(r.size());
  for (int probe = 0; probe < Basis::kProbes; ++probe) {
    for (int c = 0; c < d; ++c) r[static_cast<size_t>(c)] = Sign(probe, c);
    for (int c = 0; c < d; ++c) {
      float sum = 0;
      for (int j = 0; j < d; ++j) sum += a[c * d + j] * r[static_cast<size_t>(j)];
      y[static_cast<size_t>(c)] = sum;
    }
    for (int j = 0; j < d; ++j) {
      float sum = 0;
      for (int c = 0; c < d; ++c) sum += b[j * d + c] * y[static_cast<size_t>(c)];
      if (!(std::abs(sum - r[static_cast<size_t>(j)]) < 0.5f)) return false;
    }
  }
  return true;
}

}  // namespace

size_t BasisBytes(int kv_heads, int head_dim, int run, int levels) {
  const at::CellLayout layout(head_dim, run, levels);
  return static_cast<size_t>(kBasisHeaderBytes) + static_cast<size_t>(kv_heads) * layout.bytes;
}

Result<std::shared_ptr<const Basis>> Basis::Parse(std::span<const std::byte> bytes) {
  if (bytes.size() < kBasisHeaderBytes) return Bad("shorter than its header");
  std::shared_ptr<Basis> basis(new Basis);
  basis->bytes_.assign(bytes.begin(), bytes.end());
  DYNA_RETURN_IF_ERROR(basis->ParseHeader());
  const BasisInfo& info = basis->info_;
  const at::CellLayout layout(info.head_dim, info.run, info.levels);
  basis->cells_.resize(info.kv_heads);
  const std::byte* from = basis->bytes_.data() + kBasisHeaderBytes;
  for (Cell& cell : basis->cells_) {
    DYNA_RETURN_IF_ERROR(basis->ParseCell(from, &cell));
    from += layout.bytes;
  }
  basis->name_ = Sha256Name(basis->bytes_);
  basis->Derive();
  return std::shared_ptr<const Basis>(std::move(basis));
}

Status Basis::ParseHeader() {
  const std::byte* h = bytes_.data();
  if (std::memcmp(h, at::kMagic, sizeof at::kMagic) != 0) return Bad("magic");
  if (Get<uint16_t>(h + at::kVersionAt) != at::kVersion)
    return Unsupported("basis: version " + std::to_string(Get<uint16_t>(h + at::kVersionAt)));
  if (Get<uint16_t>(h + at::kHeaderBytesAt) != kBasisHeaderBytes) return Bad("header bytes");
  info_.fingerprint = Get<uint64_t>(h + at::kFingerprintAt);
  info_.layer = Get<uint16_t>(h + at::kLayerAt);
  info_.head0 = Get<uint16_t>(h + at::kHead0At);
  info_.kv_heads = Get<uint16_t>(h + at::kKvHeadsAt);
  info_.head_dim = Get<uint16_t>(h + at::kHeadDimAt);
  const auto frame = Get<uint8_t>(h + at::kFrameAt), source = Get<uint8_t>(h + at::kSourceAt);
  info_.run = Get<uint8_t>(h + at::kRunAt);
  info_.levels = Get<uint8_t>(h + at::kLevelsAt);
  info_.tokens = Get<uint32_t>(h + at::kTokensAt);
  info_.queries = Get<uint32_t>(h + at::kQueriesAt);
  if (info_.layer >= kMaxLayers) return Bad("layer");
  if (info_.kv_heads == 0 || info_.head0 + info_.kv_heads > kMaxKvHeads) return Bad("kv_heads");
  if (info_.head_dim < 16 || info_.head_dim > kMaxHeadDim || info_.head_dim % 16 != 0)
    return Bad("head_dim");
  if (info_.run != 16 && (info_.run != 8 || info_.head_dim > 64)) return Bad("run");
  if (info_.levels < 1 || info_.levels > kMaxLevels) return Bad("levels");
  if (frame > static_cast<uint8_t>(Frame::kPost)) return Bad("frame");
  if (source < 1 || source > static_cast<uint8_t>(BasisSource::kKeys)) return Bad("source");
  info_.frame = static_cast<Frame>(frame);
  info_.source = static_cast<BasisSource>(source);
  for (size_t i = at::kReservedAt; i < at::kCrcAt; ++i)
    if (h[i] != std::byte{0}) return Bad("reserved bytes");
  if (bytes_.size() != BasisBytes(info_.kv_heads, info_.head_dim, info_.run, info_.levels))
    return Bad("length");
  const std::byte zero[4] = {};
  uint32_t crc = Crc32c({h, at::kCrcAt});
  crc = Crc32c(zero, crc);
  crc = Crc32c(std::span<const std::byte>(bytes_).subspan(kBasisHeaderBytes), crc);
  if (crc != Get<uint32_t>(h + at::kCrcAt)) return Bad("checksum");
  return {};
}

Status Basis::ParseCell(const std::byte* from, Cell* cell) const {
  const int d = info_.head_dim;
  const size_t n = static_cast<size_t>(d);
  const at::CellLayout layout(d, info_.run, info_.levels);
  DYNA_RETURN_IF_ERROR(GetHalves(from + layout.mu, n, "mu", &cell->mu));
  DYNA_RETURN_IF_ERROR(GetHalves(from + layout.a, n * n, "A", &cell->a));
  DYNA_RETURN_IF_ERROR(GetHalves(from + layout.b, n * n, "B", &cell->b));
  cell->variances.resize(n);
  std::memcpy(cell->variances.data(), from + layout.variances, 4 * n);
  for (const float v : cell->variances) {
    if (!(v >= 0) || !codec::IsFiniteBits(v)) return Bad("variances");
    cell->seen |= v > 0;
  }
  const size_t count = static_cast<size_t>(info_.levels * runs());
  cell->widths.resize(count);
  std::memcpy(cell->widths.data(), from + layout.widths, count);
  for (size_t i = layout.widths + count; i < layout.bytes; ++i)
    if (from[i] != std::byte{0}) return Bad("padding");
  DYNA_RETURN_IF_ERROR(CheckWidths(*cell));
  if (cell->seen && !Inverts(cell->a.data(), cell->b.data(), d)) return Bad("B does not undo A");
  return {};
}

Status Basis::CheckWidths(const Cell& cell) const {
  const size_t runs_of_level = static_cast<size_t>(runs());
  for (size_t i = 0; i < cell.widths.size(); ++i) {
    const uint8_t w = cell.widths[i];
    if (w != 0 && w != 2 && w != 4 && w != 8) return Bad("a width is not 0, 2, 4 or 8");
    if ((i < runs_of_level || !cell.seen) && w != 0)
      return Bad("level 0 or a head that was not seen has a width");
    if (i >= runs_of_level && w < cell.widths[i - runs_of_level])
      return Bad("a level is narrower than the one below");
  }
  return {};
}

void Basis::Derive() {
  const int d = info_.head_dim;
  targets_.assign(info_.levels, 0);
  for (Cell& cell : cells_) {
    for (int level = 0; level < info_.levels; ++level) {
      const std::span<const uint8_t> w(&cell.widths[static_cast<size_t>(level * runs())],
                                       static_cast<size_t>(runs()));
      int live = 0;
      for (int r = 0; r < runs(); ++r)
        if (w[static_cast<size_t>(r)] != 0) live = (r + 1) * info_.run;
      cell.live.push_back(live);
      double& target = targets_[static_cast<size_t>(level)];
      target = std::max(target, MeanBits(w));
      std::vector<float> probes;
      if (live < d) probes.assign(static_cast<size_t>(kProbes * d), 0.0f);
      for (int p = 0; p < kProbes && live < d; ++p) {
        for (int c = live; c < d; ++c) {
          const float sign = Sign(p, c) / 2;  // sqrt(kProbes) = 2
          for (int j = 0; j < d; ++j)
            probes[static_cast<size_t>(p * d + j)] += sign * cell.a[static_cast<size_t>(c * d + j)];
        }
      }
      cell.probes.push_back(std::move(probes));
    }
  }
  static_assert(kProbes == 4);
  for (double& target : targets_) {
    const auto* named = std::lower_bound(kLevelTargets.begin(), kLevelTargets.end(), target);
    if (named != kLevelTargets.end()) target = *named;
  }
}

size_t Basis::memory_bytes() const {
  size_t bytes = bytes_.size();
  for (const Cell& cell : cells_) {
    bytes += 4 * (cell.mu.size() + cell.a.size() + cell.b.size() + cell.variances.size());
    bytes += cell.widths.size();
    for (const auto& probes : cell.probes) bytes += 4 * probes.size();
  }
  return bytes;
}

bool Basis::seen(int head) const { return cell(head).seen; }

std::span<const uint8_t> Basis::widths(int head, int level) const {
  return {&cell(head).widths[static_cast<size_t>(level * runs())], static_cast<size_t>(runs())};
}

std::span<const float> Basis::variances(int head) const { return cell(head).variances; }

double Basis::mean_bits(int head, int level) const { return MeanBits(widths(head, level)); }

double Basis::relative_error(int head, int level) const {
  return PredictedError(widths(head, level), variances(head));
}

int Basis::LevelOf(double target) const {
  int level = 0;
  while (level + 1 < info_.levels && targets_[static_cast<size_t>(level + 1)] <= target) ++level;
  return level;
}

int Basis::live_channels(int head, int level) const {
  return cell(head).live[static_cast<size_t>(level)];
}

const float* Basis::probes(int head, int level) const {
  const auto& probes = cell(head).probes[static_cast<size_t>(level)];
  return probes.empty() ? nullptr : probes.data();
}

}  // namespace dyna
