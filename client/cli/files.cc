#include "client/cli/files.h"

#include <CLI/CLI.hpp>
#include <algorithm>

namespace dyna::cli {

void AddChainOptions(CLI::App& app, ChainArgs& args, bool names) {
  app.add_option("--context", args.context_file, "JSON description of the model (see --help-files)")
      ->required();
  if (!names) return;
  app.add_option("--tokens", args.tokens_file,
                 "token ids, with spaces between them: they name the blocks");
  app.add_option("--name", args.name,
                 "names the blocks (with --tokens: keeps them apart from others')");
}

uint64_t BlocksAtOnce(uint64_t block_bytes, uint64_t blocks) {
  return std::clamp<uint64_t>((256u << 20) / std::max<uint64_t>(block_bytes, 1), 1, blocks);
}

Result<Workbench> OpenWorkbench(const Globals& globals, const ContextSpec& spec, uint64_t bytes) {
  for (const LayerShape& l : spec.layers)
    if (l.kind == LayerKind::kOpaque || l.kv_heads != spec.layers[0].kv_heads ||
        l.head_dim != spec.layers[0].head_dim)
      return BadUsage("layers: these files need the same kv_heads and head_dim in every layer");
  Workbench w;
  DYNA_ASSIGN_OR_RETURN(w.client, ConnectClient(globals));
  DYNA_ASSIGN_OR_RETURN(w.context, w.client->OpenContext(spec));
  if (globals.bulk == "auto" || globals.bulk == "region") {
    auto region = w.client->AllocateRegion(bytes);
    if (region.ok())
      w.region = std::move(*region);
    else if (region.status().code() != StatusCode::kUnsupported)
      return region.status();
  }
  if (!w.region) w.plain.resize(bytes);
  return w;
}

KvMemory FileOrder(const ContextSpec& spec, std::byte* base, uint32_t blocks) {
  KvMemory m;
  m.dtype = spec.dtype;
  for (uint32_t b = 0; b < blocks; ++b)
    for (const LayerShape& l : spec.layers) {
      const int64_t row = int64_t{l.head_dim} * DTypeBytes(spec.dtype), tile = kBlockTokens * row;
      m.k.push_back(base);
      m.v.push_back(base + tile);
      m.k_token_stride = m.v_token_stride = row;
      m.k_head_stride = m.v_head_stride = 2 * tile;
      base += DenseSegmentBytes(l.kv_heads, l.head_dim, spec.dtype);
    }
  return m;
}

}  // namespace dyna::cli
