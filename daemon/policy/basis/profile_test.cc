#include "daemon/policy/basis/profile.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "daemon/policy/policy_testing.h"
#include "kernels/crc32c.h"

namespace dyna {
namespace {

constexpr Fingerprint kModel = 7;

Profile Example() {
  Profile profile;
  profile.fingerprint = kModel;
  profile.bases = {testing::FallingBasis(2, 64, .85, kModel, 0), nullptr};
  profile.cells.assign(2, std::vector<CellSensitivity>(2, {1e-3f, 2e-3f, .01f, .1f}));
  return profile;
}

// Makes the checksum right again after a change.
std::vector<std::byte> Resealed(std::vector<std::byte> bytes) {
  std::memset(bytes.data() + 60, 0, 4);
  const uint32_t crc = Crc32c(bytes);
  std::memcpy(bytes.data() + 60, &crc, 4);
  return bytes;
}

TEST(Profile, ComesBackFromItsBytes) {
  const ContextSpec spec = testing::SmallSpec();
  const auto bytes = SerializeProfile(Example());
  auto back = ParseProfile(bytes, spec, kModel);
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  ASSERT_TRUE(back->bases[0]);
  EXPECT_EQ(back->bases[0]->name(), Example().bases[0]->name());
  EXPECT_FALSE(back->bases[1]);
  EXPECT_EQ(back->cells[1][1].omega_v, 2e-3f);
  EXPECT_EQ(SerializeProfile(*back), bytes);
  EXPECT_EQ(Resealed(bytes), bytes);

  Profile bare = Example();
  bare.cells.clear();
  auto without = ParseProfile(SerializeProfile(bare), spec, kModel);
  ASSERT_TRUE(without.ok());
  EXPECT_FALSE(without->has_omega());
}

TEST(Profile, OfAnotherModelIsNamed) {
  const auto bytes = SerializeProfile(Example());
  const auto message = [&](const ContextSpec& spec, Fingerprint model) {
    auto parsed = ParseProfile(bytes, spec, model);
    EXPECT_EQ(parsed.status().code(), StatusCode::kInvalid);
    return std::string(parsed.status().message());
  };
  EXPECT_NE(message(testing::SmallSpec(), 8).find("another model"), std::string::npos);
  EXPECT_NE(message(testing::SmallSpec(3), kModel).find("layers"), std::string::npos);
  EXPECT_NE(message(testing::SmallSpec(2, 4), kModel).find("layer 0"), std::string::npos);
  EXPECT_NE(message(testing::SmallSpec(2, 2, 32), kModel).find("head_dim"), std::string::npos);
  ContextSpec attend = testing::SmallSpec();
  attend.attend = true;
  EXPECT_NE(message(attend, kModel).find("frame"), std::string::npos);
}

TEST(Profile, DoorRefusesDamage) {
  const ContextSpec spec = testing::SmallSpec();
  const auto good = SerializeProfile(Example());
  for (size_t n = 0; n < good.size(); n += n < 200 ? 1 : 97)
    EXPECT_FALSE(ParseProfile(std::span(good).first(n), spec, kModel).ok()) << n;
  auto dice = testing::Dice("profile");
  for (int round = 0; round < 300; ++round) {
    auto bad = good;
    bad[dice() % bad.size()] ^= static_cast<std::byte>(1 + dice() % 255);
    EXPECT_FALSE(ParseProfile(bad, spec, kModel).ok());
    // With a checksum that is right the parts must hold by themselves: no crash, no bad omega.
    auto parsed = ParseProfile(Resealed(bad), spec, kModel);
    if (parsed.ok() && parsed->has_omega()) {
      EXPECT_TRUE(Sensitivity::Make(spec, parsed->cells).ok());
    }
  }
}

TEST(Profile, LengthsThatLie) {
  const ContextSpec spec = testing::SmallSpec();
  const auto good = SerializeProfile(Example());
  for (uint32_t lie : {1u, 0x7fffffffu, 0xffffffffu}) {
    for (size_t at : {64u, 68u}) {  // basis bytes, cells of layer 0
      auto bad = good;
      std::memcpy(bad.data() + at, &lie, 4);
      EXPECT_FALSE(ParseProfile(Resealed(bad), spec, kModel).ok());
    }
  }
}

}  // namespace
}  // namespace dyna
