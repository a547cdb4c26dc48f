// The codec without a daemon: bases made and looked into, and K and V coded and decoded again.
// What `dynacompress profile` measures with; a formula stands only in kernels/.
#include <algorithm>

#include "kernels/backend.h"
#include "kernels/crc32c.h"
#include "module.h"

namespace dyna::python {
namespace {

using Doubles = nb::ndarray<const double, nb::c_contig, nb::device::cpu>;

std::vector<double> Values(const Doubles& array, size_t expected, const char* what) {
  if (array.size() != expected)
    Raise(Invalid(std::string(what) + ": " + std::to_string(array.size()) + " values, not " +
                  std::to_string(expected)));
  return {array.data(), array.data() + array.size()};
}

std::shared_ptr<const Basis> ParseBasis(nb::bytes bytes) {
  return Unwrap(Basis::Parse(std::as_bytes(std::span(bytes.c_str(), bytes.size()))));
}

// heads: None, or (mu [d], a [d][d], b [d][d], variances [d]) in double, one a kv head.
nb::bytes BuildBasis(Fingerprint fingerprint, int layer, int head_dim, bool post, int run,
                     uint32_t tokens, uint32_t queries, nb::list heads) {
  BasisInfo info;
  info.fingerprint = fingerprint;
  info.layer = static_cast<uint16_t>(layer);
  info.kv_heads = static_cast<uint16_t>(nb::len(heads));
  info.head_dim = static_cast<uint16_t>(head_dim);
  info.frame = post ? Frame::kPost : Frame::kPre;
  info.run = static_cast<uint8_t>(run != 0 ? run : DefaultRun(head_dim));
  info.source = BasisSource::kProfile;
  info.tokens = tokens;
  info.queries = queries;
  const auto d = static_cast<size_t>(head_dim);
  std::vector<BasisHeadParts> parts;
  for (nb::handle head : heads) {
    parts.emplace_back();
    if (head.is_none()) continue;
    const auto given = nb::cast<nb::tuple>(head);
    if (given.size() != 4) Raise(Invalid("a head is (mu, a, b, variances) or None"));
    parts.back().mu = Values(nb::cast<Doubles>(given[0]), d, "mu");
    parts.back().a = Values(nb::cast<Doubles>(given[1]), d * d, "a");
    parts.back().b = Values(nb::cast<Doubles>(given[2]), d * d, "b");
    parts.back().variances = Values(nb::cast<Doubles>(given[3]), d, "variances");
  }
  const auto basis = Unwrap(Basis::Build(info, parts));
  return nb::bytes(reinterpret_cast<const char*>(basis->bytes().data()), basis->bytes().size());
}

// What a basis object says of itself; per head: mean bits and predicted relative error of every
// level, the widths, the variances of y.
nb::dict BasisFacts(nb::bytes bytes) {
  const auto basis = ParseBasis(bytes);
  const BasisInfo& info = basis->info();
  nb::dict out;
  out["layer"] = info.layer;
  out["fingerprint"] = info.fingerprint;
  out["frame"] = info.frame == Frame::kPost ? "post" : "pre";
  out["run"] = info.run;
  out["tokens"] = info.tokens;
  out["queries"] = info.queries;
  nb::list targets, heads;
  for (int level = 0; level < info.levels; ++level) targets.append(basis->target(level));
  out["targets"] = targets;
  for (int head = info.head0; head < info.head0 + info.kv_heads; ++head) {
    nb::dict h;
    nb::list bits, errors, widths, variances;
    h["seen"] = basis->seen(head);
    for (int level = 0; level < info.levels; ++level) {
      bits.append(basis->mean_bits(head, level));
      errors.append(basis->relative_error(head, level));
      nb::list of_level;
      for (const uint8_t width : basis->widths(head, level)) of_level.append(int{width});
      widths.append(of_level);
    }
    for (const float variance : basis->variances(head)) variances.append(variance);
    h["mean_bits"] = bits;
    h["relative_error"] = errors;
    h["widths"] = widths;
    h["variances"] = variances;
    heads.append(h);
  }
  out["heads"] = heads;
  return out;
}

uint8_t KKindOf(nb::handle kind, const Basis* basis) {
  if (!nb::isinstance<nb::str>(kind)) {
    if (basis == nullptr) Raise(Invalid("a level of K needs a basis"));
    return kind::Level(basis->LevelOf(nb::cast<double>(kind)));
  }
  const auto name = nb::cast<std::string>(kind);
  if (name == "raw") return kind::kRaw;
  if (name == "plain8") return kind::kPlain8;
  if (name == "plain4") return kind::kPlain4;
  Raise(Invalid("kind of K '" + name + "': raw, plain8, plain4, or a level's target in bits"));
  return 0;
}

uint8_t VKindOf(nb::handle kind) {
  if (nb::isinstance<nb::str>(kind)) {
    if (nb::cast<std::string>(kind) != "raw") Raise(Invalid("kind of V: raw, 8, 4, 2, 1 or 0"));
    return kind::kRaw;
  }
  const int bits = nb::cast<int>(kind);
  if (bits != 0 && bits != 1 && bits != 2 && bits != 4 && bits != 8)
    Raise(Invalid("kind of V: raw, 8, 4, 2, 1 or 0"));
  return kind::VBits(bits);
}

using Halves = nb::ndarray<uint16_t, nb::device::cpu>;  // f16 bits

// What Recode needs of its arguments, checked, so that it can run without Python's lock.
struct Recoding {
  SegmentId id;
  std::shared_ptr<const Basis> basis;
  std::optional<RopeTable> rope;  // where a level of frame `pre` is among the kinds
  std::vector<TilePlan> tiles;    // one a head
  std::unique_ptr<Backend> backend;
  uint64_t bytes = 0;                // of the segments so far
  std::vector<TileMeasure> measure;  // [head], summed over them
};

void CheckArrays(const Halves& k, const Halves& v, size_t heads, int head_dim) {
  for (const auto& array : {k, v}) {
    if (array.ndim() != 3 || array.shape(0) != heads ||
        array.shape(2) != static_cast<size_t>(head_dim) || array.shape(1) % kBlockTokens != 0 ||
        array.shape(1) != k.shape(1) || array.stride(2) != 1)
      Raise(Invalid("k and v: f16 bits [heads of the plan][whole blocks of 64][head_dim]"));
  }
}

Recoding MakeRecoding(const ContextSpec& context, int layer, int head0, nb::list plan,
                      std::shared_ptr<const Basis> basis) {
  const LayerShape& shape = context.layers[static_cast<size_t>(layer)];
  Recoding out;
  bool rotated = false;
  for (nb::handle one : plan) {
    const auto pair = nb::cast<nb::tuple>(one);
    out.tiles.push_back({KKindOf(pair[0], basis.get()), VKindOf(pair[1]), ~uint64_t{0}});
    rotated |= kind::IsLevel(out.tiles.back().k_kind) && basis->info().frame == Frame::kPre;
  }
  out.id.fingerprint = basis ? basis->info().fingerprint : 0;
  out.id.basis = basis ? basis->name() : 0;
  out.id.layer = static_cast<uint16_t>(layer);
  out.id.head0 = static_cast<uint16_t>(head0);
  out.id.kv_heads = static_cast<uint16_t>(out.tiles.size());
  out.id.head_dim = shape.head_dim;
  out.id.dtype = DType::kF16;
  if (rotated) out.rope.emplace(context.ropes[shape.rope]);
  out.basis = std::move(basis);
  out.backend = Unwrap(MakeCpuBackend());
  out.measure.resize(out.tiles.size());
  return out;
}

MutableKvView BlockOf(const Halves& k, const Halves& v, uint32_t block) {
  const int64_t first = int64_t{block} * kBlockTokens;
  return {reinterpret_cast<std::byte*>(k.data() + first * k.stride(1)),
          reinterpret_cast<std::byte*>(v.data() + first * v.stride(1)),
          k.stride(1) * 2,
          k.stride(0) * 2,
          v.stride(1) * 2,
          v.stride(0) * 2,
          DType::kF16};
}

// Encodes one block and decodes it where it was.
Status RecodeBlock(Recoding& work, uint32_t block, const MutableKvView& at, uint64_t pinned) {
  work.id.block_index = block;
  std::vector<TileMeasure> measure(work.tiles.size());
  std::vector<std::byte> segment(EncodedBytes(work.id, work.tiles, pinned, work.basis.get()));
  EncodeJob encode;
  encode.id = work.id;
  encode.source = {
      at.k,    at.v, at.k_token_stride, at.k_head_stride, at.v_token_stride, at.v_head_stride,
      at.dtype};
  encode.basis = work.basis.get();
  encode.rope = work.rope ? &*work.rope : nullptr;
  encode.pins = pinned;
  encode.plan = work.tiles;
  encode.out = segment;
  encode.measure = measure;
  work.backend->Encode({&encode, 1});
  if (!encode.status.ok()) return encode.status;
  work.bytes += encode.bytes;
  for (size_t i = 0; i < measure.size(); ++i) {
    work.measure[i].k_energy += measure[i].k_energy;
    work.measure[i].k_error += measure[i].k_error;
    work.measure[i].v_energy += measure[i].v_energy;
    work.measure[i].v_error += measure[i].v_error;
  }
  DecodeJob decode;
  decode.segment = std::span(segment).first(encode.bytes);
  decode.basis = encode.basis;
  decode.rope = encode.rope;
  decode.head_begin = work.id.head0;
  decode.head_end = static_cast<uint16_t>(work.id.head0 + work.id.kv_heads);
  decode.target = at;
  work.backend->Decode({&decode, 1});
  return decode.status;
}

// Codes f16 K and V [heads][tokens][d] of one layer in place: what a reader would be served. All
// blocks get the kinds of `plan`, one (K, V) a head; the first `pins` tokens of the sequence stay.
// Returns (bytes of all segments, [heads] of [K energy, K error, V energy, V error]).
nb::tuple Recode(nb::handle spec, int layer, int head0, Halves k, Halves v, nb::list plan,
                 std::optional<nb::bytes> basis_bytes, int pins) {
  const ContextSpec context = SpecOf(spec);
  Raise(Validate(context));
  if (layer < 0 || static_cast<size_t>(layer) >= context.layers.size()) Raise(Invalid("layer"));
  const LayerShape& shape = context.layers[static_cast<size_t>(layer)];
  auto basis = basis_bytes ? ParseBasis(*basis_bytes) : nullptr;
  CheckArrays(k, v, nb::len(plan), shape.head_dim);
  if (head0 < 0 || head0 + static_cast<int>(nb::len(plan)) > shape.kv_heads || pins < 0 ||
      pins > kBlockTokens)
    Raise(Invalid("head0 or pins"));
  Recoding work = MakeRecoding(context, layer, head0, plan, std::move(basis));
  Status status;
  {
    nb::gil_scoped_release released;
    for (uint32_t block = 0; block < k.shape(1) / kBlockTokens && status.ok(); ++block) {
      const uint64_t pinned = block == 0 && pins > 0 ? ~uint64_t{0} >> (kBlockTokens - pins) : 0;
      status = RecodeBlock(work, block, BlockOf(k, v, block), pinned);
    }
  }
  Raise(status);
  nb::list measures;
  for (const TileMeasure& m : work.measure)
    measures.append(nb::make_tuple(m.k_energy, m.k_error, m.v_energy, m.v_error));
  return nb::make_tuple(work.bytes, measures);
}

}  // namespace

void RegisterCodec(nb::module_& m) {
  m.def(
      "crc32c",
      [](nb::bytes data) { return Crc32c(std::as_bytes(std::span(data.c_str(), data.size()))); },
      nb::arg("data"));
  m.def("build_basis", &BuildBasis, nb::arg("fingerprint"), nb::arg("layer"), nb::arg("head_dim"),
        nb::arg("post"), nb::arg("run"), nb::arg("tokens"), nb::arg("queries"), nb::arg("heads"));
  m.def("basis_facts", &BasisFacts, nb::arg("basis"));
  m.def("recode", &Recode, nb::arg("spec"), nb::arg("layer"), nb::arg("head0"), nb::arg("k"),
        nb::arg("v"), nb::arg("plan"), nb::arg("basis").none(), nb::arg("pins"));
}

}  // namespace dyna::python
