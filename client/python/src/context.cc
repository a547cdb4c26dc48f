#include <thread>

#include "module.h"

namespace dyna::python {
namespace {

struct PyLease {
  Lease lease;
  uint32_t used_layers = 0;
};

nb::list HitsOf(const std::vector<wire::LookupHit>& hits) {
  nb::object type = nb::module_::import_("dynacompress._types").attr("Hit");
  nb::list out;
  for (const wire::LookupHit& h : hits)
    out.append(type(std::string(StatusName(h.status)), std::string(TierName(h.tier)), h.nmse,
                    h.mean_bits, h.bytes));
  return out;
}

// RETRY means that the daemon is making room: ask again until the deadline, as the daemon says. (A
// put does so by itself.)
FetchResult PersistentFetch(Context& c, const Lease& lease, FetchRequest request) {
  using std::chrono::steady_clock;
  const auto end = steady_clock::now() + request.deadline;
  for (;;) {
    FetchResult result = c.Fetch(lease, request);
    const std::chrono::milliseconds wait(std::max(1u, result.status.retry_after_ms()));
    if (result.status.code() != StatusCode::kRetry || steady_clock::now() + wait >= end)
      return result;
    std::this_thread::sleep_for(wait);
    // 1 ms at least: 0 would be the client's own deadline.
    request.deadline = std::max(
        std::chrono::ceil<std::chrono::milliseconds>(end - steady_clock::now()), Deadline{1});
  }
}

nb::list SegmentsOf(const std::vector<wire::SegmentStatus>& segments) {
  nb::list out;
  for (const wire::SegmentStatus& s : segments)
    out.append(nb::make_tuple(std::string(StatusName(s.status)), s.nmse, s.bytes));
  return out;
}

nb::list Put(Context& c, const std::vector<nb::bytes>& hashes, nb::object k, nb::object v,
             const std::string& axes, std::optional<std::string> dtype, int layer,
             std::optional<nb::bytes> parent, uint32_t first_index, std::pair<int, int> layers,
             std::pair<int, int> heads, const std::string& quality, bool persistent, double ttl,
             double deadline, std::optional<uint64_t> stream) {
  Extents e;
  PutRequest request;
  const KvArray k_array = ArrayOf(k, false, "k"), v_array = ArrayOf(v, false, "v");
  request.source = MemoryOf(k_array, v_array, axes, dtype, stream, &e);
  request.hashes = HashesOf(hashes);
  if (request.hashes.size() != e.blocks)
    Raise(Invalid(std::to_string(hashes.size()) + " hashes for " + std::to_string(e.blocks) +
                  " blocks"));
  request.layer_begin = static_cast<uint16_t>(layer);
  request.layer_count = static_cast<uint16_t>(e.layers);
  request.shard = {static_cast<uint16_t>(layers.first), static_cast<uint16_t>(layers.second),
                   static_cast<uint16_t>(heads.first), static_cast<uint16_t>(heads.second)};
  if (heads.second - heads.first != e.heads)
    Raise(Invalid("the arrays have " + std::to_string(e.heads) + " heads, the shard " +
                  std::to_string(heads.second - heads.first)));
  if (parent) request.parent = HashOf(*parent, "parent");
  request.first_index = first_index;
  request.quality = QualityOf(quality);
  request.durability = persistent ? Durability::kPersistent : Durability::kVolatile;
  request.ttl = Millis(ttl);
  request.deadline = Millis(deadline);
  PutResult result;
  {
    nb::gil_scoped_release released;
    result = c.Put(std::move(request));
  }
  Raise(result.status);
  return SegmentsOf(result.segments);
}

nb::dict Fetch(Context& c, PyLease& lease, nb::object k, nb::object v, const std::string& axes,
               std::optional<std::string> dtype, int layer, int head, int block, bool as_stored,
               bool masks, bool beyond_windows, double deadline, std::optional<uint64_t> stream) {
  Extents e;
  FetchRequest request;
  const KvArray k_array = ArrayOf(k, true, "k"), v_array = ArrayOf(v, true, "v");
  request.target = MemoryOf(k_array, v_array, axes, dtype, stream, &e);
  request.layer_begin = static_cast<uint16_t>(layer);
  request.layer_count = static_cast<uint16_t>(e.layers);
  request.head_begin = static_cast<uint16_t>(head);
  request.head_end = static_cast<uint16_t>(head + e.heads);
  request.block_begin = static_cast<uint32_t>(block);
  request.block_count = e.blocks;
  request.form = as_stored ? wire::Form::kAsStored : wire::Form::kDecoded;
  request.want_masks = masks;
  request.beyond_windows = beyond_windows;
  request.deadline = Millis(deadline);
  FetchResult result;
  {
    nb::gil_scoped_release released;
    result = PersistentFetch(c, lease.lease, std::move(request));
  }
  Raise(result.status);
  nb::list tiers;
  for (Tier t : result.tiers) tiers.append(std::string(TierName(t)));
  nb::dict out;
  out["segments"] = SegmentsOf(result.segments);
  out["tiers"] = tiers;
  out["bases"] = result.bases;
  out["bytes_received"] = result.bytes_received;
  out["live"] = result.live;
  return out;
}

PyLease* Lookup(Context& c, const std::vector<nb::bytes>& hashes, std::pair<int, int> layers,
                std::pair<int, int> heads, const std::string& min_quality, float max_nmse,
                double ttl, double deadline) {
  LookupRequest request;
  request.hashes = HashesOf(hashes);
  request.shard = {static_cast<uint16_t>(layers.first), static_cast<uint16_t>(layers.second),
                   static_cast<uint16_t>(heads.first), static_cast<uint16_t>(heads.second)};
  request.min_quality = QualityOf(min_quality);
  request.max_nmse = max_nmse;
  request.ttl = Millis(ttl);
  request.deadline = Millis(deadline);
  Result<Lease> lease = [&] {
    nb::gil_scoped_release released;
    return c.Lookup(std::move(request));
  }();
  return new PyLease{Unwrap(std::move(lease)), 0};
}

void ReportQueries(Context& c, nb::bytes leaf, uint32_t first_position, AnyConstArray queries,
                   int layer, std::pair<int, int> heads, uint32_t advance, double deadline) {
  if (queries.ndim() != 4) Raise(Invalid("queries: [layers][window][q_heads][head_dim] expected"));
  int64_t dense = 1;
  for (size_t i = queries.ndim(); i-- > 0;) {
    if (queries.shape(i) > 1 && queries.stride(i) != dense)
      Raise(Invalid("queries: a C-contiguous array is expected"));
    dense *= static_cast<int64_t>(queries.shape(i));
  }
  const auto t = queries.dtype();
  ReportRequest request;
  wire::Report& r = request.report;
  r.kind = wire::ReportKind::kQueryWindow;
  r.leaf = HashOf(leaf, "leaf");
  r.layer_begin = static_cast<uint16_t>(layer);
  r.layer_count = static_cast<uint16_t>(queries.shape(0));
  r.head_begin = static_cast<uint16_t>(heads.first);
  r.head_end = static_cast<uint16_t>(heads.second);
  r.first_query_position = first_position;
  r.queries = static_cast<uint16_t>(queries.shape(1));
  r.advance = advance;
  r.dtype = t.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) ? DType::kBf16
            : t.bits == 16                                                 ? DType::kF16
                                                                           : DType::kF32;
  request.data = {static_cast<const std::byte*>(queries.data()),
                  static_cast<size_t>(dense) * (t.bits / 8)};
  request.deadline = Millis(deadline);
  Status status;
  {
    nb::gil_scoped_release released;
    status = c.Report(request);
  }
  Raise(status);
}

void ReportColumns(
    Context& c, nb::bytes leaf,
    nb::ndarray<nb::ro, const float, nb::ndim<3>, nb::c_contig, nb::device::cpu> mass, int layer,
    std::pair<int, int> heads, uint32_t queries, uint32_t advance, double deadline) {
  ReportRequest request;
  wire::Report& r = request.report;
  r.kind = wire::ReportKind::kColumnMass;
  r.leaf = HashOf(leaf, "leaf");
  r.layer_begin = static_cast<uint16_t>(layer);
  r.layer_count = static_cast<uint16_t>(mass.shape(0));
  r.head_begin = static_cast<uint16_t>(heads.first);
  r.head_end = static_cast<uint16_t>(heads.second);
  r.queries = static_cast<uint16_t>(queries);
  r.advance = advance;
  request.data = {reinterpret_cast<const std::byte*>(mass.data()), mass.size() * sizeof(float)};
  request.deadline = Millis(deadline);
  Status status;
  {
    nb::gil_scoped_release released;
    status = c.Report(request);
  }
  Raise(status);
}

}  // namespace

