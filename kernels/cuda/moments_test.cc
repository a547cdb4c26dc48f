// Second moments on the device against the CPU's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_test.h"
#include "kernels/moments_plan.h"
#include "kernels/test_data.h"

namespace dyna {
namespace {

// What some jobs are added to, once for each backend. Not empty before: results are added.
struct Sums {
  Sums(int heads, int d_)
      : d(d_),
        count(static_cast<size_t>(heads), 5),
        sum(static_cast<size_t>(heads * d), .5f),
        triangle(static_cast<size_t>(heads) * UpperTriangle(d), .25f) {}
  int d;
  std::vector<uint32_t> count;
  std::vector<float> sum, triangle;
};

class CudaMoments : public testing::CudaTest {
 protected:
  std::unique_ptr<RopeTable> RandomRope(int d) {
    if (Int(0, 3) == 0) return nullptr;
    // None, whole, or of the first channels only.
    const int dim = Int(0, 2) == 0 ? 2 * Int(1, d / 2) : d;
    return std::make_unique<RopeTable>(
        testing::MakeRope(dim, static_cast<RopeKind>(Int(0, 2)), Int(0, 1) != 0 ? 1e4 : 5e5));
  }
  uint64_t RandomMask() {
    const uint64_t bits = uint64_t{random_()} << 32 | random_();
    constexpr int kKinds = 5;
    const int mask_kind = Int(0, kKinds);
    return mask_kind == 0 ? bits : mask_kind == 1 ? ~uint64_t{0} : mask_kind == 2 ? 0xf : 0;
  }
  // About normal around a mean of each channel, times `scale`; here and there special ones.
  void Fill(std::span<float> rows, int d, float scale, bool special) {
    std::normal_distribution<float> normal;
    std::vector<float> mean(static_cast<size_t>(d));
    for (float& m : mean) m = 2 * normal(random_);
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto c = i % static_cast<size_t>(d);
      rows[i] = scale * (c % 7 == 3 ? mean[c] : mean[c] + normal(random_));  // some do not vary
      if (special && Int(0, 40) == 0) rows[i] = Int(0, 1) != 0 ? -0.0f : scale * 1e-6f;
      if (special && Int(0, 200) == 0) rows[i] = 50 * scale * normal(random_);
    }
  }
  // |got - want| by what three products of bf16 and f32 sums leave. `top`: the largest value.
  void Compare(const Sums& got, const Sums& want, double top, bool centred) {
    ASSERT_EQ(got.count, want.count);
    const auto d = static_cast<size_t>(want.d);
    for (size_t i = 0; i < want.sum.size() && centred; ++i) {
      const double n = want.count[i / d];
      ASSERT_NEAR(got.sum[i], want.sum[i], 2e-6 * n * top + 1e-6) << "sum " << i;
    }
    for (size_t h = 0; h < want.count.size(); ++h) {
      const float* of = &want.triangle[h * UpperTriangle(want.d)];
      const float* mine = &got.triangle[h * UpperTriangle(want.d)];
      std::vector<double> root(d);
      for (size_t i = 0, at = 0; i < d; at += d - i++)
        root[i] = std::sqrt(std::max<double>(of[at] - .25, 0));
      for (size_t i = 0, at = 0; i < d; ++i)
        for (size_t j = i; j < d; ++j, ++at) {
          const double noise = 2e-6 * top * std::sqrt(want.count[h] / 64.0 + 1);
          const double bound =
              3e-5 * root[i] * root[j] + noise * (root[i] + root[j] + noise) + 1e-6;
          ASSERT_NEAR(mine[at], of[at], bound) << "head " << h << ", " << i << " by " << j;
          worst_ = std::max(worst_, std::abs(mine[at] - of[at]) / (root[i] * root[j] + 1e-3));
        }
    }
  }

