// K and V that are on the device: coded where they lie, with the results of the same rows on the
// host.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cuda/cuda_test.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/ipc_device.h"
#include "kernels/cuda/span_copier.h"
#include "kernels/host_copy_backend.h"
#include "kernels/test_data.h"

namespace dyna {
namespace {

using testing::AlignedBytes;
using testing::KvBuffer;

// Where rows of [heads][K, V] of a token begin, and how far tokens are apart; 128 channels of bf16.
struct Layout {
  const char* name;
  size_t begin, token;
};
constexpr int kHeads = 3, kDim = 128;
constexpr size_t kRow = kDim * 2;
constexpr Layout kLayouts[] = {{"dense", 0, 2 * kHeads* kRow},
                               {"with gaps", 64, 2 * kHeads* kRow + 48},
                               {"not of 16 bytes", 2, 2 * kHeads* kRow + 6}};
constexpr size_t kBytes = kBlockTokens * (2 * kHeads * kRow + 64) + 64;

class InPlace : public testing::CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    model_.d = kDim;
    model_.kv_heads = kHeads;
    basis_ = model_.MakeBasis(random_, 3);
    ASSERT_NE(basis_, nullptr);
    kv_ = std::make_unique<KvBuffer>(kHeads, kDim, DType::kBf16);
    testing::FillKv(model_, model_.frame == Frame::kPre ? rope_ : Rope{}, 1, random_, kv_.get());
    id_ = testing::MakeId(kDim, kHeads, DType::kBf16, basis_.get(), 1);
    id_.layer = 3;
    plan_ = {{kind::Level(1), kind::VBits(2)},
             {kind::kPlain8, kind::VBits(4)},
             {kind::kRaw, kind::kRaw}};
    ASSERT_TRUE(there_.Reserve(kBytes).ok());
    here_.resize(kBytes);
  }
  template <typename View>
  View ViewOf(const Layout& l) const {
    std::byte* at = there_.data() + l.begin;
    const auto token = static_cast<int64_t>(l.token);
    return {at, at + kRow, token, 2 * kRow, token, 2 * kRow, DType::kBf16, true};
  }
  // The rows of kv_ on the device; what lies between them is 0xEE.
  void Upload(const Layout& l, bool with_rows) {
    std::fill(here_.begin(), here_.end(), std::byte{0xEE});
    for (int h = 0; h < kHeads && with_rows; ++h)
      for (int t = 0; t < kBlockTokens; ++t)
        for (const bool v : {false, true})
          std::memcpy(&here_[RowAt(l, h, t, v)], kv_->at(h, v, t, 0), kRow);
    Copy(there_.data(), here_.data());
  }
  static size_t RowAt(const Layout& l, int head, int token, bool v) {
    return l.begin + static_cast<size_t>(token) * l.token +
           static_cast<size_t>(2 * head + (v ? 1 : 0)) * kRow;
  }
  static void Copy(std::byte* to, const std::byte* from) {
    ASSERT_TRUE(cuda::CopyRows(to, kBytes, from, kBytes, kBytes, 1).ok());
  }
  std::vector<std::byte> Encode(const KvView& source) {
    AlignedBytes out(EncodedBytes(id_, plan_, 0, basis_.get()) + 65536);
    EncodeJob job;
    job.id = id_;
    job.source = source;
    job.basis = basis_.get();
    job.rope = model_.frame == Frame::kPre ? &table_ : nullptr;
    job.plan = plan_;
    job.out = out.span();
    cuda_->Encode(std::span(&job, 1));
    EXPECT_TRUE(job.status.ok()) << job.status.ToString();
    const auto bytes = out.span().first(job.bytes);
    return {bytes.begin(), bytes.end()};
  }
  void Decode(std::span<const std::byte> segment, const MutableKvView& target) {
    DecodeJob job;
    job.segment = segment;
    job.basis = basis_.get();
    job.rope = model_.frame == Frame::kPre ? &table_ : nullptr;
    job.head_end = kHeads;
    job.target = target;
    cuda_->Decode(std::span(&job, 1));
    EXPECT_TRUE(job.status.ok()) << job.status.ToString();
  }

  testing::Model model_;
  std::shared_ptr<const Basis> basis_;
  const Rope rope_ = testing::MakeRope(kDim);
  const RopeTable table_{rope_};
  std::unique_ptr<KvBuffer> kv_;
  SegmentId id_;
  std::vector<TilePlan> plan_;
  cuda::DeviceMemory there_;
  std::vector<std::byte> here_;
};

TEST_F(InPlace, EncodesAndDecodesWhereTheRowsLie) {
  const auto segment = Encode(kv_->view());
  ASSERT_FALSE(segment.empty());
  AlignedBytes aligned(segment.size());
  std::memcpy(aligned.span().data(), segment.data(), segment.size());
  KvBuffer expected(kHeads, kDim, DType::kBf16);
  Decode(aligned.span(), expected.target());
  for (const Layout& l : kLayouts) {
    SCOPED_TRACE(l.name);
    Upload(l, true);
    EXPECT_EQ(Encode(ViewOf<KvView>(l)), segment);
    Upload(l, false);
    Decode(aligned.span(), ViewOf<MutableKvView>(l));
    std::vector<std::byte> got(kBytes);
    Copy(got.data(), there_.data());
    for (int h = 0; h < kHeads; ++h)
      for (int t = 0; t < kBlockTokens; ++t)
        for (const bool v : {false, true})
          std::memcpy(&here_[RowAt(l, h, t, v)], expected.at(h, v, t, 0), kRow);
    EXPECT_EQ(got, here_);  // the rows, and nothing between them
  }
}

