// Encode and Decode: every kind at every head_dim, measured errors, pins, masks, bad input.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/backend.h"
#include "kernels/test_data.h"
#include "tests/support/seed.h"

namespace dyna {
namespace {

using testing::AlignedBytes;
using testing::KvBuffer;
using testing::MakeId;
using testing::Model;

struct Coded {
  AlignedBytes segment{0};
  EncodeJob job;
  std::vector<TileMeasure> measure;
};

class CodecTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto made = MakeCpuBackend(GetParam());
    if (!made.ok()) GTEST_SKIP() << made.status().ToString();
    backend_ = std::move(*made);
  }

  void MakeModel(int d, int heads, Frame frame, DType dtype = DType::kF16,
                 RopeKind rope_kind = RopeKind::kHalf) {
    model_ = Model{};
    model_.d = d;
    model_.kv_heads = heads;
    model_.frame = frame;
    basis_ = model_.MakeBasis(random_);
    ASSERT_NE(basis_, nullptr);
    rope_ = testing::MakeRope(d, rope_kind);
    table_ = std::make_unique<RopeTable>(rope_);
    kv_ = std::make_unique<KvBuffer>(heads, d, dtype);
    testing::FillKv(model_, frame == Frame::kPre ? rope_ : Rope{}, kIndex, random_, kv_.get());
  }

  Coded Encode(const std::vector<TilePlan>& plan, uint64_t pins = 0) {
    Coded coded;
    EncodeJob& job = coded.job;
    job.id = MakeId(kv_->d, kv_->heads, kv_->dtype, basis_.get(), kIndex);
    coded.segment = AlignedBytes(EncodedBytes(job.id, plan, pins, basis_.get()));
    coded.measure.resize(static_cast<size_t>(kv_->heads));
    job.source = kv_->view();
    job.basis = basis_.get();
    job.rope = table_.get();
    job.pins = pins;
    job.plan = plan;
    job.out = coded.segment.span();
    job.measure = coded.measure;
    backend_->Encode({&job, 1});
    return coded;
  }

  KvBuffer Decode(Coded& coded, DType dtype = DType::kF32) {
    KvBuffer out(kv_->heads, kv_->d, dtype);
    DecodeJob job;
    job.segment = coded.segment.span();
    job.basis = basis_.get();
    job.rope = table_.get();
    job.head_begin = 0;
    job.head_end = static_cast<uint16_t>(kv_->heads);
    job.target = out.target();
    backend_->Decode({&job, 1});
    EXPECT_TRUE(job.status.ok()) << job.status.ToString();
    return out;
  }

  // Squared error over variance within the tile (K) or energy (V), of the tokens in `mask`.
  double Nmse(KvBuffer& out, int head, bool v, uint64_t mask = ~uint64_t{0}) {
    double error = 0, energy = 0;
    for (int c = 0; c < kv_->d; ++c) {
      double mean = 0, n = 0;
      for (int t = 0; t < 64; ++t) {
        if ((mask >> t & 1) == 0) continue;
        mean += kv_->Get(head, v, t, c);
        n += 1;
      }
      mean = v ? 0 : mean / n;
      for (int t = 0; t < 64; ++t) {
        if ((mask >> t & 1) == 0) continue;
        const double x = kv_->Get(head, v, t, c), e = x - out.Get(head, v, t, c);
        error += e * e;
        energy += (x - mean) * (x - mean);
      }
    }
    return error / energy;
  }

