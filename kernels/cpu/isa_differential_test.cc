// Every instruction set against the scalar table: what tile_ops.h marks EXACT has the same bytes
// on random shapes and special values; the transforms keep the bound of formats 2 against double.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/codec_math.h"
#include "kernels/cpu/hwy_ops.h"
#include "kernels/cpu/tile_ops.h"
#include "tests/support/seed.h"

namespace dyna {
namespace {

constexpr double kBound = 1.0 / 1024;

struct alignas(64) Line {
  float lanes[16];
};
// Planes [d][64], aligned as tile_ops.h wants them.
class Planes {
 public:
  explicit Planes(int d) : lines_(static_cast<size_t>(d) * kLanes / 16) {}
  float* data() { return lines_.data()->lanes; }
  const float* data() const { return lines_.data()->lanes; }
  float& at(int c, int t) { return data()[c * kLanes + t]; }
  float at(int c, int t) const { return data()[c * kLanes + t]; }

 private:
  std::vector<Line> lines_;
};

class IsaDifferential : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    ops_ = std::string_view(GetParam()) == "avx2" ? HwyAvx2TileOps() : HwyAvx512TileOps();
    if (ops_ == nullptr) GTEST_SKIP() << "this machine has no " << GetParam();
    random_.seed(testing::TestSeed());
  }

  int Int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  float Normal() { return std::normal_distribution<float>()(random_); }
  uint64_t Rows() {
    switch (Int(0, 7)) {
      case 0:
        return 0;
      case 1:
        return uint64_t{1} << Int(0, 63);
      case 2:
        return random_() & random_();
      case 3:
        return random_();
      case 4:
        return ~uint64_t{0xF};
      default:
        return ~uint64_t{0};
    }
  }

  // Channels of every kind that the quantisers treat apart.
  Planes Tile(int d, bool tame) {
    Planes p(d);
    for (int c = 0; c < d; ++c) {
      const int shape = Int(0, 9);
      const float size = std::ldexp(1.0f, Int(-20, tame ? 3 : 9)), mean = Normal() * size * 4;
      for (int t = 0; t < kLanes; ++t) {
        float v = Normal() * size + mean;
        if (shape == 0) v = mean;                                               // constant
        if (shape == 1) v = Int(0, 1) != 0 ? 0.0f : -0.0f;                      // both zeros
        if (shape == 2) v = std::ldexp(static_cast<float>(Int(-8, 8)), -24);    // subnormal f16
        if (shape == 3) v = static_cast<float>(Int(0, 30)) / 2;                 // ties
        if (shape == 4) v = t == 9 ? size * 16 : Int(0, 7) == 0 ? size : 0.0f;  // peaky
        if (shape == 5) v = mean + (t == 3 ? std::abs(mean) * 0x1p-10f : 0.0f);
        p.at(c, t) = v;
      }
    }
    if (Int(0, 3) == 0)  // rows of zeros
      for (int t = 0; t < kLanes; t += 3)
        for (int c = 0; c < d; ++c) p.at(c, t) = 0;
    if (Int(0, 9) == 0)
      p.at(Int(0, d - 1), Int(0, 63)) = Int(0, 1) != 0 ? 70000.0f : NAN;  // outside f16
    return p;
  }

  // y against want, per row: within kBound of the row's rms.
  void ExpectWithinBound(const Planes& got, const std::vector<double>& want, int d) {
    for (int t = 0; t < kLanes; ++t) {
      double square = 0, worst = 0;
      for (int c = 0; c < d; ++c) {
        const double w = want[static_cast<size_t>(c * kLanes + t)];
        square += w * w;
        worst = std::max(worst, std::abs(got.at(c, t) - w));
      }
      ASSERT_LE(worst, kBound * std::sqrt(square / d) / 8) << "row " << t << " d " << d;
    }
  }

  const TileOps* ops_ = nullptr;
  const TileOps& scalar_ = ScalarTileOps();
  std::mt19937_64 random_;
};

bool Near(float a, float b) {
  return std::abs(a - b) <= 1e-3f * (std::abs(a) + std::abs(b)) + 1e-20f;
}

