// The CUDA backend end to end against the CPU's: segments of every kind, shape and layout.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "kernels/cuda/cuda_test.h"
#include "kernels/segment_layout.h"
#include "kernels/test_data.h"

namespace dyna {
namespace {

using testing::AlignedBytes;
using testing::KvBuffer;

constexpr int kDims[] = {64, 80, 96, 128, 192, 256};
constexpr double kBound = 1.0 / 1024;

// One block with everything it takes to code it.
struct Block {
  int d = 64, heads = 2;
  DType dtype = DType::kBf16;
  testing::Model model;
  std::shared_ptr<const Basis> basis;
  Rope rope;
  std::unique_ptr<RopeTable> table;
  std::unique_ptr<KvBuffer> kv;
  SegmentId id;
  uint64_t pins = 0;
  std::vector<TilePlan> plan;
};

class CudaCodec : public testing::CudaTest {
 protected:
  Block Make(int d) {
    Block b;
    b.d = d;
    b.heads = Int(1, 3);
    constexpr DType kTypes[] = {DType::kBf16, DType::kF16, DType::kF32};
    b.dtype = kTypes[Int(0, 2)];
    b.model.d = d;
    b.model.kv_heads = b.heads;
    b.model.frame = Int(0, 2) != 0 ? Frame::kPre : Frame::kPost;
    b.model.run = d <= 64 && Int(0, 1) != 0 ? 8 : 16;
    b.model.mean = Int(0, 1);
    b.basis = b.model.MakeBasis(random_, 3);
    if (b.basis == nullptr) std::abort();
    b.rope = testing::MakeRope(d, static_cast<RopeKind>(Int(0, 2)));
    if (b.rope.kind != RopeKind::kNone && Int(0, 2) == 0) {  // partial
      b.rope.rotary_dim = static_cast<uint16_t>(2 * Int(1, d / 2));
      b.rope.inv_freq.resize(b.rope.rotary_dim / 2u);
    }
    b.table = std::make_unique<RopeTable>(b.rope);
    b.kv = std::make_unique<KvBuffer>(b.heads, d, b.dtype);
    const auto index = static_cast<uint32_t>(Int(0, 1600));
    testing::FillKv(b.model, b.model.frame == Frame::kPre ? b.rope : Rope{}, index, random_,
                    b.kv.get());
    b.id = testing::MakeId(d, b.heads, b.dtype, b.basis.get(), index);
    b.id.layer = 3;
    b.pins = Int(0, 2) == 0 ? 0xF : Int(0, 3) == 0 ? 0x8000000000010001u : 0;
    for (int h = 0; h < b.heads; ++h) b.plan.push_back(Plan(b));
    return b;
  }
  TilePlan Plan(const Block& b) {
    const uint8_t ks[] = {kind::kRaw, kind::kFp8, kind::kPlain8, kind::kPlain4, kind::kNone};
    const uint8_t vs[] = {kind::kRaw, kind::kFp8, kind::kNone};
    TilePlan p;
    p.k_kind = Int(0, 2) == 0 ? ks[Int(0, 4)] : kind::Level(Int(0, b.basis->info().levels - 1));
    constexpr int kBits[] = {0, 1, 2, 4, 8};
    p.v_kind = Int(0, 3) == 0 ? vs[Int(0, 2)] : kind::VBits(kBits[Int(0, 4)]);
    if (Int(0, 2) == 0)
      p.live = (uint64_t{random_()} << 32 | random_()) | uint64_t{1} << Int(0, 63);
    return p;
  }

