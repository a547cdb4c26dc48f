// Score against a plain double softmax, moments against double.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
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

class StatisticsTest : public ::testing::TestWithParam<const char*> {
 protected:
  static constexpr int kD = 32, kKv = 2, kGroup = 3, kBlocks = 3, kW = 10;
  static constexpr int kQ = kKv * kGroup;

  void SetUp() override {
    auto made = MakeCpuBackend(GetParam());
    if (!made.ok()) GTEST_SKIP() << made.status().ToString();
    backend_ = std::move(*made);
    model_.d = kD;
    model_.kv_heads = kKv;
    basis_ = model_.MakeBasis(random_);
    rope_ = testing::MakeRope(kD);
    table_ = std::make_unique<RopeTable>(rope_);
    std::normal_distribution<float> normal;
    queries_.resize(kW * kQ * kD);
    for (float& q : queries_) q = normal(random_);
    for (uint32_t i = 0; i < kBlocks; ++i) {
      KvBuffer kv(kKv, kD, DType::kF16);
      testing::FillKv(model_, rope_, i, random_, &kv);
      segments_.push_back(Encode(&kv, i));
      decoded_.push_back(Decode(segments_.back()));
    }
  }

  AlignedBytes Encode(KvBuffer* kv, uint32_t index) {
    EncodeJob job;
    job.id = MakeId(kD, kKv, DType::kF16, basis_.get(), index);
    const std::vector<TilePlan> plan(kKv, {kind::Level(basis_->LevelOf(4)), kind::VBits(4)});
    const uint64_t pins = index == 0 ? 0xf : 0;
    AlignedBytes out(EncodedBytes(job.id, plan, pins, basis_.get()));
    job.source = kv->view();
    job.basis = basis_.get();
    job.rope = table_.get();
    job.pins = pins;
    job.plan = plan;
    job.out = out.span();
    backend_->Encode({&job, 1});
    EXPECT_TRUE(job.status.ok()) << job.status.ToString();
    return out;
  }

  KvBuffer Decode(AlignedBytes& segment) {
    KvBuffer out(kKv, kD, DType::kF32);
    DecodeJob job;
    job.segment = segment.span();
    job.basis = basis_.get();
    job.rope = table_.get();
    job.head_end = kKv;
    job.target = out.target();
    backend_->Decode({&job, 1});
    EXPECT_TRUE(job.status.ok()) << job.status.ToString();
    return out;
  }

  // Tokens of a block that are not in `live` are dropped.
  void Drop(size_t block, uint64_t live, uint8_t k_kind) {
    const std::vector<TilePlan> plan(kKv, {k_kind, kind::VBits(2), live});
    AlignedBytes out(segments_[block].size);
    TranscodeJob job;
    job.segment = segments_[block].span();
    job.basis = basis_.get();
    job.rope = table_.get();
    job.plan = plan;
    job.out = out.span();
    backend_->Transcode({&job, 1});
    ASSERT_TRUE(job.status.ok()) << job.status.ToString();
    decoded_[block] = Decode(out);
    segments_[block] = std::move(out);
    live_[block] = live;
  }
  bool Alive(int t) const { return (live_[static_cast<size_t>(t / 64)] >> (t % 64) & 1) != 0; }

  // Logits of every query head and held token, in double.
  double Logit(int w, int q, int t) {
    double sum = 0;
    for (int c = 0; c < kD; ++c)
      sum += static_cast<double>(queries_[static_cast<size_t>((w * kQ + q) * kD + c)]) *
             decoded_[static_cast<size_t>(t / 64)].Get(q / kGroup, false, t % 64, c);
    return sum * kScale;
  }

