// Demotion: never up, copies what stays, the coded domain against direct coding.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/backend.h"
#include "kernels/test_data.h"

namespace dyna {
namespace {

using testing::AlignedBytes;
using testing::KvBuffer;
using testing::MakeId;
using testing::Model;

class TranscodeTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto made = MakeCpuBackend(GetParam());
    if (!made.ok()) GTEST_SKIP() << made.status().ToString();
    backend_ = std::move(*made);
    model_.kv_heads = 2;
    basis_ = model_.MakeBasis(random_);
    rope_ = testing::MakeRope(64);
    table_ = std::make_unique<RopeTable>(rope_);
    kv_ = std::make_unique<KvBuffer>(2, 64, DType::kF16);
    testing::FillKv(model_, rope_, 3, random_, kv_.get());
  }

  AlignedBytes Encode(const std::vector<TilePlan>& plan, uint64_t pins = 0, float* nmse = nullptr) {
    EncodeJob job;
    job.id = MakeId(64, 2, DType::kF16, basis_.get(), 3);
    AlignedBytes out(EncodedBytes(job.id, plan, pins, basis_.get()));
    job.source = kv_->view();
    job.basis = basis_.get();
    job.rope = table_.get();
    job.pins = pins;
    job.plan = plan;
    job.out = out.span();
    backend_->Encode({&job, 1});
    EXPECT_TRUE(job.status.ok()) << job.status.ToString();
    if (nmse != nullptr) *nmse = job.nmse;
    return out;
  }

  Status Transcode(AlignedBytes& from, const std::vector<TilePlan>& plan, AlignedBytes* to,
                   float* nmse = nullptr) {
    TranscodeJob job;
    job.segment = from.span();
    job.basis = basis_.get();
    job.rope = table_.get();
    job.plan = plan;
    const SegmentHeader header = *ParseSegmentHeader(from.span());
    SegmentId id = header.id;
    id.basis = basis_->name();
    *to = AlignedBytes(EncodedBytes(id, plan, header.pins, basis_.get()));
    job.out = to->span();
    backend_->Transcode({&job, 1});
    if (nmse != nullptr) *nmse = job.nmse;
    if (job.status.ok()) {
      EXPECT_TRUE(ParseSegment(to->span(), basis_.get()).ok());
    }
    return job.status;
  }

  KvBuffer Decode(AlignedBytes& segment) {
    KvBuffer out(2, 64, DType::kF32);
    DecodeJob job;
    job.segment = segment.span();
    job.basis = basis_.get();
    job.rope = table_.get();
    job.head_end = 2;
    job.target = out.target();
    backend_->Decode({&job, 1});
    EXPECT_TRUE(job.status.ok()) << job.status.ToString();
    return out;
  }

  double Error(KvBuffer& out, bool v) {
    double error = 0, energy = 0;
    for (int h = 0; h < 2; ++h)
      for (int t = 4; t < 64; ++t)
        for (int c = 0; c < 64; ++c) {
          const double x = kv_->Get(h, v, t, c), e = x - out.Get(h, v, t, c);
          error += e * e;
          energy += x * x;
        }
    return error / energy;
  }

  std::vector<TilePlan> Both(uint8_t k, uint8_t v, uint64_t live = ~uint64_t{0}) const {
    return {{k, v, live}, {k, v, live}};
  }

  std::unique_ptr<Backend> backend_;
  std::mt19937 random_{21};
  Model model_;
  std::shared_ptr<const Basis> basis_;
  Rope rope_;
  std::unique_ptr<RopeTable> table_;
  std::unique_ptr<KvBuffer> kv_;
};

