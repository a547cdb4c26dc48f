#include "module.h"

#include "client/base/block_hash.h"
#include "schemas/context.h"

namespace dyna::python {
namespace {

Bulk BulkOf(const std::string& name) {
  if (name == "auto") return Bulk::kAuto;
  if (name == "region") return Bulk::kRegion;
  if (name == "ucx") return Bulk::kUcx;
  if (name == "socket") return Bulk::kSocket;
  Raise(Invalid("bulk '" + name + "': one of auto, region, ucx, socket"));
  return Bulk::kAuto;
}

std::unique_ptr<Client> Connect(const std::string& endpoint, const std::string& name,
                                const std::string& bulk, double deadline) {
  ClientOptions options;
  options.endpoint = endpoint;
  options.name = name;
  options.bulk = BulkOf(bulk);
  options.deadline = Millis(deadline);
  auto made = [&] {
    nb::gil_scoped_release released;
    return Client::Connect(options);
  }();
  return Unwrap(std::move(made));
}

nb::object Empty(Client& client, size_t bytes) {
  auto region = [&] {
    nb::gil_scoped_release released;
    return client.AllocateRegion(bytes);
  }();
  auto* held = new std::shared_ptr<Region>(Unwrap(std::move(region)));
  nb::capsule owner(held, [](void* p) noexcept {
    nb::gil_scoped_release released;
    delete static_cast<std::shared_ptr<Region>*>(p);
  });
  const size_t shape[1] = {bytes};
  return nb::cast(nb::ndarray<nb::numpy, uint8_t>((*held)->bytes().data(), 1, shape, owner));
}

struct PyGpuRegion {
  Client* client = nullptr;  // which the Python object keeps
  std::shared_ptr<GpuRegion> region;
};

PyGpuRegion* RegisterGpu(Client& client, nb::object array) {
  const KvArray a = ArrayOf(array, false, "array");
  if (!a.on_device) Raise(Invalid("array: not on a GPU"));
  int64_t low = 0, high = a.type.bits / 8;
  for (size_t i = 0; i < a.shape.size(); ++i) {
    if (a.shape[i] == 0) Raise(Invalid("array: empty"));
    const int64_t reach = a.stride[i] * static_cast<int64_t>(a.shape[i] - 1);
    (reach < 0 ? low : high) += reach;
  }
  auto region = [&] {
    nb::gil_scoped_release released;
    return client.RegisterGpu(static_cast<std::byte*>(a.data) + low,
                              static_cast<uint64_t>(high - low));
  }();
  return new PyGpuRegion{&client, Unwrap(std::move(region))};
}

std::string Query(Client& client, const std::string& what, uint64_t context,
                  const std::vector<nb::bytes>& hashes, uint32_t limit) {
  wire::QueryKind kind = wire::QueryKind::kStats;
  if (what == "inspect")
    kind = wire::QueryKind::kInspect;
  else if (what == "bank")
    kind = wire::QueryKind::kBankList;
  else if (what == "contexts")
    kind = wire::QueryKind::kContexts;
  auto list = HashesOf(hashes);
  auto json = [&] {
    nb::gil_scoped_release released;
    return client.Query(kind, context, std::move(list), limit);
  }();
  return Unwrap(std::move(json));
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The client library behind the dynacompress package.";
  RegisterErrors(m);
  RegisterContext(m);
  RegisterCodec(m);
  nb::class_<PyGpuRegion>(m, "GpuRegion")
      .def_prop_ro("size", [](PyGpuRegion& r) { return r.region ? r.region->size() : 0; })
      .def("release", [](PyGpuRegion& r) {
        Status status;
        {
          nb::gil_scoped_release released;
          if (r.region) status = r.client->ReleaseGpu(std::exchange(r.region, nullptr));
        }
        Raise(status);
      });
  nb::class_<Client>(m, "Client")
      .def(nb::new_(&Connect), nb::arg("endpoint"), nb::arg("name"), nb::arg("bulk"),
           nb::arg("deadline"))
      .def("empty", &Empty, nb::arg("bytes"))
      .def("register_gpu", &RegisterGpu, nb::arg("array"))
      .def(
          "open_context",
          [](Client& c, nb::handle spec, nb::bytes profile) {
            ContextSpec s = SpecOf(spec);
            auto context = [&] {
              nb::gil_scoped_release released;
              return c.OpenContext(std::move(s),
                                   std::as_bytes(std::span(profile.c_str(), profile.size())));
            }();
            return Unwrap(std::move(context));
          },
          nb::arg("spec"), nb::arg("profile"))
      .def("query", &Query, nb::arg("what"), nb::arg("context"), nb::arg("hashes"),
           nb::arg("limit"))
      .def("set_budget",
           [](Client& c, uint64_t bytes) {
             Status status;
             {
               nb::gil_scoped_release released;
               status = c.SetBudget(bytes);
             }
             Raise(status);
           })
      .def("clear", [](Client& c) {
        auto n = [&] {
          nb::gil_scoped_release released;
          return c.ClearTenant();
        }();
        return Unwrap(std::move(n));
      });
  m.def(
      "hash_tokens",
      [](nb::bytes parent, const std::vector<uint32_t>& tokens, nb::bytes salt) {
        return ToBytes(HashTokens(HashOf(parent, "parent"), tokens,
                                  std::as_bytes(std::span(salt.c_str(), salt.size()))));
      },
      nb::arg("parent"), nb::arg("tokens"), nb::arg("salt"));
  m.def("fingerprint", [](nb::handle spec) {
    const ContextSpec s = SpecOf(spec);
    Raise(Validate(s));
    return FingerprintOf(s);
  });
}

}  // namespace dyna::python
