#include "daemon/policy/basis/profile.h"

#include <cstring>
#include <string>

#include "kernels/crc32c.h"

namespace dyna {
namespace {

constexpr char kMagic[4] = {'D', 'Y', 'N', 'F'};
constexpr uint16_t kVersion = 1;
constexpr size_t kHeaderBytes = 64, kLayerBytes = 16, kCrcAt = 60;
constexpr uint32_t kHasOmega = 1;

size_t Padded(size_t n) { return (n + 15) / 16 * 16; }

template <typename T>
T Get(std::span<const std::byte> bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

template <typename T>
void Put(std::vector<std::byte>* out, size_t at, T value) {
  std::memcpy(out->data() + at, &value, sizeof value);
}

bool Zero(std::span<const std::byte> bytes) {
  for (std::byte b : bytes)
    if (b != std::byte{0}) return false;
  return true;
}

// Over the whole file with the checksum itself as zeros.
uint32_t Checksum(std::span<const std::byte> bytes) {
  const std::byte zeros[4] = {};
  uint32_t crc = Crc32c(bytes.first(kCrcAt));
  crc = Crc32c(zeros, crc);
  return Crc32c(bytes.subspan(kHeaderBytes), crc);
}

Status BadLayer(size_t layer, const std::string& what) {
  return Invalid("profile, layer " + std::to_string(layer) + ": " + what);
}

Status CheckBasis(const Basis& basis, size_t layer, const ContextSpec& spec,
                  Fingerprint fingerprint) {
  const BasisInfo& info = basis.info();
  const LayerShape& shape = spec.layers[layer];
  if (info.fingerprint != fingerprint) return BadLayer(layer, "basis.fingerprint");
  if (info.layer != layer) return BadLayer(layer, "basis.layer");
  if (info.head0 != 0 || info.kv_heads != shape.kv_heads) return BadLayer(layer, "basis.kv_heads");
  if (info.head_dim != shape.head_dim) return BadLayer(layer, "basis.head_dim");
  if (spec.attend && (info.frame != Frame::kPost || info.run != 16))
    return BadLayer(layer, "basis.frame or run does not suit a context that attends to tiles");
  return {};
}

}  // namespace

Result<Profile> ParseProfile(std::span<const std::byte> bytes, const ContextSpec& spec,
                             Fingerprint fingerprint) {
  if (bytes.size() < kHeaderBytes) return Invalid("profile: shorter than its header");
  if (bytes.size() > kMaxProfileBytes) return TooLarge("profile: more than 2 GiB");
  if (std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0) return Invalid("profile.magic");
  if (Get<uint16_t>(bytes, 4) != kVersion)
    return Unsupported("profile.version " + std::to_string(Get<uint16_t>(bytes, 4)));
  if (Get<uint16_t>(bytes, 6) != kHeaderBytes) return Invalid("profile.header_bytes");
  if (Get<uint64_t>(bytes, 24) != bytes.size())
    return Invalid("profile.bytes: " + std::to_string(bytes.size()) + " are here, " +
                   std::to_string(Get<uint64_t>(bytes, 24)) + " are said");
  if (Get<uint32_t>(bytes, kCrcAt) != Checksum(bytes)) return Invalid("profile.crc32c: damaged");
  if (!Zero(bytes.subspan(32, kCrcAt - 32))) return Invalid("profile.reserved is not zero");
  if (Get<uint64_t>(bytes, 8) != fingerprint)
    return Invalid("profile.fingerprint: it is of another model");
  const uint32_t layers = Get<uint32_t>(bytes, 16), flags = Get<uint32_t>(bytes, 20);
  if (layers != spec.layers.size())
    return Invalid("profile.layers: " + std::to_string(layers) + " of " +
                   std::to_string(spec.layers.size()));
  if ((flags & ~kHasOmega) != 0) return Unsupported("profile.flags");

  Profile profile;
  profile.fingerprint = fingerprint;
  size_t at = kHeaderBytes;
  for (size_t l = 0; l < layers; ++l) {
    if (bytes.size() - at < kLayerBytes) return BadLayer(l, "cut short");
    const size_t basis_bytes = Get<uint32_t>(bytes, at), cells = Get<uint32_t>(bytes, at + 4);
    if (!Zero(bytes.subspan(at + 8, 8))) return BadLayer(l, "reserved is not zero");
    at += kLayerBytes;
    const size_t expected = (flags & kHasOmega) ? spec.layers[l].kv_heads : 0;
    if (cells != expected) return BadLayer(l, "cells: " + std::to_string(cells));
    if (bytes.size() - at < Padded(basis_bytes) + cells * sizeof(CellSensitivity))
      return BadLayer(l, "basis_bytes: cut short");
    std::shared_ptr<const Basis> basis;
    if (basis_bytes > 0) {
      auto parsed = Basis::Parse(bytes.subspan(at, basis_bytes));
      if (!parsed.ok()) return BadLayer(l, std::string(parsed.status().message()));
      basis = *parsed;
      DYNA_RETURN_IF_ERROR(CheckBasis(*basis, l, spec, fingerprint));
      if (!Zero(bytes.subspan(at + basis_bytes, Padded(basis_bytes) - basis_bytes)))
        return BadLayer(l, "padding is not zero");
      at += Padded(basis_bytes);
    }
    profile.bases.push_back(std::move(basis));
    if (cells == 0) continue;
    std::vector<CellSensitivity> layer(cells);
    std::memcpy(layer.data(), bytes.data() + at, cells * sizeof(CellSensitivity));
    at += cells * sizeof(CellSensitivity);
    profile.cells.push_back(std::move(layer));
  }
  if (at != bytes.size()) return Invalid("profile.bytes: something follows the last layer");
  if (profile.has_omega()) {
    auto normalised = Sensitivity::Make(spec, profile.cells);
    if (!normalised.ok()) return Invalid("profile, " + std::string(normalised.status().message()));
  }
  return profile;
}

std::vector<std::byte> SerializeProfile(const Profile& profile) {
  static_assert(sizeof(CellSensitivity) == 16);
  std::vector<std::byte> out(kHeaderBytes);
  for (size_t l = 0; l < profile.bases.size(); ++l) {
    const std::span<const std::byte> basis =
        profile.bases[l] ? profile.bases[l]->bytes() : std::span<const std::byte>{};
    const size_t cells = profile.has_omega() ? profile.cells[l].size() : 0;
    size_t at = out.size();
    out.resize(at + kLayerBytes + Padded(basis.size()) + cells * sizeof(CellSensitivity));
    Put(&out, at, static_cast<uint32_t>(basis.size()));
    Put(&out, at + 4, static_cast<uint32_t>(cells));
    at += kLayerBytes;
    if (!basis.empty()) std::memcpy(out.data() + at, basis.data(), basis.size());
    at += Padded(basis.size());
    if (cells)
      std::memcpy(out.data() + at, profile.cells[l].data(), cells * sizeof(CellSensitivity));
  }
  std::memcpy(out.data(), kMagic, sizeof kMagic);
  Put(&out, 4, kVersion);
  Put(&out, 6, static_cast<uint16_t>(kHeaderBytes));
  Put(&out, 8, profile.fingerprint);
  Put(&out, 16, static_cast<uint32_t>(profile.bases.size()));
  Put(&out, 20, profile.has_omega() ? kHasOmega : 0u);
  Put(&out, 24, static_cast<uint64_t>(out.size()));
  Put(&out, kCrcAt, Checksum(out));
  return out;
}

}  // namespace dyna
