// The pieces of the extension module. Blocking calls release the GIL; callbacks of the library's
// thread never touch Python.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "client/client.h"

namespace dyna::python {

namespace nb = nanobind;
using AnyConstArray = nb::ndarray<nb::ro, nb::device::cpu>;

// errors.cc: raises dynacompress.Error with its code, unless OK.
void RegisterErrors(nb::module_& m);
void Raise(const Status& status);
template <typename T>
T Unwrap(Result<T> result) {
  if (!result.ok()) Raise(result.status());
  return std::move(*result);
}

// spec.cc: dynacompress.ContextSpec (a Python dataclass) -> ContextSpec.
ContextSpec SpecOf(nb::handle spec);
DType DTypeOf(const std::string& name);
QualityClass QualityOf(const std::string& name);

// arrays.cc: `axes` names an array's dimensions, of l (layer), b (block), t (token), h (kv head),
// d (channel); without b, t runs over whole blocks.
struct Extents {
  uint32_t layers = 1, blocks = 1;
  uint16_t heads = 1, head_dim = 0;
};
// An array of the host or of a GPU; valid as long as the object that it was made of.
struct KvArray {
  void* data = nullptr;
  std::vector<size_t> shape;
  std::vector<int64_t> stride;  // bytes
  nb::dlpack::dtype type{};
  bool on_device = false;
  nb::object keep;
};
// TypeError: no array. Of the host by DLPack or the buffer protocol, of a GPU by DLPack or
// __cuda_array_interface__.
KvArray ArrayOf(nb::handle array, bool writable, const char* what);
// A cudaStream_t; none: everything that was submitted to the GPU.
KvMemory MemoryOf(const KvArray& k, const KvArray& v, const std::string& axes,
                  const std::optional<std::string>& dtype, std::optional<uint64_t> stream,
                  Extents* extents);
BlockHash HashOf(nb::bytes bytes, const char* what);
std::vector<BlockHash> HashesOf(const std::vector<nb::bytes>& list);
nb::bytes ToBytes(const BlockHash& hash);
std::chrono::milliseconds Millis(double seconds);

void RegisterContext(nb::module_& m);  // context.cc: Context, Lease
void RegisterCodec(nb::module_& m);    // codec.cc: the codec without a daemon

}  // namespace dyna::python
