// A device that fails once, often, or for good: callers see the CPU's results, and the counts.
#include "kernels/fallback_backend.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <thread>

#include "kernels/test_data.h"
#include "kernels/testing_device.h"

namespace dyna {
namespace {

using testing::AlignedBytes;
using testing::FaultyDevice;
using testing::KvBuffer;

class Fallback : public ::testing::Test {
 protected:
  Fallback() : kv_(2, 64, DType::kF32) {
    std::mt19937 random(3);
    testing::Model model;
    model.kv_heads = 2;
    (void)model.MakeBasis(random);
    testing::FillKv(model, testing::MakeRope(64), 0, random, &kv_);
    auto device = std::make_unique<FaultyDevice>(std::move(*MakeCpuBackend("scalar")));
    device_ = device.get();
    backend_ =
        std::make_unique<FallbackBackend>(std::move(device), std::move(*MakeCpuBackend("scalar")));
    backend_->OnLost([this](const std::string& error) {
      ++told_;
      error_ = error;
    });
  }

  // The segment of an encode of `kind` everywhere, or what went wrong.
  Result<std::vector<std::byte>> Encode(Backend& backend, int copies = 1) {
    const std::vector<TilePlan> plan(2, TilePlan{kind::kPlain8, kind::VBits(4)});
    const SegmentId id = testing::MakeId(64, 2, DType::kF32, nullptr);
    std::vector<AlignedBytes> outs;
    std::vector<EncodeJob> jobs(static_cast<size_t>(copies));
    for (int i = 0; i < copies; ++i) outs.emplace_back(EncodedBytes(id, plan, 0, nullptr));
    for (size_t i = 0; i < jobs.size(); ++i) {
      jobs[i].id = id;
      jobs[i].source = kv_.view();
      jobs[i].plan = plan;
      jobs[i].out = outs[i].span();
    }
    backend.Encode(jobs);
    for (const EncodeJob& job : jobs) DYNA_RETURN_IF_ERROR(job.status);
    const auto bytes = outs.back().span().first(jobs.back().bytes);
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  }
  std::vector<std::byte> Expected() {
    return Encode(*std::move(*MakeCpuBackend("scalar"))).value();
  }

  KvBuffer kv_;
  FaultyDevice* device_ = nullptr;
  std::unique_ptr<FallbackBackend> backend_;
  std::atomic<int> told_{0};
  std::string error_;
};

TEST_F(Fallback, LeavesAWorkingDeviceAlone) {
  EXPECT_EQ(Encode(*backend_).value(), Expected());
  EXPECT_EQ(device_->calls, 1);
  EXPECT_EQ(backend_->stats().failures, 0u);
  EXPECT_EQ(backend_->name(), "faulty");
  EXPECT_EQ(backend_->batch_bytes(), size_t{1} << 20);
}

TEST_F(Fallback, DoesAFailedBatchOnTheCpuAndCountsIt) {
  device_->failing = 1;
  EXPECT_EQ(Encode(*backend_, 3).value(), Expected());
  EXPECT_EQ(backend_->stats().failures, 1u);
  EXPECT_EQ(backend_->stats().redone, 3u);
  EXPECT_EQ(backend_->stats().last_error, "cuda: launch: test");
  EXPECT_EQ(told_, 0);
  EXPECT_EQ(Encode(*backend_).value(), Expected());  // and goes on with the device
  EXPECT_EQ(device_->calls, 2);
  EXPECT_EQ(backend_->stats().failures, 1u);
}

TEST_F(Fallback, EveryOperationSurvivesAFailure) {
  const auto segment = Expected();
  AlignedBytes from(segment.size());
  std::memcpy(from.span().data(), segment.data(), segment.size());

  KvBuffer decoded(2, 64, DType::kF32), wanted(2, 64, DType::kF32);
  const auto cpu = std::move(*MakeCpuBackend("scalar"));
  DecodeJob decode;
  decode.segment = from.span();
  decode.head_end = 2;
  decode.target = wanted.target();
  cpu->Decode({&decode, 1});
  ASSERT_TRUE(decode.status.ok());
  device_->failing = 1;
  decode.target = decoded.target();
  backend_->Decode({&decode, 1});
  ASSERT_TRUE(decode.status.ok()) << decode.status.ToString();
  EXPECT_EQ(decoded.bytes, wanted.bytes);

  const std::vector<TilePlan> fewer(2, TilePlan{kind::kPlain4, kind::VBits(2)});
  AlignedBytes small(segment.size()), want(segment.size());
  TranscodeJob transcode;
  transcode.segment = from.span();
  transcode.plan = fewer;
  transcode.out = want.span();
  cpu->Transcode({&transcode, 1});
  ASSERT_TRUE(transcode.status.ok()) << transcode.status.ToString();
  const uint32_t bytes = transcode.bytes;
  device_->failing = 1;
  transcode.out = small.span();
  backend_->Transcode({&transcode, 1});
  ASSERT_TRUE(transcode.status.ok());
  EXPECT_EQ(transcode.bytes, bytes);
  EXPECT_EQ(std::memcmp(small.span().data(), want.span().data(), bytes), 0);

  std::vector<uint32_t> count(2);
  std::vector<float> sum(2 * 64), scatter(2 * 64 * 65 / 2);
  MomentsJob moments;
  moments.source = kv_.view();
  moments.kv_heads = 2;
  moments.head_dim = 64;
  moments.count = count;
  moments.sum = sum;
  moments.scatter = scatter;
  device_->failing = 1;
  backend_->Moments({&moments, 1});
  ASSERT_TRUE(moments.status.ok());
  EXPECT_EQ(count[1], 64u);  // once, not twice

  std::vector<uint16_t> z(64 * 64, 0x3c00);
  std::vector<std::byte> packed(*VTileBytes(kind::VBits(4), 64, DType::kF16));
  int8_t exponent = 0;
  device_->failing = 1;
  EXPECT_TRUE(backend_->QuantiseV(z, 64, 4, ~uint64_t{0}, 0, packed, &exponent).ok());
  EXPECT_EQ(backend_->stats().failures, 4u);
}

TEST_F(Fallback, BadInputIsNotTheDevicesFailure) {
  kv_.Set(1, false, 5, 6, std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(Encode(*backend_).status().code(), StatusCode::kInvalid);
  EXPECT_EQ(backend_->stats().failures, 0u);
}

TEST_F(Fallback, ALostDeviceIsToldOnceAndLeftAlone) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  const auto expected = Expected();
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        if (t == 0 && i == 5) device_->losing = true;
        const auto got = Encode(*backend_);
        if (!got.ok() || *got != expected) ++wrong;
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_TRUE(backend_->lost());
  EXPECT_EQ(told_, 1);
  EXPECT_EQ(error_, "device lost: test");
  const int calls = device_->calls;
  EXPECT_TRUE(Encode(*backend_).ok());
  EXPECT_EQ(device_->calls, calls);
}

}  // namespace
}  // namespace dyna
