// K and V that the CPU cannot touch: the results are those of the same bytes on the host.
#include "kernels/host_copy_backend.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/fallback_backend.h"
#include "kernels/test_data.h"
#include "kernels/testing_device.h"

namespace dyna {
namespace {

using testing::AlignedBytes;
using testing::FakeMemory;
using testing::KvBuffer;

constexpr int kHeads = 2, kDim = 64;
constexpr size_t kRow = kDim * 4, kToken = kHeads * 2 * kRow + 32, kBytes = kBlockTokens * kToken;

template <typename A, typename B>
bool Same(const A& a, const B& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

class HostCopy : public ::testing::Test {
 protected:
  HostCopy() : kv_(kHeads, kDim, DType::kF32), memory_(kBytes), backend_(Cpu(), &memory_) {
    std::mt19937 random(5);
    testing::Model model;
    model.kv_heads = kHeads;
    (void)model.MakeBasis(random);
    testing::FillKv(model, testing::MakeRope(kDim), 0, random, &kv_);
    // Token-major, K and V of a head beside each other, rows with a gap.
    const KvView host = kv_.view();
    for (int h = 0; h < kHeads; ++h)
      for (int t = 0; t < kBlockTokens; ++t)
        for (const bool v : {false, true}) {
          const std::byte* row = v ? host.v + h * host.v_head_stride + t * host.v_token_stride
                                   : host.k + h * host.k_head_stride + t * host.k_token_stride;
          std::memcpy(&memory_.bytes()[RowAt(h, t, v)], row, kRow);
        }
  }
  static std::unique_ptr<Backend> Cpu() { return std::move(*MakeCpuBackend("scalar")); }
  static size_t RowAt(int head, int token, bool v) {
    return static_cast<size_t>(token) * kToken + static_cast<size_t>(2 * head + (v ? 1 : 0)) * kRow;
  }
  template <typename View>
  View OnDevice() const {
    return {memory_.device(), memory_.device() + kRow,
            kToken,           2 * kRow,
            kToken,           2 * kRow,
            DType::kF32,      true};
  }
  EncodeJob JobOf(const KvView& source, std::span<const TilePlan> plan, std::span<std::byte> out) {
    EncodeJob job;
    job.id = testing::MakeId(kDim, kHeads, DType::kF32, nullptr);
    job.source = source;
    job.plan = plan;
    job.out = out;
    return job;
  }
  size_t Room(std::span<const TilePlan> plan) const {
    return EncodedBytes(testing::MakeId(kDim, kHeads, DType::kF32, nullptr), plan, 0, nullptr);
  }

  const std::vector<TilePlan> plan_{kHeads, TilePlan{kind::kPlain8, kind::VBits(4)}};
  const std::vector<TilePlan> raw_{kHeads, TilePlan{kind::kRaw, kind::kRaw}};
  KvBuffer kv_;
  FakeMemory memory_;
  HostCopyBackend backend_;
};

TEST_F(HostCopy, EncodesWhatIsOnTheDeviceBesideWhatIsNot) {
  AlignedBytes a(Room(plan_)), b(Room(plan_)), c(Room(plan_));
  std::vector<EncodeJob> jobs{JobOf(kv_.view(), plan_, a.span()),
                              JobOf(OnDevice<KvView>(), plan_, b.span()),
                              JobOf(kv_.view(), plan_, c.span())};
  backend_.Encode(jobs);
  for (const EncodeJob& job : jobs) ASSERT_TRUE(job.status.ok()) << job.status.ToString();
  EXPECT_TRUE(Same(a.span(), b.span()));
  EXPECT_TRUE(Same(a.span(), c.span()));
  EXPECT_TRUE(jobs[1].source.on_device);  // the job is as it was
  EXPECT_EQ(jobs[1].source.k, memory_.device());
}

TEST_F(HostCopy, DecodesIntoTheDeviceAndLeavesGapsAlone) {
  AlignedBytes segment(Room(raw_));
  std::vector<EncodeJob> encode{JobOf(kv_.view(), raw_, segment.span())};
  backend_.Encode(encode);
  ASSERT_TRUE(encode[0].status.ok());
  const std::vector<std::byte> before(memory_.bytes().begin(), memory_.bytes().end());
  std::memset(memory_.bytes().data(), 0, kBytes);
  DecodeJob job;
  job.segment = segment.span();
  job.head_end = kHeads;
  job.target = OnDevice<MutableKvView>();
  backend_.Decode(std::span(&job, 1));
  ASSERT_TRUE(job.status.ok()) << job.status.ToString();
  EXPECT_TRUE(Same(memory_.bytes(), before));
}

TEST_F(HostCopy, FeedsMomentsFromK) {
  std::vector<uint32_t> count(2 * kHeads);
  std::vector<float> sum(2 * kHeads * kDim), scatter(kHeads * kDim * (kDim + 1));
  std::vector<MomentsJob> jobs(2);
  for (size_t i = 0; i < 2; ++i) {
    jobs[i].source = i == 0 ? kv_.view() : OnDevice<KvView>();
    jobs[i].kv_heads = kHeads;
    jobs[i].head_dim = kDim;
    jobs[i].count = std::span(count).subspan(i * kHeads, kHeads);
    jobs[i].sum = std::span(sum).subspan(i * kHeads * kDim, kHeads * kDim);
    jobs[i].scatter = std::span(scatter).subspan(i * scatter.size() / 2, scatter.size() / 2);
  }
  backend_.Moments(jobs);
  ASSERT_TRUE(jobs[1].status.ok());
  EXPECT_EQ(count[0], 64u);
  EXPECT_TRUE(Same(jobs[0].sum, jobs[1].sum));
  EXPECT_TRUE(Same(jobs[0].scatter, jobs[1].scatter));
}

TEST_F(HostCopy, SaysThatItWasTheDevice) {
  memory_.failing = true;
  AlignedBytes out(Room(plan_));
  std::vector<EncodeJob> jobs{JobOf(OnDevice<KvView>(), plan_, out.span())};
  backend_.Encode(jobs);
  EXPECT_EQ(jobs[0].status.code(), StatusCode::kInternal);
  EXPECT_EQ(jobs[0].status.message(), "source on the GPU: device lost: test");
}

TEST_F(HostCopy, AFailedBatchOfTheDeviceIsDoneAgainFromItsMemory) {
  auto device =
      std::make_unique<testing::FaultyDevice>(std::make_unique<HostCopyBackend>(Cpu(), &memory_));
  device->failing = 1;
  FallbackBackend both(std::move(device), std::make_unique<HostCopyBackend>(Cpu(), &memory_));
  AlignedBytes expected(Room(plan_)), got(Room(plan_));
  std::vector<EncodeJob> host{JobOf(kv_.view(), plan_, expected.span())};
  backend_.Encode(host);
  std::vector<EncodeJob> jobs{JobOf(OnDevice<KvView>(), plan_, got.span())};
  both.Encode(jobs);
  ASSERT_TRUE(jobs[0].status.ok()) << jobs[0].status.ToString();
  EXPECT_TRUE(Same(expected.span(), got.span()));
  EXPECT_EQ(both.stats().redone, 1u);
}

}  // namespace
}  // namespace dyna