  struct Coded {
    AlignedBytes bytes{0};
    Status status;
    uint32_t size = 0;
    float nmse = 0;
    std::vector<TileMeasure> measure;
  };
  Coded Encode(Backend* backend, Block& b) {
    Coded c;
    c.bytes = AlignedBytes(EncodedBytes(b.id, b.plan, b.pins, b.basis.get()) + 65536);
    c.measure.resize(static_cast<size_t>(b.heads));
    EncodeJob job;
    job.id = b.id;
    job.source = b.kv->view();
    job.basis = b.basis.get();
    job.rope = b.model.frame == Frame::kPre ? b.table.get() : nullptr;
    job.pins = b.pins;
    job.plan = b.plan;
    job.out = c.bytes.span();
    job.measure = c.measure;
    backend->Encode(std::span(&job, 1));
    c.status = job.status;
    c.size = job.bytes;
    c.nmse = job.nmse;
    return c;
  }
  // f32 rows, so that no rounding hides or adds a difference. [head][K, V][64][d]
  std::vector<float> Decode(Backend* backend, const Block& b, std::span<const std::byte> segment) {
    KvBuffer out(b.heads, b.d, DType::kF32);
    std::fill(out.bytes.begin(), out.bytes.end(), std::byte{0xEE});
    DecodeJob job;
    job.segment = segment;
    job.basis = b.basis.get();
    job.rope = b.model.frame == Frame::kPre ? b.table.get() : nullptr;
    job.head_end = static_cast<uint16_t>(b.heads);
    job.target = out.target();
    std::vector<uint64_t> live(static_cast<size_t>(b.heads));
    job.live = live;
    backend->Decode(std::span(&job, 1));
    EXPECT_TRUE(job.status.ok()) << job.status.ToString();
    std::vector<float> rows(static_cast<size_t>(b.heads * 2 * 64 * b.d));
    std::memcpy(rows.data(), out.bytes.data(), rows.size() * 4);
    return rows;
  }
  void ExpectNear(const std::vector<float>& got, const std::vector<float>& want, int d) {
    for (size_t row = 0; row < want.size() / static_cast<size_t>(d); ++row) {
      double square = 0, worst = 0;
      for (int c = 0; c < d; ++c) {
        const size_t at = row * static_cast<size_t>(d) + static_cast<size_t>(c);
        square += static_cast<double>(want[at]) * want[at];
        worst = std::max(worst, std::abs(static_cast<double>(got[at]) - want[at]));
      }
      const double rms = std::sqrt(square / d);
      ASSERT_LE(worst, kBound * rms + 1e-7)
          << "row " << row % 64 << (row / 64 % 2 ? " V" : " K") << " head " << row / 128;
      if (rms > 0) worst_ = std::max(worst_, worst / rms);
    }
  }

  // Codes of K at every (channel, row) of one tile; and how coarse they are.
  static std::vector<int> CodesOfK(std::span<const std::byte> tile, std::span<const uint8_t> widths,
                                   int run, int d) {
    std::vector<int> out;
    size_t at = static_cast<size_t>(2 * d), scales = 0;
    for (const uint8_t w : widths)
      scales += static_cast<size_t>(w == 0 ? 0 : (w == 2 ? 1 : 2) * run);
    at += (scales + 15) / 16 * 16;
    for (const uint8_t w : widths) {
      for (int k = 0; w > 0 && k < run; ++k) {
        const int n = codec::PlaneChannels(run, w), bytes = n * w / 8;
        for (int t = 0; t < 64; ++t) {
          uint32_t e = 0;
          std::memcpy(&e,
                      &tile[at + static_cast<size_t>(((k / n) * 64 + codec::TokenSlot(t)) * bytes)],
                      static_cast<size_t>(bytes));
          out.push_back(static_cast<int>(e >> codec::PlaneBit(k % n, n, w)) & ((1 << w) - 1));
        }
      }
      at += static_cast<size_t>(8 * run * w);
    }
    return out;
  }
  void CompareCodes(const Block& b, std::span<const std::byte> a, std::span<const std::byte> c) {
    const auto x = ParseSegment(a, b.basis.get()), y = ParseSegment(c, b.basis.get());
    ASSERT_TRUE(x.ok() && y.ok());
    for (int h = 0; h < b.heads; ++h) {
      const TileView s = x->tile(h), t = y->tile(h);
      ASSERT_EQ(s.k_kind, t.k_kind);
      ASSERT_EQ(s.v_kind, t.v_kind);
      const auto equal = [](auto p, auto q) {
        return p.size() == q.size() && std::memcmp(p.data(), q.data(), p.size()) == 0;
      };
      // No transform: the same bytes.
      if (!kind::IsLevel(s.k_kind)) {
        ASSERT_TRUE(equal(s.k, t.k)) << int{s.k_kind};
      }
      if (s.v_kind <= kind::VBits(0)) {
        ASSERT_TRUE(equal(s.v, t.v)) << int{s.v_kind};
      }
      if (!kind::IsLevel(s.k_kind)) continue;
      const auto widths = b.basis->widths(h, s.k_kind - kind::kLevel0);
      const int run = b.basis->info().run;
      const auto p = CodesOfK(s.k, widths, run, b.d), q = CodesOfK(t.k, widths, run, b.d);
      size_t i = 0;
      for (const uint8_t w : widths)
        for (int k = 0; w > 0 && k < run * 64; ++k, ++i) {
          Count& count = counts_[w];
          ++count.all;
          const int apart = std::abs(p[i] - q[i]);
          if (apart != 0) ++count.apart;
          if (apart > 1) ++count.far;
        }
    }
  }

  static float LostOf(std::span<const TileMeasure> measure) {
    float lost = 0;
    for (const TileMeasure& m : measure) {
      if (m.k_energy > 0) lost = std::max(lost, m.k_error / m.k_energy);
      if (m.v_energy > 0) lost = std::max(lost, m.v_error / m.v_energy);
    }
    return lost;
  }