TEST_P(IsaDifferential, KBytesAreThoseOfScalar) {
  constexpr int kWidths[] = {0, 2, 4, 8};
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    const int run = Int(0, 1) != 0 ? 8 : 16, channels = run * Int(1, 48 / run);
    const int width = kWidths[Int(0, 3)];
    const uint64_t rows = Rows();
    const Planes y = Tile(channels, width == 2);
    struct Out {
      std::vector<uint16_t> m;
      std::vector<std::byte> scales, codes;
      ErrorSums sums;
      QuantiseResult result;
    };
    const auto quantise = [&](const TileOps& ops) {
      Out o;
      o.m.assign(static_cast<size_t>(channels), 0xEEEE);
      o.scales.assign(static_cast<size_t>(channels) * 2, std::byte{0});
      o.codes.assign(static_cast<size_t>(8 * channels * width), std::byte{0xEE});
      o.result = ops.quantise_k(y.data(), channels, run, width, rows, o.m.data(), o.scales.data(),
                                o.codes.data(), &o.sums);
      return o;
    };
    const Out want = quantise(scalar_), got = quantise(*ops_);
    SCOPED_TRACE(::testing::Message() << "case " << i << " channels " << channels << " run " << run
                                      << " width " << width << " rows " << std::hex << rows);
    ASSERT_EQ(got.result == QuantiseResult::kOk, want.result == QuantiseResult::kOk);
    if (want.result != QuantiseResult::kOk) {
      ++refused;
      continue;
    }
    ASSERT_EQ(got.m, want.m);
    ASSERT_EQ(got.scales, want.scales);
    ASSERT_EQ(got.codes, want.codes);
    EXPECT_TRUE(Near(got.sums.error, want.sums.error)) << got.sums.error << " " << want.sums.error;
    EXPECT_TRUE(Near(got.sums.energy, want.sums.energy));

    Planes back(channels), back_scalar(channels);
    scalar_.dequantise_k(want.m.data(), want.scales.data(), want.codes.data(), channels, run, width,
                         back_scalar.data());
    ops_->dequantise_k(want.m.data(), want.scales.data(), want.codes.data(), channels, run, width,
                       back.data());
    ASSERT_EQ(std::memcmp(back.data(), back_scalar.data(),
                          sizeof(float) * static_cast<size_t>(channels * kLanes)),
              0);
  }
  EXPECT_LT(refused, 1500);
}

TEST_P(IsaDifferential, VBytesAreThoseOfScalar) {
  constexpr int kBits[] = {1, 2, 4, 8};
  int refused = 0;
  for (int i = 0; i < 1500; ++i) {
    const int d = 16 * Int(1, 16), bits = kBits[Int(0, 3)];
    const uint64_t rows = Rows();
    const Planes z = Tile(d, false);
    struct Out {
      std::vector<std::byte> gains, codes;
      ErrorSums sums;
      int8_t v_exp = 99;
      QuantiseResult result;
    };
    const auto quantise = [&](const TileOps& ops) {
      Out o;
      o.gains.assign(bits == 8 ? 128 : 64, std::byte{0xEE});
      o.codes.assign(static_cast<size_t>(8 * d * bits), std::byte{0xEE});
      o.result = ops.quantise_v(z.data(), d, bits, rows, o.gains.data(), o.codes.data(), &o.v_exp,
                                &o.sums);
      return o;
    };
    const Out want = quantise(scalar_), got = quantise(*ops_);
    SCOPED_TRACE(::testing::Message()
                 << "case " << i << " d " << d << " bits " << bits << " rows " << std::hex << rows);
    ASSERT_EQ(got.result, want.result);
    if (want.result != QuantiseResult::kOk) {
      ++refused;
      continue;
    }
    ASSERT_EQ(int{got.v_exp}, int{want.v_exp});
    ASSERT_EQ(got.gains, want.gains);
    ASSERT_EQ(got.codes, want.codes);
    // The error may come from its sums, without the rounding of z' to f16 (1 % of it at 8 bits).
    EXPECT_NEAR(got.sums.error, want.sums.error,
                (bits == 8 ? 3e-2 : 2e-3) * want.sums.error + 1e-6 * want.sums.energy);
    Planes back(d), back_scalar(d);
    scalar_.dequantise_v(want.gains.data(), want.codes.data(), d, bits, want.v_exp,
                         back_scalar.data());
    ops_->dequantise_v(want.gains.data(), want.codes.data(), d, bits, want.v_exp, back.data());
    ASSERT_EQ(std::memcmp(back.data(), back_scalar.data(),
                          sizeof(float) * static_cast<size_t>(d * kLanes)),
              0);
  }
  EXPECT_LT(refused, 750);
}

