#include <cstdlib>
#include <optional>

#include "module.h"

namespace dyna::python {
namespace {

// `__cuda_array_interface__` (numba): what DLPack says, in a dictionary.
KvArray CudaArrayOf(nb::handle array, bool writable, const char* what) {
  const nb::dict d = nb::cast<nb::dict>(array.attr("__cuda_array_interface__"));
  const auto data = nb::cast<std::pair<uint64_t, bool>>(d["data"]);
  if (writable && data.second) Raise(Invalid(std::string(what) + ": the array is read-only"));
  const auto type = nb::cast<std::string>(d["typestr"]);  // "<f2"
  if (type.size() < 3 || type[0] == '>')
    Raise(Invalid(std::string(what) + ": elements of type " + type));
  KvArray a;
  a.data = reinterpret_cast<void*>(data.first);
  a.on_device = true;
  const auto code = type[1] == 'f' ? nb::dlpack::dtype_code::Float : nb::dlpack::dtype_code::UInt;
  const int bytes = std::atoi(type.c_str() + 2);
  a.type = {static_cast<uint8_t>(code), static_cast<uint8_t>(8 * bytes), 1};
  for (nb::handle n : nb::cast<nb::tuple>(d["shape"])) a.shape.push_back(nb::cast<size_t>(n));
  if (d.contains("strides") && !d["strides"].is_none()) {
    for (nb::handle n : nb::cast<nb::tuple>(d["strides"])) a.stride.push_back(nb::cast<int64_t>(n));
  } else {
    a.stride.resize(a.shape.size());
    int64_t dense = bytes;
    for (size_t i = a.shape.size(); i-- > 0; dense *= static_cast<int64_t>(a.shape[i]))
      a.stride[i] = dense;
  }
  if (a.stride.size() != a.shape.size()) Raise(Invalid(std::string(what) + ": shape and strides"));
  return a;
}

// The element type of an array; 2-byte integers may be declared bf16 or f16, 1-byte ones fp8.
DType ElementOf(const KvArray& a, const std::optional<std::string>& declared) {
  const auto t = a.type;
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

Walk WalkOf(const KvArray& a, const std::string& axes, const char* what) {
  static const std::string kNames = "lbthd";
  if (axes.size() != a.shape.size())
    Raise(Invalid(std::string(what) + ": axes '" + axes + "' names " + std::to_string(axes.size()) +
                  " dimensions, the array has " + std::to_string(a.shape.size())));
  Walk w;
  for (size_t i = 0; i < axes.size(); ++i) {
    const size_t at = kNames.find(axes[i]);
    if (at == std::string::npos || w.has[at])
      Raise(Invalid("axes '" + axes + "': each of l, b, t, h, d at most once"));
    w.has[at] = true;
    w.size[at] = a.shape[i];
    w.stride[at] = a.stride[i];
  }
  if (!w.has[2] || !w.has[3] || !w.has[4])
    Raise(Invalid("axes '" + axes + "': t, h and d are needed"));
  if (w.size[4] > 1 && w.stride[4] != a.type.bits / 8)
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

KvArray ArrayOf(nb::handle array, bool writable, const char* what) {
  KvArray out;
  const auto take = [&](auto& a) {
    out.on_device = a.device_type() == nb::device::cuda::value;
    if (!out.on_device && a.device_type() != nb::device::cpu::value)
      Raise(Invalid(std::string(what) + ": on a device that is neither a CPU nor a CUDA GPU"));
    out.data = const_cast<void*>(static_cast<const void*>(a.data()));
    out.type = a.dtype();
    for (size_t i = 0; i < a.ndim(); ++i) {
      out.shape.push_back(a.shape(i));
      out.stride.push_back(a.stride(i) * (a.dtype().bits / 8));
    }
    out.keep = nb::cast(a);
  };
  nb::ndarray<> writable_array;
  nb::ndarray<nb::ro> any_array;
  if (writable && nb::try_cast(array, writable_array, false))
    take(writable_array);
  else if (!writable && nb::try_cast(array, any_array, false))
    take(any_array);
  else if (nb::hasattr(array, "__cuda_array_interface__"))
    return CudaArrayOf(array, writable, what);
  else
    throw nb::type_error((std::string(what) + ": an array with DLPack, the buffer protocol or "
                                              "__cuda_array_interface__ is expected")
                             .c_str());
  return out;
}

void* StreamOf(std::optional<uint64_t> stream) {
  return stream ? reinterpret_cast<void*>(*stream) : KvMemory::kEveryStream;
}

KvMemory MemoryOf(const KvArray& k_shape, const KvArray& v_shape, const std::string& axes,
                  const std::optional<std::string>& dtype, std::optional<uint64_t> stream,
                  Extents* extents) {
  if (k_shape.on_device != v_shape.on_device)
    Raise(Invalid("k and v: one is on a GPU, the other is not"));
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
  KvMemory memory =
      KvMemory::Strided(k_shape.data, v_shape.data, type, extents->blocks, extents->layers, ks, vs);
  memory.on_device = k_shape.on_device;
  memory.stream = StreamOf(stream);
  return memory;
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
