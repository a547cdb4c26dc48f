// What `put`, `get` and `bank export` have in common: which context, which blocks, which file.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "client/cli/cli.h"
#include "client/cli/spec_file.h"

namespace dyna::cli {

struct ChainArgs {
  std::string context_file, tokens_file, name, path;
};
// --context, --tokens, --name.
void AddChainOptions(CLI::App& app, ChainArgs& args, bool names);

// Blocks that go through memory at once: a region of at most 256 MiB.
uint64_t BlocksAtOnce(uint64_t block_bytes, uint64_t blocks);

// A client with the context open and a region for `at_once` blocks.
struct Workbench {
  std::unique_ptr<Client> client;
  std::shared_ptr<Context> context;
  std::shared_ptr<Region> region;  // plain memory with --bulk socket and ucx
  std::vector<std::byte> plain;
  std::byte* data() { return region ? region->bytes().data() : plain.data(); }
};
Result<Workbench> OpenWorkbench(const Globals& globals, const ContextSpec& spec, uint64_t bytes);

// K and V of `blocks` blocks at `base`, in the order of the files.
KvMemory FileOrder(const ContextSpec& spec, std::byte* base, uint32_t blocks);

}  // namespace dyna::cli
