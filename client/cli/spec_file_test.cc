#include "client/cli/spec_file.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "client/cli/cli.h"

namespace dyna::cli {
namespace {

constexpr const char* kGood = R"({"model": "m", "dtype": "f16",
  "ropes": [{"kind": "half", "rotary_dim": 64, "theta": 10000}],
  "layers": [{"count": 3, "kv_heads": 2, "q_heads": 4, "head_dim": 64, "max_position": 8192},
             {"kind": "sliding", "window": 512, "kv_heads": 2, "head_dim": 64}]})";

TEST(SpecFile, ReadsADescription) {
  const auto spec = ParseSpec(kGood);
  ASSERT_TRUE(spec.ok()) << spec.status().ToString();
  EXPECT_EQ(spec->layers.size(), 4u);
  EXPECT_EQ(spec->layers[3].kind, LayerKind::kSliding);
  EXPECT_EQ(spec->ropes[0].inv_freq.size(), 32u);
  EXPECT_FLOAT_EQ(spec->ropes[0].inv_freq[16], 0.01f);
  EXPECT_EQ(BlockBytes(*spec), 4u * 2 * 2 * 64 * 64 * 2);
}

TEST(SpecFile, NamesWhatIsWrong) {
  auto message = [](std::string text) { return std::string(ParseSpec(text).status().message()); };
  EXPECT_NE(message("{").find("JSON"), std::string::npos);
  EXPECT_NE(message("[]").find("object"), std::string::npos);
  EXPECT_NE(message(R"({"model": 3})").find("context.model"), std::string::npos);
  EXPECT_NE(message(R"({"modle": "m"})").find("modle: unknown"), std::string::npos);
  EXPECT_NE(message(R"({"model": "m", "dtype": "f15"})").find("f32, f16"), std::string::npos);
  EXPECT_NE(message(R"({"model": "m", "layers": [{"kv_heads": -1}]})").find("layers[0].kv_heads"),
            std::string::npos);
  EXPECT_NE(
      message(R"({"model": "m", "layers": [{"kv_heads": 2, "head_dim": 40}]})").find("head_dim"),
      std::string::npos);
  EXPECT_NE(
      message(R"({"model": "m", "ropes": [{"kind": "half", "rotary_dim": 64}]})").find("theta"),
      std::string::npos);
  EXPECT_NE(message(R"({"model": "m"})").find("layers"), std::string::npos);
}

TEST(SpecFile, NamesOfBlocksFormAChain) {
  const std::string path = testing::TempDir() + "dyna_tokens.txt";
  std::ofstream out(path);
  for (int i = 0; i < 200; ++i) out << i << (i % 10 == 9 ? "\n" : " ");
  out.close();
  const auto names = BlockNames(path, "", 0);
  ASSERT_TRUE(names.ok()) << names.status().ToString();
  EXPECT_EQ(names->size(), 3u);
  const auto first = BlockNames(path, "", 2);
  EXPECT_EQ((*first)[1], (*names)[1]);
  EXPECT_NE((*BlockNames(path, "salt", 1))[0], (*names)[0]);
  EXPECT_FALSE(BlockNames(path, "", 4).ok());
  EXPECT_FALSE(BlockNames("", "", 4).ok());
  std::ofstream(path) << "1 2 x";
  EXPECT_FALSE(BlockNames(path, "", 0).ok());
  for (const char* bad : {"-1", "1 -1", "1 -1 ", "4294967296", "99999999999999999999"}) {
    std::ofstream(path) << bad;
    const auto refused = BlockNames(path, "", 0);
    EXPECT_NE(refused.status().message().find("token ids"), std::string::npos) << bad;
  }
  std::remove(path.c_str());
}

TEST(Cli, HashesAndBytes) {
  const BlockHash h = (*BlockNames("", "a", 1))[0];
  EXPECT_EQ(*ParseHash(Hex(h)), h);
  EXPECT_FALSE(ParseHash("12").ok());
  EXPECT_FALSE(ParseContext("xyz").ok());
  EXPECT_EQ(*ParseContext("00ff"), 255u);
  EXPECT_EQ(Bytes(1023), "1023 B");
  EXPECT_EQ(Bytes(1536), "1.5 KiB");
}

}  // namespace
}  // namespace dyna::cli
