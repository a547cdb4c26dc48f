#include "daemon/policy/basis/moments.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "daemon/policy/basis/basis_testing.h"
#include "daemon/policy/policy_testing.h"

namespace dyna {
namespace {

constexpr int kD = 32;

// The covariance within tiles is right whatever the mean is (QKV biases).
TEST(LayerMoments, LargeMeansDoNotHurt) {
  for (double mean : {0.0, 100.0, 1000.0}) {
    auto dice = testing::Dice("moments");
    const testing::Source source(kD, .9, mean, dice), queries(kD, .9, 0, dice);
    LayerMoments moments(0, 1, kD, Frame::kPost);
    testing::Feed(&moments, source, queries, 200, dice);
    const CellMoments& cell = moments.cell(0);
    ASSERT_EQ(cell.tokens, 200u * 64);
    size_t at = 0;
    for (int i = 0; i < kD; ++i) {
      EXPECT_NEAR(cell.mean[static_cast<size_t>(i)], source.mean[static_cast<size_t>(i)],
                  1e-3 * mean + .05);
      for (int j = i; j < kD; ++j) {
        const double scale = std::sqrt(source.Covariance(i, i) * source.Covariance(j, j));
        EXPECT_NEAR(double{cell.scatter[at++]} / cell.tokens, source.Covariance(i, j) * 63 / 64,
                    .06 * scale);
      }
    }
  }
}

TEST(LayerMoments, UndoesRopeOfQueries) {
  for (RopeKind kind : {RopeKind::kHalf, RopeKind::kInterleaved}) {
    Rope rope = testing::HalfRope(24);  // the last 8 channels do not turn
    rope.kind = kind;
    auto dice = testing::Dice("queries");
    std::vector<float> plain(kD), turned(4 * kD);
    for (float& v : plain) v = std::normal_distribution<float>()(dice);
    for (int w = 0; w < 4; ++w) {
      float* q = turned.data() + w * kD;
      std::copy(plain.begin(), plain.end(), q);
      for (int p = 0; p < 12; ++p) {
        const double angle = (1000.0 + w) * double{rope.inv_freq[static_cast<size_t>(p)]};
        const int x = kind == RopeKind::kHalf ? p : 2 * p,
                  y = kind == RopeKind::kHalf ? p + 12 : 2 * p + 1;
        const double x0 = double{q[x]}, y0 = double{q[y]};
        q[x] = static_cast<float>(x0 * std::cos(angle) - y0 * std::sin(angle));
        q[y] = static_cast<float>(x0 * std::sin(angle) + y0 * std::cos(angle));
      }
    }
    LayerMoments moments(0, 1, kD, Frame::kPre);
    ASSERT_TRUE(moments.AddQueries(0, 1, turned, 4, 1, 1000, &rope).ok());
    size_t at = 0;
    for (int i = 0; i < kD; ++i)
      for (int j = i; j < kD; ++j)
        EXPECT_NEAR(moments.cell(0).qq[at++],
                    4 * plain[static_cast<size_t>(i)] * plain[static_cast<size_t>(j)], 2e-3);
    EXPECT_EQ(moments.cell(0).queries, 4u);
  }
}

TEST(LayerMoments, GroupsOfQueryHeadsFeedTheirKvHead) {
  LayerMoments moments(0, 2, 16, Frame::kPost);
  std::vector<float> q(6 * 16, 0.f);
  q[3 * 16] = 2;  // query head 3 is the first of kv head 1
  ASSERT_TRUE(moments.AddQueries(0, 2, q, 1, 6, 0, nullptr).ok());
  EXPECT_EQ(moments.cell(0).qq[0], 0);
  EXPECT_EQ(moments.cell(1).qq[0], 4);
  EXPECT_EQ(moments.cell(1).queries, 3u);
}

TEST(LayerMoments, BadInputIsNamedAndAddsNothing) {
  LayerMoments moments(5, 2, 16, Frame::kPost);
  const auto before = moments.Serialize();
  std::vector<float> sum(2 * 16, 0.f), scatter(2 * TriangleSize(16), 0.f), q(2 * 2 * 16, 0.f);
  std::vector<uint32_t> count = {64, 64};
  for (float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), 1e35f}) {
    scatter[TriangleSize(16) + 3] = bad;
    const Status status = moments.AddTile(0, count, sum, scatter);
    EXPECT_NE(status.message().find("layer 5, head 1"), std::string::npos) << status.ToString();
    q[3 * 16 + 2] = bad;
    const Status query = moments.AddQueries(0, 2, q, 2, 2, 0, nullptr);
    EXPECT_NE(query.message().find("token 1, head 1"), std::string::npos) << query.ToString();
  }
  scatter[TriangleSize(16) + 3] = 0;
  EXPECT_FALSE(moments.AddTile(1, count, sum, scatter).ok());
  count[0] = 65;
  EXPECT_FALSE(moments.AddTile(0, count, sum, scatter).ok());
  EXPECT_FALSE(moments.AddQueries(0, 2, q, 65, 2, 0, nullptr).ok());
  EXPECT_FALSE(moments.AddQueries(0, 2, q, 2, 3, 0, nullptr).ok());
  EXPECT_EQ(moments.Serialize(), before);
}

TEST(LayerMoments, HalvingKeepsCovarianceAndMean) {
  auto dice = testing::Dice("halve");
  const testing::Source source(kD, .9, 3, dice);
  LayerMoments moments(0, 1, kD, Frame::kPost);
  testing::Feed(&moments, source, source, 3, dice);
  const CellMoments before = moments.cell(0);
  moments.Halve();
  const CellMoments& after = moments.cell(0);
  EXPECT_EQ(after.tokens, before.tokens / 2);
  EXPECT_NEAR(after.scatter[0] / after.tokens, before.scatter[0] / before.tokens, 1e-5);
  EXPECT_NEAR(after.qq[0] / after.queries, before.qq[0] / before.queries, 1e-4);
  EXPECT_EQ(after.mean, before.mean);
}

TEST(LayerMoments, ComesBackFromItsRow) {
  auto dice = testing::Dice("row");
  const testing::Source source(kD, .9, 3, dice);
  LayerMoments moments(7, 2, kD, Frame::kPre);
  testing::Feed(&moments, source, source, 2, dice, 1);
  auto bytes = moments.Serialize();
  auto back = LayerMoments::Parse(bytes);
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  EXPECT_EQ(back->Serialize(), bytes);
  EXPECT_EQ(back->layer(), 7);
  for (size_t n : {size_t{0}, size_t{7}, bytes.size() - 1})
    EXPECT_FALSE(LayerMoments::Parse(std::span(bytes).first(n)).ok());
  for (size_t at : {1u, 2u, 4u, 6u, 7u}) {
    auto bad = bytes;
    bad[at] ^= 0x91;
    EXPECT_FALSE(LayerMoments::Parse(bad).ok()) << at;
  }
  const float nan = std::nanf("");
  auto bad = bytes;
  std::memcpy(bad.data() + bad.size() - 4, &nan, 4);
  EXPECT_FALSE(LayerMoments::Parse(bad).ok());
}

}  // namespace
}  // namespace dyna
