// The files of `put` and `get`: a context described in JSON, names of blocks, K and V as raw bytes.
//
//   { "model": "SmolLM2-135M", "revision": "", "adapter": "", "dtype": "f16",
//     "ropes":  [ { "kind": "half", "rotary_dim": 64, "theta": 100000 } ],      or "inv_freq": [..]
//     "layers": [ { "count": 30, "kind": "full", "kv_heads": 3, "q_heads": 9, "head_dim": 64,
//                   "rope": 0, "max_position": 8192 } ] }
//
// K and V: [block][layer][kv_head][K, V][token][head_dim] in `dtype`, nothing else in the file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "schemas/context.h"
#include "schemas/status.h"

namespace dyna::cli {

// Messages name the file and the field.
Result<ContextSpec> ReadSpecFile(const std::string& path);
Result<ContextSpec> ParseSpec(const std::string& json);

// Names of `blocks` blocks of a chain: of token ids (whitespace between them; only whole blocks
// count, and `blocks` 0 takes all there are), or, without a file, of a name.
Result<std::vector<BlockHash>> BlockNames(const std::string& tokens_file, const std::string& name,
                                          size_t blocks);

// Of K and V of one block, all layers.
uint64_t BlockBytes(const ContextSpec& spec);

Result<std::string> ReadText(const std::string& path, size_t max_bytes);

}  // namespace dyna::cli
