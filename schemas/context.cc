#include "schemas/context.h"

#include <cmath>
#include <span>

#include "schemas/sha256.h"

namespace dyna {
namespace {

bool Printable(const std::string& s, size_t min, size_t max) {
  if (s.size() < min || s.size() > max) return false;
  for (unsigned char c : s)
    if (c < 0x20 || c == 0x7f) return false;
  return true;
}

Status ValidateLayer(const LayerShape& l, size_t index, const ContextSpec& spec) {
  const std::string where = "layer " + std::to_string(index) + ": ";
  if (l.kind != LayerKind::kFull && l.kind != LayerKind::kSliding && l.kind != LayerKind::kOpaque)
    return Invalid(where + "unknown layer kind");
  if (l.kind == LayerKind::kOpaque) return {};
  if (l.kv_heads == 0 || l.kv_heads > kMaxKvHeads)
    return Invalid(where + "kv_heads not in 1..1024");
  if (l.head_dim == 0 || l.head_dim % 16 != 0 || l.head_dim > kMaxHeadDim)
    return Invalid(where + "head_dim is not a multiple of 16 in 16..256");
  if (l.q_heads % l.kv_heads != 0 || l.q_heads / l.kv_heads > 128)
    return Invalid(where + "q_heads is not a multiple of kv_heads (at most 128 a group)");
  if (l.kind == LayerKind::kSliding && l.window == 0)
    return Invalid(where + "sliding without a window");
  if (l.max_position == 0) return Invalid(where + "max_position is 0");
  if (l.rope >= spec.ropes.size()) return Invalid(where + "rope index out of range");
  if (spec.ropes[l.rope].rotary_dim > l.head_dim)
    return Invalid(where + "rotary_dim above head_dim");
  return {};
}

void Put(std::string& out, uint64_t v, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(v >> (8 * i)));
}
void Put(std::string& out, const std::string& s) {
  Put(out, s.size(), 4);
  out += s;
}

}  // namespace

Status Validate(const ContextSpec& spec) {
  if (!Printable(spec.model, 1, 256)) return Invalid("model: 1..256 printable bytes expected");
  if (!Printable(spec.revision, 0, 256)) return Invalid("revision: at most 256 printable bytes");
  if (!Printable(spec.adapter, 0, 256)) return Invalid("adapter: at most 256 printable bytes");
  if (spec.dtype < DType::kF32 || spec.dtype > DType::kE5m2) return Invalid("dtype: unknown");
  if (spec.layers.empty() || spec.layers.size() > kMaxLayers)
    return Invalid("layers: 1..1024 expected");
  if (spec.ropes.empty() || spec.ropes.size() > 16)
    return Invalid("ropes: 1..16 expected (one of kind none where there is no rope)");
  for (size_t i = 0; i < spec.ropes.size(); ++i) {
    const Rope& r = spec.ropes[i];
    const std::string where = "ropes[" + std::to_string(i) + "]: ";
    if (r.kind > RopeKind::kInterleaved) return Invalid(where + "unknown kind");
    if (r.kind == RopeKind::kNone) {
      if (r.rotary_dim != 0 || !r.inv_freq.empty())
        return Invalid(where + "kind none takes no table");
      continue;
    }
    if (r.rotary_dim == 0 || r.rotary_dim % 2 != 0 || r.rotary_dim > kMaxHeadDim)
      return Invalid(where + "rotary_dim is not even in 2..256");
    if (r.inv_freq.size() != r.rotary_dim / 2u)
      return Invalid(where + "inv_freq has " + std::to_string(r.inv_freq.size()) + " values, " +
                     std::to_string(r.rotary_dim / 2) + " expected");
    for (float f : r.inv_freq)
      if (!std::isfinite(f) || f < 0 || f > 64)
        return Invalid(where + "inv_freq not finite in 0..64");
  }
  for (size_t i = 0; i < spec.layers.size(); ++i)
    DYNA_RETURN_IF_ERROR(ValidateLayer(spec.layers[i], i, spec));
  return {};
}

std::string CanonicalBytes(const ContextSpec& spec) {
  std::string out = "dynacompress-context-1";
  Put(out, spec.model);
  Put(out, spec.revision);
  Put(out, spec.adapter);
  Put(out, static_cast<uint8_t>(spec.dtype), 1);
  Put(out, spec.attend, 1);
  Put(out, spec.masks, 1);
  Put(out, spec.layers.size(), 4);
  for (const LayerShape& l : spec.layers) {
    Put(out, static_cast<uint8_t>(l.kind), 1);
    Put(out, l.kv_heads, 2);
    Put(out, l.q_heads, 2);
    Put(out, l.head_dim, 2);
    Put(out, l.rope, 2);
    Put(out, l.window, 4);
    Put(out, l.max_position, 4);
  }
  Put(out, spec.ropes.size(), 4);
  for (const Rope& r : spec.ropes) {
    Put(out, static_cast<uint8_t>(r.kind), 1);
    Put(out, r.rotary_dim, 2);
  }
  return out;
}

Fingerprint FingerprintOf(const ContextSpec& spec) {
  const std::string bytes = CanonicalBytes(spec);
  return Sha256Name(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

Status CheckRopesJoin(const ContextSpec& first, const ContextSpec& later) {
  if (first.ropes.size() != later.ropes.size())
    return Invalid("ropes: another count than the first opener's");
  for (size_t i = 0; i < first.ropes.size(); ++i) {
    const Rope &a = first.ropes[i], &b = later.ropes[i];
    const std::string where = "ropes[" + std::to_string(i) + "]";
    if (a.kind != b.kind || a.rotary_dim != b.rotary_dim || a.inv_freq.size() != b.inv_freq.size())
      return Invalid(where + ": another kind or rotary_dim than the first opener's");
    for (size_t j = 0; j < a.inv_freq.size(); ++j)
      if (std::fabs(a.inv_freq[j] - b.inv_freq[j]) > 1e-5f * std::fabs(a.inv_freq[j]))
        return Invalid(where + ".inv_freq[" + std::to_string(j) +
                       "] differs from the first opener's");
  }
  return {};
}

Status Validate(const Shard& s, const ContextSpec& spec) {
  if (s.layer_begin >= s.layer_end || s.layer_end > spec.layers.size())
    return Invalid("shard: layer range is empty or beyond the context's layers");
  if (s.head_begin >= s.head_end) return Invalid("shard: head range is empty");
  for (size_t l = s.layer_begin; l < s.layer_end; ++l)
    if (spec.layers[l].kind != LayerKind::kOpaque && s.head_end > spec.layers[l].kv_heads)
      return Invalid("shard: head range is beyond the kv_heads of layer " + std::to_string(l));
  return {};
}

}  // namespace dyna
