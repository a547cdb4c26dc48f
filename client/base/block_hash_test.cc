#include "client/base/block_hash.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace dyna {
namespace {

std::span<const std::byte> Bytes(const std::string& s) { return std::as_bytes(std::span(s)); }

std::string Hex(const BlockHash& hash) {
  std::string out;
  for (const uint8_t b : hash.bytes) {
    out += "0123456789abcdef"[b >> 4];
    out += "0123456789abcdef"[b & 15];
  }
  return out;
}

// Golden: made by python3 -c "hashlib.sha256(...)" over the documented layout; persisted keys
// depend on it.
TEST(BlockHashTest, LayoutIsFixed) {
  EXPECT_EQ(Hex(HashEngineBlock(Bytes("secret"), 0x1122334455667788, Bytes("engine"), 3)),
            "a28375305c57d5e395395ab45e604ac8eba1c33135ad7422e7528cc8cffd4428");
  const std::vector<uint32_t> tokens = {1, 2, 70000};
  EXPECT_EQ(Hex(HashTokens(BlockHash{}, tokens, Bytes("salt"))),
            "849f1ffcc7307218bbd27f639c54981e4df7a45bfec4010f06e0d649cd91df0c");
}

TEST(BlockHashTest, EveryPartMatters) {
  std::set<BlockHash> seen;
  auto add = [&](const BlockHash& h) { EXPECT_TRUE(seen.insert(h).second) << Hex(h); };
  add(HashEngineBlock(Bytes("a"), 1, Bytes("b"), 0));
  add(HashEngineBlock(Bytes("ab"), 1, Bytes(""), 0));
  add(HashEngineBlock(Bytes(""), 1, Bytes("ab"), 0));
  add(HashEngineBlock(Bytes("a"), 2, Bytes("b"), 0));
  add(HashEngineBlock(Bytes("a"), 1, Bytes("b"), 1));
  const std::vector<uint32_t> one = {1}, two = {1, 2};
  const BlockHash first = HashTokens(BlockHash{}, one, {});
  add(first);
  add(HashTokens(first, one, {}));
  add(HashTokens(BlockHash{}, two, {}));
  add(HashTokens(BlockHash{}, one, Bytes("x")));
}

}  // namespace
}  // namespace dyna