  double worst_ = 0;
};

constexpr DType kTypes[] = {DType::kBf16, DType::kF16, DType::kF32};

// K of a block in memory with any strides.
struct Block {
  std::vector<std::byte> bytes;
  std::unique_ptr<RopeTable> rope;
  double top = 0;
};

TEST_F(CudaMoments, AreThoseOfTheCpu) {
  for (int round = 0; round < (few_ ? 6 : 80); ++round) {
    const int d = 16 * Int(1, 16), heads = Int(1, 4), jobs = Int(1, 7);
    SCOPED_TRACE("round " + std::to_string(round) + " d " + std::to_string(d));
    const int sums = Int(1, jobs);  // some jobs share theirs
    std::vector<Sums> cpu(static_cast<size_t>(sums), {heads, d}), cuda = cpu;
    std::deque<Block> blocks;
    std::vector<MomentsJob> cpu_jobs, cuda_jobs;
    double top = 0;
    for (int j = 0; j < jobs; ++j) {
      Block& block = blocks.emplace_back();
      MomentsJob job;
      job.source.dtype = kTypes[Int(0, 2)];
      const int element = DTypeBytes(job.source.dtype);
      const float scale = std::exp2(static_cast<float>(Int(-3, 3)));
      std::vector<float> rows(static_cast<size_t>(heads * kBlockTokens * d));
      Fill(rows, d, scale, Int(0, 2) == 0);
      const bool by_token = Int(0, 1) != 0;  // NHD, HND; both with gaps of some elements
      const int64_t gap = element * Int(0, 3), row = d * element + gap;
      job.source.k_token_stride = by_token ? row * heads : row;
      job.source.k_head_stride = by_token ? row : row * kBlockTokens;
      block.bytes.resize(static_cast<size_t>(row * heads * kBlockTokens + element));
      job.source.k = block.bytes.data() + element;
      for (int h = 0; h < heads; ++h)
        for (int t = 0; t < kBlockTokens; ++t)
          for (int c = 0; c < d; ++c) {
            const float x = rows[static_cast<size_t>((h * kBlockTokens + t) * d + c)];
            top = std::max<double>(top, std::abs(x));
            std::byte* to = block.bytes.data() + element + h * job.source.k_head_stride +
                            t * job.source.k_token_stride + c * element;
            const uint16_t bits =
                job.source.dtype == DType::kF16 ? codec::F32ToF16(x) : codec::F32ToBf16(x);
            std::memcpy(to, element == 4 ? static_cast<const void*>(&x) : &bits,
                        static_cast<size_t>(element));
          }
      block.rope = RandomRope(d);
      job.rope = block.rope.get();
      job.block_index = static_cast<uint32_t>(Int(0, Int(0, 1) != 0 ? 20 : 20000));
      job.pins = RandomMask();
      job.kv_heads = static_cast<uint16_t>(heads);
      job.head_dim = static_cast<uint16_t>(d);
      const auto at = static_cast<size_t>(Int(0, sums - 1));
      for (const bool on_cpu : {true, false}) {
        Sums& of = on_cpu ? cpu[at] : cuda[at];
        job.count = of.count;
        job.sum = of.sum;
        job.scatter = of.triangle;
        (on_cpu ? cpu_jobs : cuda_jobs).push_back(job);
      }
    }
    cpu_->Moments(cpu_jobs);
    cuda_->Moments(cuda_jobs);
    for (const MomentsJob& job : cpu_jobs) ASSERT_TRUE(job.status.ok()) << job.status.ToString();
    for (const MomentsJob& job : cuda_jobs) ASSERT_TRUE(job.status.ok()) << job.status.ToString();
    for (size_t i = 0; i < cpu.size(); ++i) {
      Compare(cuda[i], cpu[i], top, true);
      if (HasFatalFailure()) return;
    }
  }
  std::printf("moments: worst %.2e of the product of the roots\n", worst_);
}

// More tiles than one sum on the device takes, and values whose squares are near the ends of f32.
TEST_F(CudaMoments, OfManyBlocksAndOfExtremes) {
  constexpr int kD = 48, kHeads = 2;
  const int count = few_ ? 40 : 150;
  for (const float scale : {1.0f, 1e17f, 1e-12f}) {
    std::vector<float> rows(static_cast<size_t>(count * kHeads * kBlockTokens * kD));
    Fill(rows, kD, scale, false);
    Sums cpu(kHeads, kD), cuda(kHeads, kD);
    for (const bool on_cpu : {true, false}) {
      Sums& of = on_cpu ? cpu : cuda;
      std::vector<MomentsJob> jobs(static_cast<size_t>(count));
      for (size_t i = 0; i < jobs.size(); ++i) {
        jobs[i].source.k =
            reinterpret_cast<const std::byte*>(&rows[i * kHeads * kBlockTokens * kD]);
        jobs[i].source.k_token_stride = 4 * kD;
        jobs[i].source.k_head_stride = 4 * kD * kBlockTokens;
        jobs[i].source.dtype = DType::kF32;
        jobs[i].kv_heads = kHeads;
        jobs[i].head_dim = kD;
        jobs[i].count = of.count;
        jobs[i].sum = of.sum;
        jobs[i].scatter = of.triangle;
      }
      (on_cpu ? cpu_ : cuda_)->Moments(jobs);
      for (const MomentsJob& job : jobs) ASSERT_TRUE(job.status.ok()) << job.status.ToString();
    }
    Compare(cuda, cpu, scale * 10.0, true);
    if (HasFatalFailure()) return;
  }
}

TEST_F(CudaMoments, RefusesWhatTheCpuRefuses) {
  constexpr int kD = 64, kHeads = 2;
  testing::KvBuffer good(kHeads, kD, DType::kF16), bad(kHeads, kD, DType::kF16);
  const auto make = [&](testing::KvBuffer* kv, Sums* sums) {
    MomentsJob job;
    job.source = kv->view();
    job.pins = 0xf;
    job.kv_heads = kHeads;
    job.head_dim = kD;
    job.count = sums->count;
    job.sum = sums->sum;
    job.scatter = sums->triangle;
    return job;
  };
  for (int h = 0; h < kHeads; ++h)
    for (int t = 0; t < kBlockTokens; ++t)
      for (int c = 0; c < kD; ++c) good.Set(h, false, t, c, (t * 7 + c * 3 + h) % 11 - 5.0);
  bad.bytes = good.bytes;
  bad.Set(1, false, 2, 5, std::numeric_limits<double>::infinity());  // pinned, and refused
  bad.Set(1, false, 60, 63, std::numeric_limits<double>::quiet_NaN());
  // The sums of others do not suffer, not even those that are the same.
  Sums cpu(kHeads, kD), cuda(kHeads, kD), alone(kHeads, kD);
  MomentsJob on_cpu = make(&good, &cpu);
  cpu_->Moments({&on_cpu, 1});
  ASSERT_TRUE(on_cpu.status.ok());
  std::vector<MomentsJob> jobs = {make(&bad, &alone), make(&bad, &cuda), make(&good, &cuda)};
  cuda_->Moments(jobs);
  ASSERT_TRUE(jobs[2].status.ok()) << jobs[2].status.ToString();
  Compare(cuda, cpu, 5, true);
  if (HasFatalFailure()) return;
  MomentsJob refused = make(&bad, &cpu);
  cpu_->Moments({&refused, 1});
  ASSERT_EQ(refused.status.code(), StatusCode::kInvalid);
  for (const size_t i : {size_t{0}, size_t{1}})
    EXPECT_EQ(jobs[i].status.ToString(), refused.status.ToString());
  // What cannot be computed at all says the same too.
  for (const int what : {0, 1, 2, 3}) {
    MomentsJob job = make(&good, &cuda);
    if (what == 0) job.source.k = nullptr;
    if (what == 1) job.head_dim = 72;
    if (what == 2) job.scatter = job.scatter.first(7);
    if (what == 3) job.source.dtype = DType::kE4m3;
    MomentsJob same = job;
    cpu_->Moments({&job, 1});
    cuda_->Moments({&same, 1});
    EXPECT_FALSE(same.status.ok());
    EXPECT_EQ(same.status.ToString(), job.status.ToString());
  }
}

TEST_F(CudaMoments, OfQueriesAreThoseOfTheCpu) {
  for (int round = 0; round < (few_ ? 5 : 60); ++round) {
    const int jobs = Int(1, 4), heads = Int(1, 3);
    std::deque<Block> blocks;
    std::vector<std::vector<float>> queries;
    std::vector<Sums> cpu, cuda;
    std::vector<QueryMomentsJob> cpu_jobs, cuda_jobs;
    double top = 0;
    for (int j = 0; j < jobs; ++j) {  // head sizes may differ within a call
      const int d = 16 * Int(1, 16), group = Int(1, 9), window = Int(0, 1) != 0 ? 64 : Int(1, 64);
      std::vector<float>& q = queries.emplace_back(static_cast<size_t>(window * heads * group * d));
      Fill(q, d, 1, Int(0, 1) != 0);
      for (const float x : q) top = std::max<double>(top, std::abs(x));
      blocks.emplace_back().rope = RandomRope(d);
      cpu.emplace_back(heads, d);
      cuda.emplace_back(heads, d);
      QueryMomentsJob job;
      job.queries = q;
      job.rope = blocks.back().rope.get();
      job.first_query_position = static_cast<uint32_t>(Int(0, 1000000));
      job.q_heads = static_cast<uint16_t>(heads * group);
      job.kv_heads = static_cast<uint16_t>(heads);
      job.head_dim = static_cast<uint16_t>(d);
      cpu_jobs.push_back(job);
      cuda_jobs.push_back(job);
    }
    for (size_t j = 0; j < cpu.size(); ++j) {
      cpu_jobs[j].queries = cuda_jobs[j].queries = queries[j];
      cpu_jobs[j].count = cpu[j].count;
      cpu_jobs[j].second = cpu[j].triangle;
      cuda_jobs[j].count = cuda[j].count;
      cuda_jobs[j].second = cuda[j].triangle;
    }
    if (Int(0, 4) == 0) queries[0][queries[0].size() / 2] = NAN;
    cpu_->QueryMoments(cpu_jobs);
    cuda_->QueryMoments(cuda_jobs);
    for (size_t j = 0; j < cpu.size(); ++j) {
      ASSERT_EQ(cuda_jobs[j].status.ToString(), cpu_jobs[j].status.ToString());
      if (!cpu_jobs[j].status.ok()) continue;
      Compare(cuda[j], cpu[j], top, false);
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace dyna
