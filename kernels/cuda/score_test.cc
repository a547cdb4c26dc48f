// Window attention on the device against the CPU's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_test.h"
#include "kernels/test_data.h"

namespace dyna {
namespace {

using testing::AlignedBytes;
using testing::KvBuffer;

constexpr int kDims[] = {64, 80, 96, 128, 192, 256};

struct Shape {
  int d = 64, heads = 2, group = 4, queries = 64;
  size_t blocks = 5;
  uint32_t first = 256, window = 0;
  bool given = false;
};

class CudaScore : public testing::CudaTest {
 protected:
  // A chain in every kind of K, with tokens dropped here and there.
  void MakeChain(const Shape& shape) {
    testing::Model model;
    model.d = shape.d;
    model.kv_heads = shape.heads;
    model.frame = Int(0, 2) != 0 ? Frame::kPre : Frame::kPost;
    basis_ = model.MakeBasis(random_);
    ASSERT_NE(basis_, nullptr);
    const Rope rope = testing::MakeRope(shape.d, static_cast<RopeKind>(Int(0, 2)));
    table_ = std::make_unique<RopeTable>(rope);
    segments_.clear();
    constexpr DType kTypes[] = {DType::kBf16, DType::kF16, DType::kF32};
    const DType dtype = kTypes[Int(0, 2)];
    for (uint32_t i = 0; i < shape.blocks; ++i) {
      KvBuffer kv(shape.heads, shape.d, dtype);
      testing::FillKv(model, model.frame == Frame::kPre ? rope : Rope{}, i, random_, &kv);
      std::vector<TilePlan> plan;
      for (int h = 0; h < shape.heads; ++h) {
        constexpr uint8_t kKinds[] = {kind::kRaw, kind::kFp8, kind::kPlain8, kind::kPlain4,
                                      kind::kNone};
        TilePlan p{kind::Level(Int(0, basis_->info().levels - 1)), kind::VBits(2)};
        if (Int(0, 2) == 0) p.k_kind = kKinds[Int(0, 4)];
        if (Int(0, 3) == 0) p.live = uint64_t{random_()} << 32 | random_();
        plan.push_back(p);
      }
      EncodeJob job;
      job.id = testing::MakeId(shape.d, shape.heads, dtype, basis_.get(), i);
      job.pins = i == 0 ? 0xf : Int(0, 3) == 0 ? uint64_t{1} << Int(0, 63) : 0;
      AlignedBytes out(EncodedBytes(job.id, plan, job.pins, basis_.get()) + 65536);
      job.source = kv.view();
      job.basis = basis_.get();
      job.rope = table_.get();
      job.plan = plan;
      job.out = out.span();
      cpu_->Encode({&job, 1});
      ASSERT_TRUE(job.status.ok()) << job.status.ToString();
      segments_.push_back(std::move(out));
    }
  }

  std::vector<float> Score(Backend* backend, const Shape& shape, std::span<const float> queries,
                           std::span<const float> lse, Status* status) {
    std::vector<ScoreJob::Block> chain;
    for (size_t i = 0; i < segments_.size(); ++i)
      chain.push_back(
          {std::span<const std::byte>(segments_[i].span()), basis_.get(), table_.get()});
    std::vector<float> relative(static_cast<size_t>(shape.heads) * chain.size() * 64, -1);
    ScoreJob job;
    job.chain = chain;
    job.queries = queries;
    job.lse = lse;
    job.first_query_position = shape.first;
    job.q_heads = static_cast<uint16_t>(shape.heads * shape.group);
    job.window = shape.window;
    job.scale = 1 / std::sqrt(static_cast<float>(shape.d));
    job.relative = relative;
    backend->Score({&job, 1});
    *status = job.status;
    return relative;
  }