  // Adds |A e|^2 of decoded K, and |A (x - mean)|^2, both with RoPE undone in frame `pre`.
  void AddErrorInY(KvBuffer& out, int h, Frame frame, double* error, double* energy) {
    const size_t d = static_cast<size_t>(kv_->d);
    std::vector<std::vector<double>> x(64, std::vector<double>(d)), e = x;
    std::vector<double> mean(d, 0.0);
    for (size_t t = 0; t < 64; ++t) {
      for (size_t c = 0; c < d; ++c) {
        x[t][c] = kv_->Get(h, false, static_cast<int>(t), static_cast<int>(c));
        e[t][c] = x[t][c] - out.Get(h, false, static_cast<int>(t), static_cast<int>(c));
      }
      if (frame == Frame::kPre) {
        testing::TurnRow(rope_, kIndex * 64.0 + static_cast<double>(t), x[t].data(), -1);
        testing::TurnRow(rope_, kIndex * 64.0 + static_cast<double>(t), e[t].data(), -1);
      }
      for (size_t c = 0; c < d; ++c) mean[c] += x[t][c] / 64;
    }
    for (size_t t = 0; t < 64; ++t) {
      for (size_t c = 0; c < d; ++c) {
        double y = 0, ey = 0;
        for (size_t j = 0; j < d; ++j) {
          y += static_cast<double>(basis_->a(h)[c * d + j]) * (x[t][j] - mean[j]);
          ey += static_cast<double>(basis_->a(h)[c * d + j]) * e[t][j];
        }
        *energy += y * y;
        *error += ey * ey;
      }
    }
  }

  static constexpr uint32_t kIndex = 5;
  std::unique_ptr<Backend> backend_;
  std::mt19937 random_{20};
  Model model_;
  std::shared_ptr<const Basis> basis_;
  Rope rope_;
  std::unique_ptr<RopeTable> table_;
  std::unique_ptr<KvBuffer> kv_;
};

TEST_P(CodecTest, EveryKindAtEveryHeadDim) {
  struct Case {
    uint8_t k, v;
    double k_error, v_error;  // at most
  };
  const Case cases[] = {{kind::kRaw, kind::kRaw, 0, 0},
                        {kind::kFp8, kind::kFp8, .004, .002},
                        {kind::kPlain8, kind::VBits(8), 1e-4, 2e-4},
                        {kind::kPlain4, kind::VBits(4), .02, .025},
                        {kind::kPlain4, kind::VBits(2), .02, .16},
                        {kind::kPlain4, kind::VBits(1), .02, .8},
                        {kind::kPlain4, kind::VBits(0), .02, 1}};
  for (const int d : {16, 48, 64, 80, 96, 128, 192, 256}) {
    MakeModel(d, 2, Frame::kPre, d % 32 == 0 ? DType::kF16 : DType::kF32);
    for (const Case& c : cases) {
      SCOPED_TRACE("d " + std::to_string(d) + ", K " + std::to_string(c.k) + ", V " +
                   std::to_string(c.v));
      Coded coded = Encode({{c.k, c.v}, {c.k, c.v}});
      ASSERT_TRUE(coded.job.status.ok()) << coded.job.status.ToString();
      EXPECT_EQ(coded.job.bytes, coded.segment.size);
      KvBuffer out = Decode(coded);
      for (int h = 0; h < 2; ++h) {
        EXPECT_LE(Nmse(out, h, false), c.k_error);
        EXPECT_LE(Nmse(out, h, true), c.v_error);
        if (c.k == kind::kRaw) continue;
        const TileMeasure& m = coded.measure[static_cast<size_t>(h)];
        EXPECT_NEAR(m.k_error / m.k_energy, Nmse(out, h, false), .02 * c.k_error + 1e-6);
        EXPECT_NEAR(m.v_error / m.v_energy, Nmse(out, h, true), .02 * c.v_error + 1e-6);
      }
    }
  }
}

TEST_P(CodecTest, EveryLevelComesNearItsPredictedError) {
  for (const Frame frame : {Frame::kPre, Frame::kPost}) {
    for (const int d : {16, 64, 80, 128, 256}) {
      MakeModel(d, 2, frame);
      double above = 2;
      for (int level = 0; level < basis_->info().levels; ++level) {
        SCOPED_TRACE("d " + std::to_string(d) + ", level " + std::to_string(level));
        const TilePlan tile{kind::Level(level), kind::VBits(4)};
        Coded coded = Encode({tile, tile});
        ASSERT_TRUE(coded.job.status.ok()) << coded.job.status.ToString();
        KvBuffer out = Decode(coded);
        // The error of decoded K in the metric of y, from outside: e_y = A (undo RoPE) e_x.
        double error = 0, energy = 0;
        for (int h = 0; h < 2; ++h) AddErrorInY(out, h, frame, &error, &energy);
        double measured = 0;
        for (const TileMeasure& m : coded.measure) measured += m.k_error / m.k_energy / 2;
        EXPECT_NEAR(error / energy, measured, .12 * measured + 2e-4);
        const double predicted = basis_->relative_error(0, level);
        EXPECT_LT(measured, 1.6 * predicted + 1e-3);
        EXPECT_GT(measured, .4 * predicted - 1e-4);
        EXPECT_LT(measured, above * 1.1);
        above = measured;
      }
    }
  }
}

