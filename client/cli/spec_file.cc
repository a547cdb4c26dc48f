#include "client/cli/spec_file.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "client/base/block_hash.h"
#include "client/cli/cli.h"
#include "client/kv_memory.h"

namespace dyna::cli {
namespace {

using nlohmann::json;

// Reads fields of one object and remembers which it knew, so that a misspelt one is an error.
class Fields {
 public:
  Fields(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) status_ = BadUsage(where_ + ": an object is expected");
  }
  std::string Text(const char* name) {
    const json* v = Find(name);
    if (v == nullptr) return {};
    if (!v->is_string()) Bad(name, "text");
    return v->is_string() ? v->get<std::string>() : std::string();
  }
  uint64_t Number(const char* name, uint64_t otherwise, uint64_t max) {
    const json* v = Find(name);
    if (v == nullptr) return otherwise;
    if (!v->is_number_unsigned() || v->get<uint64_t>() > max) {
      Bad(name, ("a whole number up to " + std::to_string(max)).c_str());
      return otherwise;
    }
    return v->get<uint64_t>();
  }
  bool Bool(const char* name) {
    const json* v = Find(name);
    if (v != nullptr && !v->is_boolean()) Bad(name, "true or false");
    return v != nullptr && v->is_boolean() && v->get<bool>();
  }
  double Real(const char* name) {
    const json* v = Find(name);
    if (v != nullptr && !v->is_number()) Bad(name, "a number");
    return v != nullptr && v->is_number() ? v->get<double>() : 0;
  }
  const json* Array(const char* name) {
    const json* v = Find(name);
    if (v != nullptr && !v->is_array()) Bad(name, "a list");
    return v != nullptr && v->is_array() ? v : nullptr;
  }
  // One of names[0], names[1], ..: its position, else `otherwise`.
  size_t OneOf(const char* name, std::initializer_list<const char*> names, size_t otherwise) {
    const std::string given = Text(name);
    if (given.empty()) return otherwise;
    std::string all;
    size_t i = 0;
    for (const char* n : names) {
      if (given == n) return i;
      all += std::string(i++ ? ", " : "") + n;
    }
    Bad(name, ("one of " + all).c_str());
    return otherwise;
  }
  Status Finish() {
    if (status_.ok() && object_.is_object())
      for (const auto& [key, value] : object_.items())
        if (std::find(known_.begin(), known_.end(), key) == known_.end())
          return BadUsage(where_ + "." + key + ": unknown field");
    return status_;
  }
  void Bad(const char* name, const char* expected) {
    if (status_.ok()) status_ = BadUsage(where_ + "." + name + ": " + expected + " expected");
  }

 private:
  const json* Find(const char* name) {
    known_.push_back(name);
    if (!object_.is_object()) return nullptr;
    const auto it = object_.find(name);
    return it == object_.end() ? nullptr : &*it;
  }
  const json& object_;
  const std::string where_;
  std::vector<std::string> known_;
  Status status_;
};

Result<Rope> ReadRope(const json& object, const std::string& where) {
  Fields f(object, where);
  Rope rope;
  rope.kind = static_cast<RopeKind>(f.OneOf("kind", {"none", "half", "interleaved"}, 0));
  rope.rotary_dim = static_cast<uint16_t>(f.Number("rotary_dim", 0, kMaxHeadDim));
  const double theta = f.Real("theta");
  if (const json* table = f.Array("inv_freq")) {
    for (const json& v : *table) {
      if (!v.is_number())
        f.Bad("inv_freq", "numbers");
      else
        rope.inv_freq.push_back(v.get<float>());
    }
  } else if (rope.kind != RopeKind::kNone) {
    if (!(theta > 1)) f.Bad("theta", "theta above 1, or inv_freq");
    for (int i = 0; theta > 1 && i < rope.rotary_dim / 2; ++i)
      rope.inv_freq.push_back(static_cast<float>(std::pow(theta, -2.0 * i / rope.rotary_dim)));
  }
  DYNA_RETURN_IF_ERROR(f.Finish());
  return rope;
}

Status AddLayers(const json& object, const std::string& where, ContextSpec& spec) {
  Fields f(object, where);
  LayerShape l;
  const uint64_t count = f.Number("count", 1, kMaxLayers);
  l.kind = static_cast<LayerKind>(1 + f.OneOf("kind", {"full", "sliding", "opaque"}, 0));
  l.kv_heads = static_cast<uint16_t>(f.Number("kv_heads", 0, kMaxKvHeads));
  l.q_heads = static_cast<uint16_t>(f.Number("q_heads", 0, UINT16_MAX));
  l.head_dim = static_cast<uint16_t>(f.Number("head_dim", 0, kMaxHeadDim));
  l.rope = static_cast<uint16_t>(f.Number("rope", 0, 15));
  l.window = static_cast<uint32_t>(f.Number("window", 0, UINT32_MAX));
  l.max_position = static_cast<uint32_t>(f.Number("max_position", 1u << 20, UINT32_MAX));
  DYNA_RETURN_IF_ERROR(f.Finish());
  if (spec.layers.size() + count > kMaxLayers) return BadUsage(where + ": more than 1024 layers");
  spec.layers.insert(spec.layers.end(), count, l);
  return {};
}

}  // namespace