TEST_P(TranscodeTest, EqualKindsCopyTheirBytes) {
  AlignedBytes a = Encode(Both(kind::Level(5), kind::VBits(4)), 0xf), b(0);
  const auto plan =
      std::vector<TilePlan>{{kind::Level(5), kind::VBits(4)}, {kind::Level(2), kind::VBits(4)}};
  ASSERT_TRUE(Transcode(a, plan, &b).ok());
  const SegmentView from = *ParseSegment(a.span(), basis_.get());
  const SegmentView to = *ParseSegment(b.span(), basis_.get());
  EXPECT_EQ(0, std::memcmp(from.tile(0).k.data(), to.tile(0).k.data(), from.tile(0).k.size()));
  EXPECT_EQ(0, std::memcmp(from.tile(1).v.data(), to.tile(1).v.data(), from.tile(1).v.size()));
  EXPECT_EQ(from.tile(1).v_exp, to.tile(1).v_exp);
  EXPECT_EQ(from.pins(), to.pins());
  EXPECT_EQ(0, std::memcmp(from.pin_row(3, 1, true), to.pin_row(3, 1, true), 128));
  EXPECT_EQ(to.tile(1).k_kind, kind::Level(2));
  EXPECT_TRUE(to.error_is_estimate());
  EXPECT_FALSE(from.error_is_estimate());
}

TEST_P(TranscodeTest, DownTheLadderIsNearlyAsGoodAsDirect) {
  const uint64_t pins = 0xf;
  const int top = basis_->LevelOf(5);
  float nmse = 0;
  AlignedBytes chain = Encode(Both(kind::kPlain8, kind::VBits(8)), pins, &nmse);
  const struct {
    uint8_t k;
    int v;
  } steps[] = {{kind::Level(top), 8},
               {kind::Level(basis_->LevelOf(3)), 4},
               {kind::Level(basis_->LevelOf(2)), 2},
               {kind::Level(0), 0}};
  for (const auto& step : steps) {
    const auto plan = Both(step.k, kind::VBits(step.v));
    AlignedBytes next(0);
    const float before = nmse;
    ASSERT_TRUE(Transcode(chain, plan, &next, &nmse).ok());
    EXPECT_GT(nmse, before);
    chain = std::move(next);
    AlignedBytes direct = Encode(plan, pins);
    ASSERT_EQ(chain.size, direct.size);
    KvBuffer a = Decode(chain), b = Decode(direct);
    EXPECT_LT(Error(a, false), 1.35 * Error(b, false) + 1e-4) << "K kind " << int{step.k};
    EXPECT_LT(Error(a, true), 1.15 * Error(b, true) + 1e-4) << "V bits " << step.v;
    EXPECT_EQ(a.Get(1, true, 2, 9), kv_->Get(1, true, 2, 9));  // pinned
  }
}

// What attention averages must not shrink: <v, v'> = <v, v> however V came to its bits.
TEST_P(TranscodeTest, GainOfVStaysOneOverTheLadder) {
  for (const std::vector<int>& chain :
       {std::vector{2, 1}, {4, 1}, {4, 2}, {8, 4, 2, 1}, {8, 1}, {1}}) {
    AlignedBytes segment = Encode(Both(kind::kPlain8, kind::VBits(chain[0])));
    for (size_t i = 1; i < chain.size(); ++i) {
      AlignedBytes next(0);
      ASSERT_TRUE(Transcode(segment, Both(kind::kPlain8, kind::VBits(chain[i])), &next).ok());
      segment = std::move(next);
    }
    KvBuffer served = Decode(segment);
    double own = 0, both = 0;
    for (int head = 0; head < kv_->heads; ++head)
      for (int t = 0; t < kBlockTokens; ++t)
        for (int c = 0; c < kv_->d; ++c) {
          const double v = kv_->Get(head, true, t, c);
          own += v * v;
          both += v * served.Get(head, true, t, c);
        }
    EXPECT_NEAR(both / own, 1, .01) << chain.size() << " steps to " << chain.back();
  }
}

