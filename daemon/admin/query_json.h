// What `dynacompress inspect`, `bank list` and their --json get: a tenant's own facts. Pure
// functions.
#pragma once

#include <string>
#include <vector>

#include "daemon/store/stats.h"
#include "schemas/record.h"

namespace dyna::admin {

std::string ContextsJson(const std::vector<ContextFact>& contexts);
// {"blocks": [{..., "rows": [{"layer", "head_begin", "kv_heads", "k_kind": [head], "k_bits":
// [head], "importance": [head x 8], ...}]}]}; kinds are the numbers of schemas/types.h.
std::string BlocksJson(const std::vector<BlockFact>& blocks);
std::string BankJson(const std::vector<record::BlockMeta>& blocks);

}  // namespace dyna::admin