  void Check(const Shape& shape) {
    SCOPED_TRACE("d " + std::to_string(shape.d) + " heads " + std::to_string(shape.heads) +
                 " group " + std::to_string(shape.group) + " queries " +
                 std::to_string(shape.queries) + " blocks " + std::to_string(shape.blocks) +
                 " first " + std::to_string(shape.first) + " window " +
                 std::to_string(shape.window) + (shape.given ? " given" : ""));
    MakeChain(shape);
    if (HasFatalFailure()) return;
    std::normal_distribution<float> normal;
    const auto rows = static_cast<size_t>(shape.queries * shape.heads * shape.group);
    std::vector<float> queries(rows * static_cast<size_t>(shape.d)), lse;
    for (float& q : queries) q = normal(random_);
    // Well above what the sinks alone take: 1 - their share is what the rest is divided by.
    if (shape.given)
      for (size_t i = 0; i < rows; ++i) lse.push_back(14 + normal(random_));
    Status cpu, cuda;
    const auto want = Score(cpu_.get(), shape, queries, lse, &cpu);
    const auto got = Score(cuda_.get(), shape, queries, lse, &cuda);
    ASSERT_TRUE(cpu.ok()) << cpu.ToString();
    ASSERT_TRUE(cuda.ok()) << cuda.ToString();
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_NEAR(got[i], want[i], 2e-3f * want[i] + 1e-6f) << "token " << i;
      if (want[i] > 1e-3f) worst_ = std::max(worst_, std::abs(got[i] / want[i] - 1));
    }
  }

  std::shared_ptr<const Basis> basis_;
  std::unique_ptr<RopeTable> table_;
  std::vector<AlignedBytes> segments_;
  float worst_ = 0;
};

TEST_F(CudaScore, IsThatOfTheCpu) {
  for (int i = 0; i < (few_ ? 8 : 60); ++i) {
    Shape shape;
    shape.d = kDims[i % 6];
    shape.heads = Int(1, 3);
    shape.group = Int(0, 3) == 0 ? 16 : Int(1, 8);
    shape.queries = Int(0, 2) == 0 ? 64 : Int(1, 63);
    shape.blocks = static_cast<size_t>(Int(1, 9));
    // In the middle of the chain, at its end, or beyond it.
    shape.first = static_cast<uint32_t>(Int(0, static_cast<int>(shape.blocks) * 64 + 40));
    if (Int(0, 2) == 0) shape.window = static_cast<uint32_t>(Int(1, 300));
    shape.given = Int(0, 2) == 0;
    Check(shape);
    if (HasFatalFailure()) return;
  }
  std::printf("scores: worst %.2e of themselves\n", worst_);
}

// More than is decoded at once.
TEST_F(CudaScore, OfALongChain) {
  Shape shape;
  shape.d = 256;
  shape.heads = 4;
  shape.group = 2;
  shape.queries = 3;
  shape.blocks = few_ ? 20 : 300;
  shape.first = static_cast<uint32_t>(shape.blocks * 64 - 3);
  for (const bool given : {false, true})
    for (const uint32_t window : {0u, 9000u}) {
      shape.given = given;
      shape.window = window;
      Check(shape);
      if (HasFatalFailure()) return;
    }
}

// The CPU does what the kernels have no room for.
TEST_F(CudaScore, OfLargeGroups) {
  Shape shape;
  shape.group = 24;
  shape.queries = 5;
  Check(shape);
}

TEST_F(CudaScore, RefusesWhatTheCpuRefuses) {
  Shape shape;
  MakeChain(shape);
  std::vector<float> queries(static_cast<size_t>(64 * 8 * shape.d), 1);
  Status s;
  std::swap(segments_[1], segments_[2]);
  Score(cuda_.get(), shape, queries, {}, &s);
  EXPECT_EQ(s.code(), StatusCode::kInvalid) << s.ToString();
  std::swap(segments_[1], segments_[2]);
  queries[7] = NAN;
  Score(cuda_.get(), shape, queries, {}, &s);
  EXPECT_EQ(s.code(), StatusCode::kInvalid) << s.ToString();
  queries[7] = 1;
  Score(cuda_.get(), shape, queries, {}, &s);
  EXPECT_TRUE(s.ok()) << s.ToString();
}

}  // namespace
}  // namespace dyna
