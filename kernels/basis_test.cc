#include "kernels/basis.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/basis_layout.h"
#include "kernels/crc32c.h"
#include "kernels/test_data.h"

namespace dyna {
namespace {

using testing::Model;

std::vector<std::byte> BytesOf(const Basis& basis) {
  return {basis.bytes().begin(), basis.bytes().end()};
}

// Writes a checksum that fits, so that the check behind it is reached.
void Reseal(std::vector<std::byte>* bytes) {
  std::memset(bytes->data() + basis_layout::kCrcAt, 0, 4);
  const uint32_t crc = Crc32c(*bytes);
  std::memcpy(bytes->data() + basis_layout::kCrcAt, &crc, 4);
}

TEST(Basis, IsWhatItWasBuiltFrom) {
  std::mt19937 random(5);
  Model model;
  model.d = 48;
  model.kv_heads = 3;
  const auto basis = model.MakeBasis(random, 4, 6);
  ASSERT_NE(basis, nullptr);
  EXPECT_EQ(basis->bytes().size(), BasisBytes(3, 48, 8, basis->info().levels));
  EXPECT_EQ(basis->info().layer, 4);
  EXPECT_EQ(basis->info().tokens, 2048u);
  EXPECT_TRUE(basis->Covers(8));
  EXPECT_FALSE(basis->Covers(9));
  EXPECT_FALSE(basis->Covers(5));
  for (int h = 0; h < 3; ++h) {
    const BasisHeadParts& parts = model.heads[static_cast<size_t>(h)];
    for (size_t i = 0; i < 48 * 48; ++i) {
      EXPECT_EQ(basis->a(6 + h)[i], codec::RoundF16(static_cast<float>(parts.a[i])));
      EXPECT_EQ(basis->b(6 + h)[i], codec::RoundF16(static_cast<float>(parts.b[i])));
    }
    EXPECT_TRUE(basis->seen(6 + h));
  }
  const auto again = Basis::Parse(basis->bytes());
  ASSERT_TRUE(again.ok());
  EXPECT_EQ((*again)->name(), basis->name());
  EXPECT_NE(basis->name(), 0u);
}

TEST(Basis, CallsLevelsByTheirTargets) {
  std::mt19937 random(6);
  Model model;
  const auto basis = model.MakeBasis(random);
  for (int level = 0; level < basis->info().levels; ++level) {
    EXPECT_LE(basis->mean_bits(0, level), basis->target(level));
    EXPECT_EQ(basis->LevelOf(basis->target(level)), level);
    if (level == 0) continue;
    EXPECT_LT(basis->relative_error(0, level), basis->relative_error(0, level - 1));
  }
  EXPECT_EQ(basis->target(basis->LevelOf(2)), 2);
  EXPECT_EQ(basis->LevelOf(99), basis->info().levels - 1);
  EXPECT_EQ(basis->relative_error(0, 0), 1);
}

TEST(Basis, ProbesEstimateTheEnergyOfDeadChannels) {
  std::mt19937 random(7);
  Model model;
  const auto basis = model.MakeBasis(random);
  const int level = basis->LevelOf(1), live = basis->live_channels(0, level);
  ASSERT_GT(live, 0);
  ASSERT_LT(live, 64);
  double exact = 0, estimate = 0;
  for (int tile = 0; tile < 20; ++tile) {
    const auto x = model.SampleX(0, random);
    for (int t = 0; t < 64; ++t) {
      const auto project = [&](const float* row) {
        double sum = 0;
        for (int j = 0; j < 64; ++j)
          sum += row[j] * (x[static_cast<size_t>(t * 64 + j)] - basis->mu(0)[j]);
        return sum * sum;
      };
      for (int c = live; c < 64; ++c) exact += project(basis->a(0) + c * 64);
      for (int p = 0; p < Basis::kProbes; ++p)
        estimate += project(basis->probes(0, level) + p * 64);
    }
  }
  EXPECT_NEAR(estimate / exact, 1, .1);
}

TEST(Basis, AnUnseenHeadStaysPlain) {
  BasisInfo info;
  info.kv_heads = 1;
  info.head_dim = 32;
  info.run = 8;
  const BasisHeadParts unseen;
  const auto basis = Basis::Build(info, {&unseen, 1});
  ASSERT_TRUE(basis.ok()) << basis.status().ToString();
  EXPECT_FALSE((*basis)->seen(0));
  EXPECT_EQ(KTileBytes(kind::Level(0), 32, DType::kF16, basis->get(), 0), std::nullopt);
}

TEST(Basis, DegenerateInputIsRefused) {
  std::mt19937 random(8);
  Model model;
  ASSERT_NE(model.MakeBasis(random), nullptr);
  BasisInfo info;
  info.kv_heads = 1;
  info.head_dim = 64;
  info.run = 8;
  const auto refused = [&](auto change, std::string_view what) {
    BasisHeadParts head = model.heads[0];
    change(&head);
    const auto basis = Basis::Build(info, {&head, 1});
    ASSERT_FALSE(basis.ok()) << what;
    EXPECT_EQ(basis.status().code(), StatusCode::kInvalid) << what;
  };
  using Head = BasisHeadParts;
  refused([](Head* h) { h->a[5] = NAN; }, "NaN in A");
  refused([](Head* h) { h->b[5] = 1e6; }, "B beyond f16");
  refused([](Head* h) { h->mu[0] = INFINITY; }, "infinite mean");
  refused([](Head* h) { h->variances[3] = -1; }, "negative variance");
  refused([](Head* h) { h->variances[3] = NAN; }, "NaN variance");
  refused([](Head* h) { std::fill(h->a.begin(), h->a.end(), 0.0); }, "A of zeros");
  refused([](Head* h) { std::fill(h->b.begin(), h->b.end(), .01); }, "B of rank 1");
  refused([](Head* h) { h->a.pop_back(); }, "a short A");
}

TEST(BasisDoor, RefusesEveryDamage) {
  std::mt19937 random(9);
  Model model;
  model.d = 16;
  const auto basis = model.MakeBasis(random);
  const std::vector<std::byte> good = BytesOf(*basis);
  ASSERT_TRUE(Basis::Parse(good).ok());
  for (size_t n = 0; n < good.size(); ++n)
    EXPECT_FALSE(Basis::Parse(std::span(good).first(n)).ok()) << "cut to " << n;
  std::vector<std::byte> longer = good;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(Basis::Parse(longer).ok());
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::vector<std::byte> bad = good;
    bad[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_FALSE(Basis::Parse(bad).ok()) << "bit " << bit;
  }
}

TEST(BasisDoor, NamesTheFieldBehindAGoodChecksum) {
  std::mt19937 random(10);
  Model model;
  model.d = 16;
  const auto basis = model.MakeBasis(random);
  const auto refused = [&](size_t at, uint8_t value, std::string_view field) {
    std::vector<std::byte> bad = BytesOf(*basis);
    bad[at] = static_cast<std::byte>(value);
    Reseal(&bad);
    const auto parsed = Basis::Parse(bad);
    ASSERT_FALSE(parsed.ok()) << field;
    EXPECT_NE(parsed.status().message().find(field), std::string_view::npos)
        << parsed.status().ToString();
  };
  namespace at = basis_layout;
  refused(at::kVersionAt, 2, "version");
  refused(at::kHeadDimAt, 17, "head_dim");
  refused(at::kFrameAt, 2, "frame");
  refused(at::kRunAt, 4, "run");
  refused(at::kLevelsAt, 0, "levels");
  refused(at::kLevelsAt, 17, "levels");
  refused(at::kSourceAt, 0, "source");
  refused(at::kKvHeadsAt, 2, "length");
  refused(at::kReservedAt, 1, "reserved");
  const at::CellLayout layout(16, 8, basis->info().levels);
  refused(kBasisHeaderBytes + layout.widths, 2, "level 0");
  refused(kBasisHeaderBytes + layout.widths + 4, 3, "width");
  refused(kBasisHeaderBytes + layout.bytes - 1, 1, "padding");
  const size_t last = kBasisHeaderBytes + layout.widths + 2u * (basis->info().levels - 1u);
  refused(last, 0, "narrower");
}

}  // namespace
}  // namespace dyna