// Bytes of a tile from elsewhere: any bits decode to what scalar says.
TEST_P(IsaDifferential, AnyBytesDecodeAsScalarDoes) {
  for (int i = 0; i < 300; ++i) {
    const int d = 16 * Int(1, 16), width = 2 << Int(0, 2), run = Int(0, 1) != 0 ? 8 : 16;
    std::vector<std::byte> codes(static_cast<size_t>(8 * d * 8)),
        scales(static_cast<size_t>(4 * d + 256));
    std::vector<uint16_t> m(static_cast<size_t>(d));
    for (auto& b : codes) b = static_cast<std::byte>(random_());
    for (auto& b : scales) b = static_cast<std::byte>(random_());
    for (auto& v : m) v = static_cast<uint16_t>(random_() & 0xBBFF);  // finite
    for (size_t k = 1; k < scales.size(); k += 2) scales[k] &= std::byte{0xBB};
    const auto v_exp = static_cast<int8_t>(Int(-40, 20));
    Planes got(d), want(d);
    scalar_.dequantise_k(m.data(), scales.data(), codes.data(), d, run, width, want.data());
    ops_->dequantise_k(m.data(), scales.data(), codes.data(), d, run, width, got.data());
    for (int k = 0; k < d * kLanes; ++k)
      ASSERT_EQ(std::bit_cast<uint32_t>(got.data()[k]), std::bit_cast<uint32_t>(want.data()[k]));
    const int bits = 1 << Int(0, 3);
    scalar_.dequantise_v(scales.data(), codes.data(), d, bits, v_exp, want.data());
    ops_->dequantise_v(scales.data(), codes.data(), d, bits, v_exp, got.data());
    for (int k = 0; k < d * kLanes; ++k)
      ASSERT_EQ(std::bit_cast<uint32_t>(got.data()[k]), std::bit_cast<uint32_t>(want.data()[k]));
  }
}

TEST_P(IsaDifferential, LoadAndStoreAreThoseOfScalar) {
  for (int i = 0; i < 400; ++i) {
    const int d = 16 * Int(1, 16);
    const DType dtype = static_cast<DType>(Int(1, 3));
    const int64_t row = d * DTypeBytes(dtype), stride = row + DTypeBytes(dtype) * Int(0, 9);
    std::vector<std::byte> bytes(static_cast<size_t>(stride * kLanes + 64));
    const bool finite = Int(0, 1) != 0;
    for (int t = 0; t < kLanes; ++t) {
      for (int c = 0; c < d; ++c) {
        std::byte* at = bytes.data() + t * stride + c * DTypeBytes(dtype);
        uint32_t bits = static_cast<uint32_t>(random_());
        if (finite)
          bits &= dtype == DType::kF16 ? 0xBBFFu : dtype == DType::kBf16 ? 0xBFFFu : 0xBFFFFFFFu;
        std::memcpy(at, &bits, static_cast<size_t>(DTypeBytes(dtype)));
      }
    }
    Planes got(d), want(d);
    ASSERT_EQ(ops_->load(bytes.data(), stride, dtype, d, got.data()),
              scalar_.load(bytes.data(), stride, dtype, d, want.data()));
    for (int k = 0; finite && k < d * kLanes; ++k)  // the bits of a NaN may differ
      ASSERT_EQ(std::bit_cast<uint32_t>(got.data()[k]), std::bit_cast<uint32_t>(want.data()[k]));

    Planes p(d);
    for (int k = 0; k < d * kLanes; ++k)
      p.data()[k] = std::bit_cast<float>(static_cast<uint32_t>(random_()) & 0xBFFFFFFFu);
    for (int k = 0; k < 64; ++k) p.data()[k] = Normal() * 60000;
    std::vector<std::byte> a(bytes), b(bytes);
    ops_->store(p.data(), d, a.data(), stride, dtype);
    scalar_.store(p.data(), d, b.data(), stride, dtype);
    ASSERT_EQ(a, b);  // nothing between rows either
  }
}

TEST_P(IsaDifferential, MeansAreThoseOfScalar) {
  for (int i = 0; i < 300; ++i) {
    const int d = Int(1, 128);
    const uint64_t rows = Rows();
    Planes p = Tile(d, true);
    for (int k = 0; k < d * kLanes; ++k)
      if (!codec::IsFiniteBits(p.data()[k])) p.data()[k] = 1;
    std::vector<float> got(static_cast<size_t>(d)), want(got);
    ops_->mean(p.data(), d, rows, got.data());
    scalar_.mean(p.data(), d, rows, want.data());
    ASSERT_EQ(std::memcmp(got.data(), want.data(), sizeof(float) * got.size()), 0);
    const float* from = Int(0, 1) != 0 ? want.data() : nullptr;
    EXPECT_TRUE(
        Near(ops_->energy(p.data(), d, rows, from), scalar_.energy(p.data(), d, rows, from)));
  }
}