  // Policy 1, word by word. `extra`: mass of exp beyond what is held (with a given lse).
  std::vector<double> Reference(uint32_t first, uint32_t window, double extra,
                                std::vector<float>* lse) {
    const int tokens = kBlocks * 64;
    std::vector<double> x(static_cast<size_t>(kKv * tokens), 0.0), seen(x.size(), 0.0);
    for (int w = 0; w < kW; ++w) {
      const int64_t position = int64_t{first} + w;
      std::vector<double> best(x.size(), 0.0);
      for (int q = 0; q < kQ; ++q) {
        const auto visible = [&](int t) {
          return Alive(t) && t <= position &&
                 (window == 0 || t > position - static_cast<int64_t>(window));
        };
        double total = extra, sinks = 0;
        for (int t = 0; t < tokens; ++t)
          if (visible(t)) total += std::exp(Logit(w, q, t));
        for (int t = 0; t < 4; ++t)
          if (visible(t)) sinks += std::exp(Logit(w, q, t)) / total;
        lse->push_back(static_cast<float>(std::log(total)));
        for (int t = 4; t < tokens; ++t) {
          if (!visible(t)) continue;
          double& b = best[static_cast<size_t>(q / kGroup * tokens + t)];
          b = std::max(b, std::exp(Logit(w, q, t)) / total / (1 - sinks));
        }
      }
      int64_t end = position + 1, begin = 4;
      if (extra == 0) end = std::min<int64_t>(end, tokens);
      if (window != 0) begin = std::max<int64_t>(begin, position + 1 - window);
      for (int t = 4; t < tokens; ++t) {
        if (t > position || (window != 0 && t <= position - static_cast<int64_t>(window))) continue;
        for (int h = 0; h < kKv; ++h) {
          const size_t i = static_cast<size_t>(h * tokens + t);
          x[i] += best[i] * static_cast<double>(end - begin);
          seen[i] += 1;
        }
      }
    }
    for (size_t i = 0; i < x.size(); ++i) x[i] = seen[i] > 0 ? x[i] / seen[i] : 0;
    return x;
  }

  void Check(uint32_t first, uint32_t window, double extra) {
    SCOPED_TRACE("first " + std::to_string(first) + ", window " + std::to_string(window));
    std::vector<float> lse;
    const std::vector<double> expected = Reference(first, window, extra, &lse);
    std::vector<float> relative(expected.size(), -1);
    std::vector<ScoreJob::Block> chain;
    for (AlignedBytes& s : segments_) chain.push_back({s.span(), basis_.get(), table_.get()});
    ScoreJob job;
    job.chain = chain;
    job.queries = queries_;
    if (extra > 0) job.lse = lse;
    job.first_query_position = first;
    job.q_heads = kQ;
    job.window = window;
    job.scale = static_cast<float>(kScale);
    job.relative = relative;
    backend_->Score({&job, 1});
    ASSERT_TRUE(job.status.ok()) << job.status.ToString();
    for (size_t i = 0; i < expected.size(); ++i)
      EXPECT_NEAR(relative[i], expected[i], 2e-3 * expected[i] + 1e-6) << i;
  }

  const double kScale = 1 / std::sqrt(double{kD});
  std::unique_ptr<Backend> backend_;
  std::mt19937 random_{22};
  Model model_;
  std::shared_ptr<const Basis> basis_;
  Rope rope_;
  std::unique_ptr<RopeTable> table_;
  std::vector<float> queries_;
  std::vector<AlignedBytes> segments_;
  std::vector<KvBuffer> decoded_;
  std::array<uint64_t, kBlocks> live_ = [] {
    std::array<uint64_t, kBlocks> all;
    all.fill(~uint64_t{0});
    return all;
  }();
};

TEST_P(StatisticsTest, ScoreIsTheSoftmaxOfHeldBlocks) { Check(182, 0, 0); }
TEST_P(StatisticsTest, ScoreOfQueriesBeyondTheChain) { Check(300, 0, 0); }
TEST_P(StatisticsTest, ScoreInTheMiddleOfTheChain) { Check(60, 0, 0); }
TEST_P(StatisticsTest, ScoreWithAGivenDenominator) { Check(250, 0, 500); }
TEST_P(StatisticsTest, ScoreOfASlidingWindow) {
  Check(182, 70, 0);
  Check(62, 40, 0);
  Check(182, 16, 0);
}
TEST_P(StatisticsTest, ScoreOfASlidingWindowWithAGivenDenominator) { Check(200, 100, 50); }

TEST_P(StatisticsTest, ScoreGivesDroppedTokensNothing) {
  Drop(0, 0xffff00000000000f, kind::Level(basis_->LevelOf(4)));
  Drop(1, 0, kind::kNone);
  Check(182, 0, 0);
  Check(182, 0, 500);
  Check(100, 20, 0);  // queries that see nothing else
}

