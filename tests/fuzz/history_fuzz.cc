// The door of a block's attention history, and a report folded into what passes.
#include "daemon/policy/history.h"

#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<std::byte> bytes = dyna::fuzz::Copy(data, size);
  auto history = dyna::BlockHistory::Parse(bytes, 1);
  if (!history.ok()) return 0;
  DYNA_FUZZ_CHECK(history->Serialize() == bytes);
  const int layer = history->shard().layer_begin, head = history->shard().head_begin;
  const std::vector<float> x(dyna::kBlockTokens, 3.5f);
  DYNA_FUZZ_CHECK(history->Fold({layer, head, 1, x, 64}, {}).ok());
  float tokens[dyna::kBlockTokens];
  history->Tokens(layer, head, tokens);
  for (const float r : tokens) DYNA_FUZZ_CHECK(std::isfinite(r) && r > 0);
  DYNA_FUZZ_CHECK(dyna::BlockHistory::Parse(history->Serialize(), 1).ok());
  return 0;
}