// Segments in host memory that the device reaches by itself: the same bytes without staging.
TEST_F(InPlace, SegmentsThatAreInPinnedMemory) {
  const auto segment = Encode(kv_->view());
  ASSERT_FALSE(segment.empty());
  KvBuffer expected(kHeads, kDim, DType::kBf16), got(kHeads, kDim, DType::kBf16);
  constexpr size_t kHalf = 1 << 20;
  std::vector<std::byte> memory(2 * kHalf + 4096);
  auto* base = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(memory.data()) + 4095) /
                                            4096 * 4096);
  ASSERT_TRUE(cuda::HostPins::Add({base, kHalf}).ok());
  ASSERT_TRUE(cuda::HostPins::Add({base + kHalf, kHalf}).ok());
  EXPECT_FALSE(cuda::HostPins::Add({base, kHalf}).ok());  // not its end
  EXPECT_TRUE(cuda::HostPins::Covers({base + 256, 4096}));
  EXPECT_FALSE(cuda::HostPins::Covers({base + 2 * kHalf - 256, 512}));
  for (const size_t at : {size_t{256}, kHalf - 4096}) {  // also across two pieces
    const std::span out(base + at, segment.size() + 65536);
    std::fill(out.begin(), out.end(), std::byte{0xEE});
    EncodeJob job;
    job.id = id_;
    job.source = kv_->view();
    job.basis = basis_.get();
    job.rope = model_.frame == Frame::kPre ? &table_ : nullptr;
    job.plan = plan_;
    job.out = out;
    cuda_->Encode(std::span(&job, 1));
    ASSERT_TRUE(job.status.ok()) << job.status.ToString();
    ASSERT_EQ(job.bytes, segment.size());
    EXPECT_TRUE(std::equal(segment.begin(), segment.end(), out.begin()));
    EXPECT_EQ(out[segment.size()], std::byte{0xEE});
    AlignedBytes elsewhere(segment.size());
    std::memcpy(elsewhere.span().data(), segment.data(), segment.size());
    Decode(elsewhere.span(), expected.target());
    Decode(out.first(job.bytes), got.target());
    EXPECT_EQ(got.bytes, expected.bytes);
  }
  cuda::HostPins::RemoveAll();
  EXPECT_FALSE(cuda::HostPins::Covers({base + 256, 4096}));
}

TEST_F(InPlace, MomentsOfRowsThatAreThere) {
  for (const Layout& layout : kLayouts) {
    Upload(layout, true);
    std::vector<uint32_t> count(2 * kHeads);
    std::vector<float> sum(2 * kHeads * kDim), scatter(kHeads * kDim * (kDim + 1));
    std::vector<MomentsJob> jobs(2);
    for (size_t i = 0; i < 2; ++i) {
      jobs[i].source = i == 0 ? kv_->view() : ViewOf<KvView>(layout);
      jobs[i].kv_heads = kHeads;
      jobs[i].head_dim = kDim;
      jobs[i].count = std::span(count).subspan(i * kHeads, kHeads);
      jobs[i].sum = std::span(sum).subspan(i * kHeads * kDim, kHeads * kDim);
      jobs[i].scatter = std::span(scatter).subspan(i * scatter.size() / 2, scatter.size() / 2);
      cuda_->Moments(std::span(&jobs[i], 1));
      ASSERT_TRUE(jobs[i].status.ok()) << jobs[i].status.ToString();
    }
    EXPECT_EQ(count[0], unsigned{kBlockTokens});
    for (size_t i = 0; i < sum.size() / 2; ++i) ASSERT_EQ(sum[i], sum[sum.size() / 2 + i]);
    for (size_t i = 0; i < scatter.size() / 2; ++i)
      ASSERT_EQ(scatter[i], scatter[scatter.size() / 2 + i]);
  }
}

TEST_F(InPlace, TheCpuReadsTheSameThroughTheDriver) {
  auto device = MakeIpcDevice();
  ASSERT_TRUE(device.ok()) << device.status().ToString();
  HostCopyBackend cpu(std::move(*MakeCpuBackend()), device->get());
  Upload(kLayouts[1], true);
  std::vector<uint32_t> count(2 * kHeads);
  std::vector<float> sum(2 * kHeads * kDim), scatter(kHeads * kDim * (kDim + 1));
  std::vector<MomentsJob> jobs(2);
  for (size_t i = 0; i < 2; ++i) {
    jobs[i].source = i == 0 ? kv_->view() : ViewOf<KvView>(kLayouts[1]);
    jobs[i].kv_heads = kHeads;
    jobs[i].head_dim = kDim;
    jobs[i].count = std::span(count).subspan(i * kHeads, kHeads);
    jobs[i].sum = std::span(sum).subspan(i * kHeads * kDim, kHeads * kDim);
    jobs[i].scatter = std::span(scatter).subspan(i * scatter.size() / 2, scatter.size() / 2);
  }
  cpu.Moments(jobs);
  ASSERT_TRUE(jobs[1].status.ok()) << jobs[1].status.ToString();
  EXPECT_TRUE(std::equal(jobs[0].sum.begin(), jobs[0].sum.end(), jobs[1].sum.begin()));
  EXPECT_TRUE(std::equal(jobs[0].scatter.begin(), jobs[0].scatter.end(), jobs[1].scatter.begin()));
}

TEST_F(InPlace, RefusesWhatIsNotAHandleOfThisGpu) {
  auto device = MakeIpcDevice();
  ASSERT_TRUE(device.ok()) << device.status().ToString();
  const std::vector<uint8_t> zeros(64), shorter(63);
  SharedDevice::Handle handle{{1, 2, 3}, zeros, 0, 4096};
  EXPECT_EQ((*device)->Open(handle).status().code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace dyna