TEST_P(CodecTest, TransformsKeepTheirBound) {
  // A basis whose every channel has 8 bits would leave only transforms: level of most bits, and
  // compare with what plain8 of the same data does. Here: L0 alone, whose row is B m + mu, turned.
  MakeModel(64, 1, Frame::kPre, DType::kF32);
  Coded coded = Encode({{kind::Level(0), kind::VBits(8)}});
  ASSERT_TRUE(coded.job.status.ok());
  KvBuffer out = Decode(coded);
  std::vector<double> mean(64, 0.0);
  double rms = 0;
  for (int t = 0; t < 64; ++t) {
    std::vector<double> row(64);
    for (int c = 0; c < 64; ++c) row[static_cast<size_t>(c)] = kv_->Get(0, false, t, c);
    testing::TurnRow(rope_, kIndex * 64.0 + t, row.data(), -1);
    for (size_t c = 0; c < 64; ++c) {
      mean[c] += row[c] / 64;
      const double e = row[c] - basis_->mu(0)[c];
      rms += e * e / (64 * 64);
    }
  }
  for (int t = 0; t < 64; ++t) {
    std::vector<double> row = mean;
    testing::TurnRow(rope_, kIndex * 64.0 + t, row.data());
    for (int c = 0; c < 64; ++c)
      EXPECT_NEAR(out.Get(0, false, t, c), row[static_cast<size_t>(c)], 3 * std::sqrt(rms) / 1024);
  }
}

TEST_P(CodecTest, PinsComeBackBitForBit) {
  for (const DType dtype : {DType::kF16, DType::kBf16, DType::kF32}) {
    MakeModel(64, 2, Frame::kPre, dtype);
    const uint64_t pins = 0x800000000000000f;
    // An outlier that would ruin every range: only because it is pinned it does no harm.
    for (int c = 0; c < 64; ++c) kv_->Set(0, false, 2, c, 5000);
    Coded coded = Encode({{kind::Level(2), kind::VBits(2)}, {kind::kPlain8, kind::VBits(8)}}, pins);
    ASSERT_TRUE(coded.job.status.ok());
    KvBuffer out = Decode(coded, dtype);
    for (int h = 0; h < 2; ++h) {
      for (const int t : {0, 1, 2, 3, 63})
        for (const bool v : {false, true})
          EXPECT_EQ(std::memcmp(out.at(h, v, t, 0), kv_->at(h, v, t, 0),
                                static_cast<size_t>(64 * DTypeBytes(dtype))),
                    0);
    }
    EXPECT_LT(Nmse(out, 1, false, ~pins), 1e-3);
    EXPECT_LT(Nmse(out, 0, false, ~pins), 1.0);
  }
}

TEST_P(CodecTest, DroppedTokensBecomeTheMeanOfLiveOnes) {
  MakeModel(64, 1, Frame::kPost, DType::kF32);
  const uint64_t live = 0x00ff00ff00ff10f3, pins = 0x1;
  for (const TilePlan tile :
       {TilePlan{kind::kPlain8, kind::VBits(8), live},
        TilePlan{kind::Level(11), kind::VBits(8), live}, TilePlan{kind::kRaw, kind::kRaw, live},
        TilePlan{kind::kFp8, kind::kFp8, live}, TilePlan{kind::kPlain8, kind::VBits(0), live}}) {
    Coded coded = Encode({tile}, pins);
    ASSERT_TRUE(coded.job.status.ok()) << coded.job.status.ToString();
    KvBuffer out = Decode(coded);
    if (tile.v_kind != kind::VBits(0)) {
      EXPECT_LT(Nmse(out, 0, true, live), 2e-3);
    }
    EXPECT_LT(Nmse(out, 0, false, live), tile.k_kind == kind::Level(11) ? .01 : 4e-3);
    for (const bool v : {false, true}) {
      for (int c = 0; c < 64; ++c) {
        double mean = 0, n = 0;
        for (int t = 0; t < 64; ++t) {
          if (((live & ~pins) >> t & 1) == 0) continue;
          mean += out.Get(0, v, t, c);
          n += 1;
        }
        for (int t = 0; t < 64; ++t)
          if ((live >> t & 1) == 0) {
            EXPECT_NEAR(out.Get(0, v, t, c), mean / n, 2e-3);
          }
      }
    }
  }
}