Result<std::string> ReadText(const std::string& path, size_t max_bytes) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return BadUsage(path + ": cannot be read");
  std::ostringstream out;
  out << in.rdbuf();
  if (out.str().size() > max_bytes)
    return BadUsage(path + ": more than " + std::to_string(max_bytes) + " bytes");
  return out.str();
}

Result<ContextSpec> ParseSpec(const std::string& text) {
  const json root = json::parse(text, nullptr, false);
  if (root.is_discarded()) return BadUsage("no valid JSON");
  Fields f(root, "context");
  ContextSpec spec;
  spec.model = f.Text("model");
  spec.revision = f.Text("revision");
  spec.adapter = f.Text("adapter");
  spec.dtype = static_cast<DType>(1 + f.OneOf("dtype", {"f32", "f16", "bf16", "e4m3", "e5m2"}, 2));
  spec.attend = f.Bool("attend");
  spec.masks = f.Bool("masks");
  if (const json* ropes = f.Array("ropes"))
    for (size_t i = 0; i < ropes->size(); ++i) {
      DYNA_ASSIGN_OR_RETURN(Rope rope, ReadRope((*ropes)[i], "ropes[" + std::to_string(i) + "]"));
      spec.ropes.push_back(std::move(rope));
    }
  if (spec.ropes.empty()) spec.ropes.emplace_back();
  if (const json* layers = f.Array("layers"))
    for (size_t i = 0; i < layers->size(); ++i)
      DYNA_RETURN_IF_ERROR(AddLayers((*layers)[i], "layers[" + std::to_string(i) + "]", spec));
  DYNA_RETURN_IF_ERROR(f.Finish());
  if (Status s = Validate(spec); !s.ok()) return BadUsage(std::string(s.message()));
  return spec;
}

Result<ContextSpec> ReadSpecFile(const std::string& path) {
  DYNA_ASSIGN_OR_RETURN(const std::string text, ReadText(path, 16u << 20));
  auto spec = ParseSpec(text);
  if (!spec.ok()) {
    std::string message(spec.status().message());
    return BadUsage(path + ": " + message.substr(message.find(' ') + 1));
  }
  return spec;
}

Result<std::vector<BlockHash>> BlockNames(const std::string& tokens_file, const std::string& name,
                                          size_t blocks) {
  std::vector<uint32_t> tokens;
  if (!tokens_file.empty()) {
    DYNA_ASSIGN_OR_RETURN(const std::string text, ReadText(tokens_file, 256u << 20));
    std::istringstream in(text);
    while (!(in >> std::ws).eof()) {
      int64_t t = 0;  // wider than an id: what reads into an unsigned accepts a sign
      if (!(in >> t) || t < 0 || t > int64_t{UINT32_MAX})
        return BadUsage(tokens_file +
                        ": token ids (0 .. 4294967295) with spaces between them expected");
      tokens.push_back(static_cast<uint32_t>(t));
    }
    const size_t whole = tokens.size() / kBlockTokens;
    if (blocks == 0) blocks = whole;
    if (blocks == 0 || whole < blocks)
      return BadUsage(tokens_file + ": " + std::to_string(whole) + " whole blocks of 64 tokens, " +
                      std::to_string(std::max<size_t>(blocks, 1)) + " needed");
  } else if (name.empty()) {
    return BadUsage("--tokens FILE or --name NAME says which blocks");
  }
  tokens.resize(blocks * kBlockTokens);
  std::vector<BlockHash> hashes(blocks);
  for (size_t b = 0; b < blocks; ++b)
    hashes[b] = HashTokens(b == 0 ? BlockHash{} : hashes[b - 1],
                           std::span(tokens).subspan(b * kBlockTokens, kBlockTokens),
                           std::as_bytes(std::span(name)));
  return hashes;
}

uint64_t BlockBytes(const ContextSpec& spec) {
  uint64_t n = 0;
  for (const LayerShape& l : spec.layers)
    if (l.kind != LayerKind::kOpaque) n += DenseSegmentBytes(l.kv_heads, l.head_dim, spec.dtype);
  return n;
}

}  // namespace dyna::cli