TEST_P(IsaDifferential, TransformsAreNearDouble) {
  for (int i = 0; i < 60; ++i) {
    const int out = 4 * Int(1, 64), in = 4 * Int(1, 64), ld = in + Int(0, 5);
    std::vector<float> m(static_cast<size_t>(out * ld)), bias(static_cast<size_t>(out));
    for (auto& v : m) v = Normal();
    for (auto& v : bias) v = Normal();
    const float* add = Int(0, 1) != 0 ? bias.data() : nullptr;
    Planes x(in), y(out);
    for (int k = 0; k < in * kLanes; ++k) x.data()[k] = Normal();
    ops_->transform(m.data(), ld, out, in, add, x.data(), y.data());
    std::vector<double> want(static_cast<size_t>(out * kLanes));
    std::vector<float> column(static_cast<size_t>(in)), product(static_cast<size_t>(out));
    for (int c = 0; c < in; ++c) column[static_cast<size_t>(c)] = x.at(c, 5);
    ops_->matvec(m.data(), ld, out, in, add, column.data(), product.data());
    for (int o = 0; o < out; ++o) {
      for (int t = 0; t < kLanes; ++t) {
        double sum = add != nullptr ? bias[static_cast<size_t>(o)] : 0;
        for (int c = 0; c < in; ++c)
          sum += static_cast<double>(m[static_cast<size_t>(o * ld + c)]) * x.at(c, t);
        want[static_cast<size_t>(o * kLanes + t)] = sum;
      }
      EXPECT_NEAR(product[static_cast<size_t>(o)], want[static_cast<size_t>(o * kLanes + 5)],
                  1e-5 * in);
    }
    ExpectWithinBound(y, want, out);

    const int d = 16 * Int(1, 16), n = codec::HadamardSize(d);
    Planes h(d);
    for (int k = 0; k < d * kLanes; ++k) h.data()[k] = Normal();
    std::vector<double> rotated(static_cast<size_t>(d * kLanes));
    for (int c = 0; c < d; ++c)
      for (int t = 0; t < kLanes; ++t)
        for (int j = 0; j < n; ++j)
          rotated[static_cast<size_t>(c * kLanes + t)] +=
              (std::popcount(static_cast<unsigned>(c % n & j)) % 2 != 0 ? -1 : 1) *
              h.at(c / n * n + j, t) / std::sqrt(static_cast<double>(n));
    ops_->hadamard(h.data(), d);
    ExpectWithinBound(h, rotated, d);
  }
}

TEST_P(IsaDifferential, RopeShiftAndMomentsAreNearScalar) {
  for (int i = 0; i < 40; ++i) {
    const int d = 16 * Int(1, 16);
    RopeBlock rope;
    rope.kind = static_cast<RopeKind>(Int(0, 2));
    rope.pairs = Int(1, d / 2);
    for (int p = 0; p < rope.pairs; ++p)
      for (int t = 0; t < kLanes; ++t) {
        const float angle = Normal();
        rope.cos[p][t] = std::cos(angle);
        rope.sin[p][t] = std::sin(angle);
      }
    Planes a(d);
    for (int k = 0; k < d * kLanes; ++k) a.data()[k] = Normal();
    std::vector<float> by(static_cast<size_t>(d));
    for (auto& v : by) v = Normal();
    Planes b(a);
    const bool undo = Int(0, 1) != 0;
    for (const auto& [ops, p] : {std::pair{ops_, &a}, std::pair{&scalar_, &b}}) {
      ops->rotate(p->data(), rope, undo);
      ops->shift(p->data(), d, by.data(), -1.0f);
    }
    for (int k = 0; k < d * kLanes; ++k) ASSERT_NEAR(a.data()[k], b.data()[k], 1e-5);

    std::vector<float> upper_a(static_cast<size_t>(d * (d + 1) / 2), 1.0f), upper_b(upper_a);
    ops_->rank64(a.data(), d, upper_a.data());
    scalar_.rank64(a.data(), d, upper_b.data());
    for (size_t k = 0; k < upper_a.size(); ++k) ASSERT_NEAR(upper_a[k], upper_b[k], 1e-2);
  }
}

TEST_P(IsaDifferential, SoftmaxIsNearScalar) {
  for (int i = 0; i < 300; ++i) {
    Planes scores(1);
    for (int t = 0; t < kLanes; ++t) scores.at(0, t) = Normal() * 20;
    const int begin = Int(0, 63), end = Int(begin, 64);
    float max_a = i % 2 != 0 ? -INFINITY : 3.0f, sum_a = i % 2 != 0 ? 0.0f : 2.5f;
    float max_b = max_a, sum_b = sum_a;
    ops_->softmax_reduce(scores.data(), begin, end, &max_a, &sum_a);
    scalar_.softmax_reduce(scores.data(), begin, end, &max_b, &sum_b);
    EXPECT_EQ(max_a, max_b);
    EXPECT_NEAR(sum_a, sum_b, 1e-5 * sum_b);
    std::vector<float> a(kLanes, 1e-6f), b(a);
    ops_->softmax_max(scores.data(), begin, end, 30.0f, a.data());
    scalar_.softmax_max(scores.data(), begin, end, 30.0f, b.data());
    for (size_t t = 0; t < kLanes; ++t) EXPECT_NEAR(a[t], b[t], 1e-5 * b[t]);
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, IsaDifferential, ::testing::Values("avx2", "avx512"),
                         [](const auto& i) { return std::string(i.param); });

}  // namespace
}  // namespace dyna