TEST_P(CodecTest, NoneIsZerosAndNoBytes) {
  MakeModel(64, 2, Frame::kPre);
  Coded coded = Encode({{kind::kNone, kind::kNone}, {kind::kPlain8, kind::VBits(8)}}, 1);
  ASSERT_TRUE(coded.job.status.ok());
  KvBuffer out = Decode(coded, DType::kF16);
  for (int c = 0; c < 64; ++c) {
    EXPECT_EQ(out.Get(0, false, 5, c), 0);
    EXPECT_EQ(out.Get(0, true, 0, c), kv_->Get(0, true, 0, c));
  }
  EXPECT_NEAR(coded.job.nmse, .5, 1e-3);
}

TEST_P(CodecTest, ConstantAndZeroChannelsAreExact) {
  MakeModel(64, 1, Frame::kPost);
  for (int t = 0; t < 64; ++t) {
    for (int c = 0; c < 64; ++c) {
      kv_->Set(0, false, t, c, c % 2 == 0 ? 0 : 1.5);
      kv_->Set(0, true, t, c, 0);
    }
  }
  for (const TilePlan tile :
       {TilePlan{kind::kPlain8, kind::VBits(8)}, TilePlan{kind::kPlain4, kind::VBits(1)},
        TilePlan{kind::kPlain4, kind::VBits(2)}}) {
    Coded coded = Encode({tile});
    ASSERT_TRUE(coded.job.status.ok());
    EXPECT_EQ(coded.job.nmse, 0);
    KvBuffer out = Decode(coded);
    for (int t = 0; t < 64; ++t) {
      for (int c = 0; c < 64; ++c) {
        EXPECT_EQ(out.Get(0, false, t, c), c % 2 == 0 ? 0 : 1.5);
        EXPECT_EQ(out.Get(0, true, t, c), 0);
      }
    }
  }
}

TEST_P(CodecTest, NamesTheTokenThatIsNotFinite) {
  const float bad_values[] = {std::numeric_limits<float>::quiet_NaN(),
                              std::numeric_limits<float>::infinity(), 1e9f};
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    for (const float value : bad_values) {
      for (const bool v : {false, true}) {
        MakeModel(64, 3, Frame::kPre, dtype);
        kv_->Set(2, v, 37, 11, value);
        const TilePlan tile{kind::Level(3), kind::VBits(2)};
        Coded coded = Encode({tile, tile, tile});
        EXPECT_EQ(coded.job.status.code(), StatusCode::kInvalid);
        const std::string text = coded.job.status.ToString();
        EXPECT_NE(text.find("layer 0, head 2"), std::string::npos) << text;
        if (value != 1e9f || !v) {
          EXPECT_NE(text.find("token 37"), std::string::npos) << text;
        }
        const TilePlan raw{kind::kRaw, kind::kRaw};
        EXPECT_TRUE(Encode({raw, raw, raw}).job.status.ok());
      }
    }
  }
}