// Plain kinds hold K as the engine has it: RoPE is redone on the way out of a `pre` basis.
TEST_P(TranscodeTest, FromALevelToPlain4) {
  AlignedBytes segment = Encode(Both(kind::Level(basis_->LevelOf(5)), kind::VBits(8)));
  AlignedBytes plain(0);
  ASSERT_TRUE(Transcode(segment, Both(kind::kPlain4, kind::VBits(8)), &plain).ok());
  KvBuffer served = Decode(plain);
  AlignedBytes direct = Encode(Both(kind::kPlain4, kind::VBits(8)));
  KvBuffer once = Decode(direct);
  EXPECT_LT(Error(served, false), 2 * Error(once, false) + .01);
}

TEST_P(TranscodeTest, NeverUp) {
  AlignedBytes out(0);
  const auto refused = [&](const std::vector<TilePlan>& from, const std::vector<TilePlan>& to,
                           std::string_view why) {
    AlignedBytes segment = Encode(from);
    const Status status = Transcode(segment, to, &out);
    ASSERT_EQ(status.code(), StatusCode::kInvalid) << why;
    EXPECT_NE(status.message().find(why), std::string_view::npos) << status.ToString();
  };
  const uint8_t v4 = kind::VBits(4), v8 = kind::VBits(8);
  refused(Both(kind::kPlain4, v4), Both(kind::kPlain8, v4), "K would not");
  refused(Both(kind::Level(2), v4), Both(kind::Level(3), v4), "K would not");
  refused(Both(kind::Level(2), v4), Both(kind::kPlain4, v4), "K would not");
  refused(Both(kind::kPlain8, v8), Both(kind::kRaw, v8), "K would not");
  refused(Both(kind::kPlain8, v4), Both(kind::kPlain8, v8), "V would not");
  refused(Both(kind::kPlain8, kind::VBits(0)), Both(kind::kPlain8, kind::VBits(1)), "V would not");
  refused(Both(kind::kNone, v4), Both(kind::Level(0), v4), "K would not");
  refused(Both(kind::kPlain8, v4, 0xff), Both(kind::kPlain8, v4, 0x1ff), "dropped token");
}

TEST_P(TranscodeTest, FromRawItIsEncode) {
  const auto plan = Both(kind::Level(6), kind::VBits(2));
  AlignedBytes raw = Encode(Both(kind::kRaw, kind::kRaw), 0xf), coded(0);
  AlignedBytes direct = Encode(plan, 0xf);
  ASSERT_TRUE(Transcode(raw, plan, &coded).ok());
  const SegmentView a = *ParseSegment(coded.span(), basis_.get());
  const SegmentView b = *ParseSegment(direct.span(), basis_.get());
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(0, std::memcmp(a.tile(i).k.data(), b.tile(i).k.data(), a.tile(i).k.size()));
    EXPECT_EQ(0, std::memcmp(a.tile(i).v.data(), b.tile(i).v.data(), a.tile(i).v.size()));
  }
}

TEST_P(TranscodeTest, DroppingTokensKeepsTheOthers) {
  const uint64_t live = 0xf0f0ffff0000ffff, fewer = live & 0xf0f0ff000000f0ff;
  for (const uint8_t k : {kind::kRaw, kind::kPlain8, kind::Level(7)}) {
    const uint8_t v = k == kind::kRaw ? kind::kRaw : kind::VBits(8);
    AlignedBytes a = Encode(Both(k, v, live)), b(0);
    ASSERT_TRUE(Transcode(a, Both(k, v, fewer), &b).ok());
    KvBuffer x = Decode(a), y = Decode(b);
    double error = 0, energy = 0;
    for (int t = 0; t < 64; ++t) {
      if ((fewer >> t & 1) == 0) continue;
      for (int c = 0; c < 64; ++c) {
        const double e = x.Get(0, false, t, c) - y.Get(0, false, t, c);
        const double f = x.Get(0, true, t, c) - y.Get(0, true, t, c);
        error += e * e + f * f;
        energy += std::pow(x.Get(0, false, t, c), 2) + std::pow(x.Get(0, true, t, c), 2);
      }
    }
    EXPECT_LT(error / energy, .02) << int{k};
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, TranscodeTest, ::testing::Values("scalar", "avx2", "avx512"));

}  // namespace
}  // namespace dyna
