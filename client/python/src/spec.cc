#include "module.h"

namespace dyna::python {

DType DTypeOf(const std::string& name) {
  for (DType t : {DType::kF32, DType::kF16, DType::kBf16, DType::kE4m3, DType::kE5m2})
    if (DTypeName(t) == name) return t;
  Raise(Invalid("dtype '" + name + "': one of f32, f16, bf16, e4m3, e5m2"));
  return DType::kF32;
}

QualityClass QualityOf(const std::string& name) {
  for (QualityClass q :
       {QualityClass::kSmall, QualityClass::kBalanced, QualityClass::kHigh, QualityClass::kExact})
    if (QualityName(q) == name) return q;
  Raise(Invalid("quality '" + name + "': one of small, balanced, high, exact"));
  return QualityClass::kBalanced;
}

ContextSpec SpecOf(nb::handle spec) {
  ContextSpec out;
  out.model = nb::cast<std::string>(spec.attr("model"));
  out.revision = nb::cast<std::string>(spec.attr("revision"));
  out.adapter = nb::cast<std::string>(spec.attr("adapter"));
  out.dtype = DTypeOf(nb::cast<std::string>(spec.attr("dtype")));
  out.attend = nb::cast<bool>(spec.attr("attend"));
  out.masks = nb::cast<bool>(spec.attr("masks"));
  for (nb::handle l : spec.attr("layers")) {
    LayerShape shape;
    const std::string kind = nb::cast<std::string>(l.attr("kind"));
    if (kind == "full")
      shape.kind = LayerKind::kFull;
    else if (kind == "sliding")
      shape.kind = LayerKind::kSliding;
    else if (kind == "opaque")
      shape.kind = LayerKind::kOpaque;
    else
      Raise(Invalid("layer kind '" + kind + "': one of full, sliding, opaque"));
    shape.kv_heads = nb::cast<uint16_t>(l.attr("kv_heads"));
    shape.q_heads = nb::cast<uint16_t>(l.attr("q_heads"));
    shape.head_dim = nb::cast<uint16_t>(l.attr("head_dim"));
    shape.rope = nb::cast<uint16_t>(l.attr("rope"));
    shape.window = nb::cast<uint32_t>(l.attr("window"));
    shape.max_position = nb::cast<uint32_t>(l.attr("max_position"));
    out.layers.push_back(shape);
  }
  for (nb::handle r : spec.attr("ropes")) {
    Rope rope;
    const std::string kind = nb::cast<std::string>(r.attr("kind"));
    if (kind == "none")
      rope.kind = RopeKind::kNone;
    else if (kind == "half")
      rope.kind = RopeKind::kHalf;
    else if (kind == "interleaved")
      rope.kind = RopeKind::kInterleaved;
    else
      Raise(Invalid("rope kind '" + kind + "': one of none, half, interleaved"));
    for (nb::handle f : r.attr("inv_freq")) rope.inv_freq.push_back(nb::cast<float>(f));
    rope.rotary_dim = nb::cast<uint16_t>(r.attr("rotary_dim"));
    out.ropes.push_back(std::move(rope));
  }
  return out;
}

}  // namespace dyna::python