void RegisterContext(nb::module_& m) {
  nb::class_<PyLease>(m, "Lease")
      .def_prop_ro("run", [](PyLease& l) { return l.lease.run(); })
      .def_prop_ro("hits", [](PyLease& l) { return HitsOf(l.lease.hits()); })
      .def_prop_ro("lost", [](PyLease& l) { return l.lease.lost(); })
      .def_prop_ro("id", [](PyLease& l) { return l.lease.id(); })
      .def("release", [](PyLease& l) { l.lease.Release(); });

  nb::class_<Context>(m, "Context")
      .def_prop_ro("fingerprint", &Context::fingerprint)
      .def("put", &Put, nb::arg("hashes"), nb::arg("k"), nb::arg("v"), nb::arg("axes"),
           nb::arg("dtype").none(), nb::arg("layer"), nb::arg("parent").none(),
           nb::arg("first_index"), nb::arg("layers"), nb::arg("heads"), nb::arg("quality"),
           nb::arg("persistent"), nb::arg("ttl"), nb::arg("deadline"), nb::arg("stream").none())
      .def("lookup", &Lookup, nb::rv_policy::take_ownership, nb::arg("hashes"), nb::arg("layers"),
           nb::arg("heads"), nb::arg("min_quality"), nb::arg("max_nmse"), nb::arg("ttl"),
           nb::arg("deadline"))
      .def(
          "exists",
          [](Context& c, const std::vector<nb::bytes>& hashes, const std::string& min_quality,
             double deadline) {
            LookupRequest request;
            request.hashes = HashesOf(hashes);
            request.min_quality = QualityOf(min_quality);
            request.deadline = Millis(deadline);
            auto hits = [&] {
              nb::gil_scoped_release released;
              return c.Exists(std::move(request));
            }();
            return HitsOf(Unwrap(std::move(hits)));
          },
          nb::arg("hashes"), nb::arg("min_quality"), nb::arg("deadline"))
      .def("fetch", &Fetch, nb::arg("lease"), nb::arg("k"), nb::arg("v"), nb::arg("axes"),
           nb::arg("dtype").none(), nb::arg("layer"), nb::arg("head"), nb::arg("block"),
           nb::arg("as_stored"), nb::arg("masks"), nb::arg("beyond_windows"), nb::arg("deadline"),
           nb::arg("stream").none())
      .def("report_queries", &ReportQueries, nb::arg("leaf"), nb::arg("first_position"),
           nb::arg("queries"), nb::arg("layer"), nb::arg("heads"), nb::arg("advance"),
           nb::arg("deadline"))
      .def("report_columns", &ReportColumns, nb::arg("leaf"), nb::arg("mass"), nb::arg("layer"),
           nb::arg("heads"), nb::arg("queries"), nb::arg("advance"), nb::arg("deadline"))
      .def("delete",
           [](Context& c, const std::vector<nb::bytes>& hashes) {
             auto list = HashesOf(hashes);
             auto n = [&] {
               nb::gil_scoped_release released;
               return c.Delete(std::move(list));
             }();
             return Unwrap(std::move(n));
           })
      .def("clear",
           [](Context& c) {
             auto n = [&] {
               nb::gil_scoped_release released;
               return c.Clear();
             }();
             return Unwrap(std::move(n));
           })
      .def("pin",
           [](Context& c, const std::vector<nb::bytes>& hashes, bool pinned, double ttl) {
             auto list = HashesOf(hashes);
             auto n = [&] {
               nb::gil_scoped_release released;
               return c.Pin(std::move(list), pinned, Millis(ttl));
             }();
             return Unwrap(std::move(n));
           })
      .def("put_opaque",
           [](Context& c, nb::bytes key, nb::bytes data, bool persistent, double ttl) {
             OpaquePut request;
             request.key = HashOf(key, "key");
             request.bytes = {reinterpret_cast<const std::byte*>(data.c_str()), data.size()};
             request.durability = persistent ? Durability::kPersistent : Durability::kVolatile;
             request.ttl = Millis(ttl);
             Status status;
             {
               nb::gil_scoped_release released;
               status = c.PutOpaque(request);
             }
             if (status.code() != StatusCode::kExists) Raise(status);
           })
      .def("get_opaque", [](Context& c, nb::bytes key) {
        const BlockHash hash = HashOf(key, "key");
        auto object = [&] {
          nb::gil_scoped_release released;
          return c.GetOpaque(hash);
        }();
        const OpaqueObject got = Unwrap(std::move(object));
        return nb::bytes(reinterpret_cast<const char*>(got.bytes.data()), got.bytes.size());
      });
}

}  // namespace dyna::python