TEST_P(StatisticsTest, ScoreRefusesABrokenChain) {
  std::vector<float> relative(kKv * 64);
  std::vector<ScoreJob::Block> chain = {{segments_[1].span(), basis_.get(), table_.get()}};
  ScoreJob job;
  job.chain = chain;
  job.queries = queries_;
  job.q_heads = kQ;
  job.relative = relative;
  backend_->Score({&job, 1});
  EXPECT_EQ(job.status.code(), StatusCode::kInvalid);
  chain[0].segment = segments_[0].span();
  queries_[5] = NAN;
  backend_->Score({&job, 1});
  EXPECT_EQ(job.status.code(), StatusCode::kInvalid);
}

TEST_P(StatisticsTest, MomentsAreThoseOfDouble) {
  KvBuffer kv(kKv, kD, DType::kF16);
  testing::FillKv(model_, rope_, 7, random_, &kv);
  const size_t triangle = kD * (kD + 1) / 2;
  std::vector<uint32_t> count(kKv, 1);  // results are added
  std::vector<float> sum(kKv * kD), scatter(kKv * triangle);
  const uint64_t pins = 0x8000000000000003;
  MomentsJob job;
  job.source = kv.view();
  job.rope = table_.get();
  job.block_index = 7;
  job.pins = pins;
  job.kv_heads = kKv;
  job.head_dim = kD;
  job.count = count;
  job.sum = sum;
  job.scatter = scatter;
  backend_->Moments({&job, 1});
  ASSERT_TRUE(job.status.ok()) << job.status.ToString();
  for (int h = 0; h < kKv; ++h) {
    std::vector<std::vector<double>> rows;
    std::vector<double> mean(kD, 0.0);
    for (int t = 0; t < 64; ++t) {
      if ((pins >> t & 1) != 0) continue;
      std::vector<double> row;
      for (int c = 0; c < kD; ++c) row.push_back(kv.Get(h, false, t, c));
      testing::TurnRow(rope_, 7 * 64 + t, row.data(), -1);
      for (size_t c = 0; c < kD; ++c) mean[c] += row[c] / 61;
      rows.push_back(row);
    }
    EXPECT_EQ(count[static_cast<size_t>(h)], 62u);
    size_t at = static_cast<size_t>(h) * triangle;
    for (size_t i = 0; i < kD; ++i) {
      EXPECT_NEAR(sum[static_cast<size_t>(h) * kD + i], 61 * mean[i], 1e-3);
      for (size_t j = i; j < kD; ++j) {
        double expected = 0;
        for (const auto& row : rows) expected += (row[i] - mean[i]) * (row[j] - mean[j]);
        EXPECT_NEAR(scatter[at++], expected, 1e-3);
      }
    }
  }
}

TEST_P(StatisticsTest, QueryMomentsAreThoseOfDouble) {
  const size_t triangle = kD * (kD + 1) / 2;
  std::vector<uint32_t> count(kKv);
  std::vector<float> second(kKv * triangle);
  QueryMomentsJob job;
  job.queries = queries_;
  job.rope = table_.get();
  job.first_query_position = 1234;
  job.q_heads = kQ;
  job.kv_heads = kKv;
  job.head_dim = kD;
  job.count = count;
  job.second = second;
  backend_->QueryMoments({&job, 1});
  ASSERT_TRUE(job.status.ok()) << job.status.ToString();
  std::vector<double> expected(second.size(), 0.0);
  for (int w = 0; w < kW; ++w) {
    for (int q = 0; q < kQ; ++q) {
      const float* from = &queries_[static_cast<size_t>((w * kQ + q) * kD)];
      std::vector<double> row(from, from + kD);
      testing::TurnRow(rope_, 1234 + w, row.data(), -1);
      size_t at = static_cast<size_t>(q / kGroup) * triangle;
      for (size_t i = 0; i < kD; ++i)
        for (size_t j = i; j < kD; ++j) expected[at++] += row[i] * row[j];
    }
  }
  EXPECT_EQ(count[0], uint32_t{kW * kGroup});
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(second[i], expected[i], 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Isa, StatisticsTest, ::testing::Values("scalar", "avx2", "avx512"));

}  // namespace
}  // namespace dyna
