// Writing a basis object: rounds, makes the ladder, and proves the result at the door.
#include <cstring>
#include <string>

#include "kernels/basis.h"
#include "kernels/basis_layout.h"
#include "kernels/codec_math.h"
#include "kernels/crc32c.h"

namespace dyna {
namespace {

namespace at = basis_layout;

template <typename T>
void Put(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

// Through f32, as every reader would round a double of its own.
void PutHalves(std::byte* to, const std::vector<double>& values) {
  for (size_t i = 0; i < values.size(); ++i)
    Put(to + 2 * i, codec::F32ToF16(static_cast<float>(values[i])));
}

std::vector<double> Identity(size_t d) {
  std::vector<double> one(d * d, 0.0);
  for (size_t i = 0; i < d; ++i) one[i * d + i] = 1;
  return one;
}

}  // namespace

Result<std::shared_ptr<const Basis>> Basis::Build(const BasisInfo& info,
                                                  std::span<const BasisHeadParts> heads) {
  const size_t d = info.head_dim;
  if (d < 16 || d > kMaxHeadDim || d % 16 != 0) return Invalid("basis: head_dim");
  if (info.run != 8 && info.run != 16) return Invalid("basis: run");
  if (heads.size() != info.kv_heads) return Invalid("basis: heads are not kv_heads in number");
  std::vector<std::vector<float>> variances;
  for (const BasisHeadParts& head : heads) {
    const bool seen = !head.variances.empty();
    if (seen && (head.variances.size() != d || head.mu.size() != d || head.a.size() != d * d ||
                 head.b.size() != d * d))
      return Invalid("basis: sizes of mu, A, B or variances");
    variances.emplace_back(head.variances.begin(), head.variances.end());
    variances.back().resize(d);
    for (const float v : variances.back())
      if (!(v >= 0) || !codec::IsFiniteBits(v)) return Invalid("basis: variances");
  }
  const std::vector<std::span<const float>> spans(variances.begin(), variances.end());
  const auto levels = LayerLadder(spans, info.run);

  const int level_count = static_cast<int>(levels.size());
  std::vector<std::byte> bytes(BasisBytes(info.kv_heads, info.head_dim, info.run, level_count));
  std::byte* h = bytes.data();
  std::memcpy(h, at::kMagic, sizeof at::kMagic);
  Put(h + at::kVersionAt, at::kVersion);
  Put(h + at::kHeaderBytesAt, static_cast<uint16_t>(kBasisHeaderBytes));
  Put(h + at::kFingerprintAt, info.fingerprint);
  Put(h + at::kLayerAt, info.layer);
  Put(h + at::kHead0At, info.head0);
  Put(h + at::kKvHeadsAt, info.kv_heads);
  Put(h + at::kHeadDimAt, info.head_dim);
  Put(h + at::kFrameAt, static_cast<uint8_t>(info.frame));
  Put(h + at::kRunAt, info.run);
  Put(h + at::kLevelsAt, static_cast<uint8_t>(level_count));
  Put(h + at::kSourceAt, static_cast<uint8_t>(info.source));
  Put(h + at::kTokensAt, info.tokens);
  Put(h + at::kQueriesAt, info.queries);

  const at::CellLayout layout(info.head_dim, info.run, level_count);
  std::byte* to = h + kBasisHeaderBytes;
  for (size_t i = 0; i < heads.size(); ++i, to += layout.bytes) {
    const bool seen = !heads[i].variances.empty();
    PutHalves(to + layout.mu, seen ? heads[i].mu : std::vector<double>(d, 0.0));
    PutHalves(to + layout.a, seen ? heads[i].a : Identity(d));
    PutHalves(to + layout.b, seen ? heads[i].b : Identity(d));
    std::memcpy(to + layout.variances, variances[i].data(), 4 * d);
    std::byte* widths = to + layout.widths;
    for (const auto& level : levels) {
      std::memcpy(widths, level[i].data(), level[i].size());
      widths += level[i].size();
    }
  }
  Put(h + at::kCrcAt, Crc32c(bytes));
  return Parse(bytes);
}

}  // namespace dyna