  struct Count {
    long all = 0, apart = 0, far = 0;
  };
  std::map<int, Count> counts_;
  double worst_ = 0;
};

TEST_F(CudaCodec, EncodesAndDecodesAsTheCpu) {
  for (int i = 0; i < (few_ ? 12 : 420); ++i) {
    Block b = Make(kDims[i % 6]);
    SCOPED_TRACE(::testing::Message()
                 << "case " << i << " d " << b.d << " dtype " << int(b.dtype) << " rope "
                 << int(b.rope.kind) << " rotary " << b.rope.rotary_dim << " frame "
                 << int(b.model.frame) << " run " << b.model.run << " pins " << std::hex << b.pins
                 << " k " << int(b.plan[0].k_kind) << " v " << int(b.plan[0].v_kind) << " live "
                 << b.plan[0].live);
    const Coded want = Encode(cpu_.get(), b), got = Encode(cuda_.get(), b);
    ASSERT_EQ(got.status.code(), want.status.code())
        << got.status.ToString() << " / " << want.status.ToString();
    if (!want.status.ok()) continue;
    ASSERT_EQ(got.size, want.size);
    Coded& g = const_cast<Coded&>(got);
    Coded& w = const_cast<Coded&>(want);
    const auto gpu = std::span<const std::byte>(g.bytes.span()).first(g.size);
    const auto cpu = std::span<const std::byte>(w.bytes.span()).first(w.size);
    // Of channels without a width the CPU estimates the loss (Basis::probes), this backend has it.
    EXPECT_NEAR(got.nmse, want.nmse, .3 * want.nmse + 1e-3);
    const auto header = ParseSegmentHeader(gpu);
    ASSERT_TRUE(header.ok());
    EXPECT_NEAR(header->nmse, got.nmse, 1e-5 * got.nmse + 1e-9);
    for (size_t h = 0; h < got.measure.size(); ++h) {
      const TileMeasure &m = got.measure[h], &n = want.measure[h];
      EXPECT_NEAR(m.k_energy, n.k_energy, .01f * n.k_energy + 1e-6f);
      EXPECT_NEAR(m.v_energy, n.v_energy, .01f * n.v_energy + 1e-6f);
      EXPECT_NEAR(m.v_error, n.v_error, .05f * n.v_error + 3e-5f * n.v_energy);
    }
    CompareCodes(b, gpu, cpu);
    if (HasFatalFailure()) return;
    ExpectNear(Decode(cuda_.get(), b, cpu), Decode(cpu_.get(), b, cpu), b.d);
    if (HasFatalFailure()) return;
    ExpectNear(Decode(cuda_.get(), b, gpu), Decode(cpu_.get(), b, gpu), b.d);
    if (HasFatalFailure()) return;
  }
  std::printf("decoded rows: worst %.2e of the rms (bound %.2e)\n", worst_, kBound);
  for (const auto& [w, count] : counts_) {
    std::printf("width %d: %ld codes, %ld differ by 1 (1 of %.0f), %ld by more\n", w, count.all,
                count.apart - count.far,
                static_cast<double>(count.all) / static_cast<double>(std::max(count.apart, 1L)),
                count.far);
    EXPECT_EQ(count.far, 0) << w;
    // Steps of 8 bits are near the bound; and a rate needs a sample.
    if (w < 8 && count.all > 100000) {
      EXPECT_LT(count.apart * 500, count.all) << w;
    }
  }
}

TEST_F(CudaCodec, TranscodesAsTheCpu) {
  int same = 0, coded = 0;
  for (int i = 0; i < (few_ ? 12 : 300); ++i) {
    Block b = Make(kDims[i % 6]);
    for (TilePlan& p : b.plan) {  // something to take away
      if (kind::IsLevel(p.k_kind)) p.k_kind = kind::Level(b.basis->info().levels - 1);
      if (p.v_kind == kind::VBits(0) || p.v_kind == kind::VBits(1)) p.v_kind = kind::VBits(8);
    }
    Coded segment = Encode(cpu_.get(), b);
    if (!segment.status.ok()) continue;
    const auto bytes = std::span<const std::byte>(segment.bytes.span()).first(segment.size);
    std::vector<TilePlan> plan = b.plan;
    for (TilePlan& p : plan) {
      if (kind::IsLevel(p.k_kind) && Int(0, 3) != 0)
        p.k_kind = kind::Level(Int(0, b.basis->info().levels - 1));
      else if (p.k_kind == kind::kPlain8 || p.k_kind == kind::kRaw)
        p.k_kind = Int(0, 1) != 0 ? kind::kPlain4 : kind::Level(Int(0, 6));
      constexpr int kBits[] = {0, 1, 2, 4};
      if (p.v_kind == kind::VBits(8)) p.v_kind = kind::VBits(kBits[Int(0, 3)]);
      if (p.v_kind == kind::kRaw) p.v_kind = Int(0, 1) != 0 ? kind::VBits(4) : kind::kFp8;
      if (Int(0, 4) == 0) p.live &= ~(uint64_t{1} << Int(0, 63));
      if (Int(0, 9) == 0) p.k_kind = kind::kNone;
    }
    Coded out[2];
    Backend* backends[] = {cuda_.get(), cpu_.get()};
    for (int k = 0; k < 2; ++k) {
      out[k].bytes = AlignedBytes(segment.size + 4096);
      out[k].measure.resize(static_cast<size_t>(b.heads));
      TranscodeJob job;
      job.segment = bytes;
      job.basis = b.basis.get();
      job.rope = b.model.frame == Frame::kPre ? b.table.get() : nullptr;
      job.plan = plan;
      job.out = out[k].bytes.span();
      job.measure = out[k].measure;
      backends[k]->Transcode(std::span(&job, 1));
      out[k].status = job.status;
      out[k].size = job.bytes;
      out[k].nmse = job.nmse;
    }
    SCOPED_TRACE(::testing::Message()
                 << "case " << i << " d " << b.d << " from k " << int(b.plan[0].k_kind) << " v "
                 << int(b.plan[0].v_kind) << " to k " << int(plan[0].k_kind) << " v "
                 << int(plan[0].v_kind) << " live " << std::hex << b.plan[0].live << " "
                 << plan[0].live);
    ASSERT_EQ(out[0].status.code(), out[1].status.code())
        << out[0].status.ToString() << " / " << out[1].status.ToString();
    if (!out[0].status.ok()) continue;
    ASSERT_EQ(out[0].size, out[1].size);
    const auto x = ParseSegment(out[0].bytes.span(), b.basis.get());
    const auto y = ParseSegment(out[1].bytes.span(), b.basis.get());
    ASSERT_TRUE(x.ok()) << x.status().ToString();
    ASSERT_TRUE(y.ok());
    EXPECT_NEAR(out[0].nmse, out[1].nmse, .3 * out[1].nmse + 1e-3);
    // Where nothing is lost but roundings, one may see a loss and the other none.
    if (LostOf(out[0].measure) > 1e-5f || LostOf(out[1].measure) > 1e-5f) {
      EXPECT_EQ(x->flags(), y->flags());
    }
    for (int h = 0; h < b.heads; ++h) {
      const TileView s = x->tile(h), t = y->tile(h),
                     from = ParseSegment(bytes, b.basis.get())->tile(h);
      const bool k_coded = kind::IsLevel(from.k_kind) == kind::IsLevel(s.k_kind);
      const bool v_coded = from.v_kind > kind::VBits(0) && s.v_kind > kind::VBits(0);
      ++coded;
      if (k_coded) {
        ASSERT_EQ(std::memcmp(s.k.data(), t.k.data(), s.k.size()), 0) << "head " << h;
      }
      if (v_coded) {
        ASSERT_EQ(s.v_exp, t.v_exp);
        ASSERT_EQ(std::memcmp(s.v.data(), t.v.data(), s.v.size()), 0) << "head " << h;
      }
      if (k_coded && v_coded) ++same;
    }
    ExpectNear(Decode(cuda_.get(), b, out[0].bytes.span().first(out[0].size)),
               Decode(cpu_.get(), b, out[0].bytes.span().first(out[0].size)), b.d);
    if (HasFatalFailure()) return;
  }
  std::printf("%d heads, %d of them wholly in the coded domain\n", coded, same);
}

TEST_F(CudaCodec, RefusesWhatTheCpuRefuses) {
  Block b = Make(128);
  b.dtype = DType::kBf16;
  b.id.dtype = b.dtype;
  b.kv = std::make_unique<KvBuffer>(b.heads, b.d, b.dtype);
  testing::FillKv(b.model, Rope{}, 1, random_, b.kv.get());
  b.pins = 0;
  for (TilePlan& p : b.plan) p = {kind::Level(5), kind::VBits(2)};
  b.kv->Set(b.heads - 1, true, 17, 3, NAN);
  Coded coded = Encode(cuda_.get(), b);
  EXPECT_EQ(coded.status.code(), StatusCode::kInvalid);
  EXPECT_NE(
      coded.status.message().find("layer 3, head " + std::to_string(b.heads - 1) + ", token 17"),
      std::string_view::npos)
      << coded.status.ToString();
}

}  // namespace
}  // namespace dyna
