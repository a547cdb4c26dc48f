#include <optional>

#include "module.h"

namespace dyna::python {
namespace {

// The element type of an array; 2-byte integers may be declared bf16 or f16, 1-byte ones fp8.
DType ElementOf(const AnyConstArray& a, const std::optional<std::string>& declared) {
  const auto t = a.dtype();
  std::optional<DType> own;
  if (t.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && t.bits == 32)
    own = DType::kF32;
  if (t.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float) && t.bits == 16)
    own = DType::kF16;
  if (t.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && t.bits == 16)
    own = DType::kBf16;
  if (!declared) {
    if (!own) Raise(Invalid("array of an element type that is not f32, f16 or bf16: give dtype="));
    return *own;
  }
  const DType want = DTypeOf(*declared);
  if (own ? *own != want : t.bits != 8 * DTypeBytes(want))
    Raise(Invalid("dtype='" + *declared + "' does not fit the array's elements"));
  return want;
}

struct Walk {
  int64_t stride[5] = {0, 0, 0, 0, 0};  // l b t h d, bytes
  size_t size[5] = {1, 1, 1, 1, 1};
  bool has[5] = {false, false, false, false, false};
};

Walk WalkOf(const AnyConstArray& a, const std::string& axes, const char* what) {
  static const std::string kNames = "lbthd";
  if (axes.size() != a.ndim())
    Raise(Invalid(std::string(what) + ": axes '" + axes + "' names " + std::to_string(axes.size()) +
                  " dimensions, the array has " + std::to_string(a.ndim())));
  Walk w;
  for (size_t i = 0; i < axes.size(); ++i) {
    const size_t at = kNames.find(axes[i]);
    if (at == std::string::npos || w.has[at])
      Raise(Invalid("axes '" + axes + "': each of l, b, t, h, d at most once"));
    w.has[at] = true;
    w.size[at] = a.shape(i);
    w.stride[at] = a.stride(i) * (a.dtype().bits / 8);
  }
  if (!w.has[2] || !w.has[3] || !w.has[4])
    Raise(Invalid("axes '" + axes + "': t, h and d are needed"));
  if (w.size[4] > 1 && w.stride[4] != a.dtype().bits / 8)
    Raise(Invalid(std::string(what) + ": the head_dim elements of a row must be contiguous"));
  if (!w.has[1]) {
    if (w.size[2] % kBlockTokens != 0 || w.size[2] == 0)
      Raise(Invalid(std::string(what) + ": " + std::to_string(w.size[2]) +
                    " tokens are not whole blocks of 64"));
    w.size[1] = w.size[2] / kBlockTokens;
    w.stride[1] = w.stride[2] * kBlockTokens;
  } else if (w.size[2] != kBlockTokens) {
    Raise(Invalid(std::string(what) + ": a block has 64 tokens"));
  }
  return w;
}

}  // namespace

KvMemory MemoryOf(const void* k, const AnyConstArray& k_shape, const void* v,
                  const AnyConstArray& v_shape, const std::string& axes,
                  const std::optional<std::string>& dtype, Extents* extents) {
  const Walk a = WalkOf(k_shape, axes, "k"), b = WalkOf(v_shape, axes, "v");
  for (int i : {0, 1, 3, 4})
    if (a.size[i] != b.size[i]) Raise(Invalid("k and v have different shapes"));
  const DType type = ElementOf(k_shape, dtype);
  if (ElementOf(v_shape, dtype) != type) Raise(Invalid("k and v have different element types"));
  extents->layers = static_cast<uint32_t>(a.size[0]);
  extents->blocks = static_cast<uint32_t>(a.size[1]);
  extents->heads = static_cast<uint16_t>(a.size[3]);
  extents->head_dim = static_cast<uint16_t>(a.size[4]);
  const KvMemory::Steps ks{a.stride[1], a.stride[0], a.stride[2], a.stride[3]};
  const KvMemory::Steps vs{b.stride[1], b.stride[0], b.stride[2], b.stride[3]};
  // A put only reads (kv_memory.h).
  return KvMemory::Strided(const_cast<void*>(k), const_cast<void*>(v), type, extents->blocks,
                           extents->layers, ks, vs);
}

BlockHash HashOf(nb::bytes bytes, const char* what) {
  BlockHash hash;
  if (bytes.size() != hash.bytes.size())
    Raise(Invalid(std::string(what) + ": a block hash has 32 bytes, not " +
                  std::to_string(bytes.size())));
  std::memcpy(hash.bytes.data(), bytes.c_str(), hash.bytes.size());
  return hash;
}

std::vector<BlockHash> HashesOf(const std::vector<nb::bytes>& list) {
  std::vector<BlockHash> out;
  out.reserve(list.size());
  for (const nb::bytes& b : list) out.push_back(HashOf(b, "hashes"));
  return out;
}

nb::bytes ToBytes(const BlockHash& hash) {
  return nb::bytes(reinterpret_cast<const char*>(hash.bytes.data()), hash.bytes.size());
}

std::chrono::milliseconds Millis(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

}  // namespace dyna::python