TEST_P(CodecTest, ASubrangeOfHeadsOfAnotherLayoutAndDtype) {
  MakeModel(64, 3, Frame::kPre, DType::kBf16);
  const TilePlan tile{kind::Level(4), kind::VBits(4)};
  Coded coded = Encode({tile, tile, tile});
  ASSERT_TRUE(coded.job.status.ok());
  KvBuffer all = Decode(coded, DType::kF16);
  // Head-minor: [token][head][d], heads 1 and 2 only, K and V in one array.
  std::vector<uint16_t> out(64 * 2 * 2 * 64);
  DecodeJob job;
  job.segment = coded.segment.span();
  job.basis = basis_.get();
  job.rope = table_.get();
  job.head_begin = 1;
  job.head_end = 3;
  auto* base = reinterpret_cast<std::byte*>(out.data());
  job.target = {base, base + 128, 512, 256, 512, 256, DType::kF16};
  uint64_t live[2] = {};
  job.live = live;
  backend_->Decode({&job, 1});
  ASSERT_TRUE(job.status.ok()) << job.status.ToString();
  EXPECT_EQ(live[1], ~uint64_t{0});
  for (int t = 0; t < 64; ++t)
    for (int h = 0; h < 2; ++h)
      for (int v = 0; v < 2; ++v)
        EXPECT_EQ(std::memcmp(&out[static_cast<size_t>(((t * 2 + h) * 2 + v) * 64)],
                              all.at(h + 1, v != 0, t, 0), 128),
                  0);
  job.head_end = 4;
  backend_->Decode({&job, 1});
  EXPECT_EQ(job.status.code(), StatusCode::kInvalid);
}

TEST_P(CodecTest, AScaleAboveLog8FallsBackToPlain8) {
  MakeModel(64, 1, Frame::kPost, DType::kF32);
  for (int t = 0; t < 64; ++t)
    for (int c = 0; c < 64; ++c) kv_->Set(0, false, t, c, (t % 2 == 0 ? 900.0 : -900.0) + c);
  const std::vector<TilePlan> plan = {{kind::Level(2), kind::VBits(2)}};
  Coded coded = Encode(plan);
  EXPECT_EQ(coded.job.status.code(), StatusCode::kTooLarge) << coded.job.status.ToString();
  const size_t needs = coded.job.bytes;
  EXPECT_GT(needs, coded.segment.size);
  AlignedBytes more(needs);
  coded.job.out = more.span();
  backend_->Encode({&coded.job, 1});
  ASSERT_TRUE(coded.job.status.ok()) << coded.job.status.ToString();
  const auto view = ParseSegment(more.span(), nullptr);  // no level left: no basis named
  ASSERT_TRUE(view.ok()) << view.status().ToString();
  EXPECT_EQ(view->tile(0).k_kind, kind::kPlain8);
}

TEST_P(CodecTest, OneBadJobFailsAlone) {
  MakeModel(64, 1, Frame::kPre);
  const std::vector<TilePlan> plain = {{kind::kPlain8, kind::VBits(8)}};  // jobs keep a view of it
  Coded a = Encode(plain), b = Encode(plain);
  std::vector<EncodeJob> jobs = {a.job, b.job};
  jobs[0].basis = nullptr;
  const std::vector<TilePlan> level = {{kind::Level(1), kind::VBits(2)}};
  jobs[0].plan = level;
  backend_->Encode(jobs);
  EXPECT_EQ(jobs[0].status.code(), StatusCode::kInvalid);
  EXPECT_TRUE(jobs[1].status.ok());
}

TEST_P(CodecTest, HostileTileBytesDecodeInsideTheirTarget) {
  std::mt19937 random(testing::TestSeed());
  MakeModel(80, 1, Frame::kPre);
  for (const TilePlan tile :
       {TilePlan{kind::kPlain8, kind::VBits(8)}, TilePlan{kind::kPlain4, kind::VBits(1), 0xff00ff},
        TilePlan{kind::Level(5), kind::VBits(2)}, TilePlan{kind::kFp8, kind::VBits(4)}}) {
    Coded coded = Encode({tile}, 1);
    ASSERT_TRUE(coded.job.status.ok());
    const SegmentView view = *ParseSegment(coded.segment.span(), basis_.get());
    const size_t begin = static_cast<size_t>(view.tile(0).k.data() - view.bytes().data());
    const size_t end = begin + view.tile(0).k.size() + view.tile(0).v.size();
    for (int round = 0; round < 20; ++round) {
      for (size_t i = begin; i < end; ++i)
        coded.segment.span()[i] = static_cast<std::byte>(random());
      KvBuffer out = Decode(coded, DType::kBf16);
      const auto guard = std::span(out.bytes).last(64);
      for (const std::byte b : guard) ASSERT_EQ(b, std::byte{0});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, CodecTest, ::testing::Values("scalar", "avx2", "avx512"));

}  // namespace
}  // namespace dyna
