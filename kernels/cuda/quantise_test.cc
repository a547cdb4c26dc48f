// The device's quantiser against the CPU's: the same bytes from the same y and z, on random tiles
// of every kind, shape and special value; and the same y' and z' back.
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "kernels/codec_math.h"
#include "kernels/cuda/device_batch.h"
#include "kernels/cuda/staging.h"
#include "tests/support/seed.h"

namespace dyna::cuda {
namespace {

constexpr int kDims[] = {64, 80, 96, 128, 192, 256};
constexpr size_t kTilesAtOnce = 2048;

struct Tile {
  int d = 0, run = 16, bits = 0;
  std::vector<uint8_t> widths;  // empty: V
  uint64_t live = 0, pins = 0;
  std::vector<uint16_t> rows;
  // what the CPU makes of it
  Status status;
  std::vector<std::byte> packed;
  int8_t v_exp = 0;
  std::vector<uint16_t> back;
};

class Maker {
 public:
  explicit Maker(uint64_t seed) : random_(seed) {
    for (float& v : normal_) v = std::normal_distribution<float>()(random_);
  }
  Tile Make(int d) {
    Tile t;
    t.d = d;
    t.live = Mask();
    t.pins = Int(0, 3) == 0 ? 0xF : Int(0, 9) == 0 ? random_() & random_() & random_() : 0;
    if (Int(0, 1) != 0) {
      constexpr uint8_t kWidths[] = {0, 2, 4, 8};
      t.run = Int(0, 1) != 0 ? 8 : 16;
      const int one = Int(0, 5);  // mostly mixed
      for (int i = 0; i < d / t.run; ++i) t.widths.push_back(kWidths[one < 4 ? one : Int(0, 3)]);
    } else {
      t.bits = 1 << Int(0, 3);
    }
    Fill(&t);
    return t;
  }

 private:
  int Int(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1));
  }
  float Normal() { return normal_[random_() % std::size(normal_)]; }
  uint64_t Mask() {
    switch (Int(0, 9)) {
      case 0:
        return random_();
      case 1:
        return random_() | random_();
      case 2:
        return uint64_t{1} << Int(0, 63);
      case 3:
        return Int(0, 7) == 0 ? 0 : ~uint64_t{0} >> Int(0, 63);
      default:
        return ~uint64_t{0};
    }
  }
  void Fill(Tile* t) {
    t->rows.resize(static_cast<size_t>(64 * t->d));
    const bool any_bits = Int(0, 19) == 0, zero_rows = Int(0, 3) == 0;
    for (int c = 0; c < t->d; ++c) {
      const int shape = Int(0, 9);
      const float size = std::ldexp(1.0f, Int(-20, 8)), mean = Normal() * size * Int(0, 40);
      for (int r = 0; r < 64; ++r) {
        float v = Normal() * size + mean;
        if (shape == 0) v = mean;
        if (shape == 1) v = Int(0, 1) != 0 ? 0.0f : -0.0f;
        if (shape == 2) v = std::ldexp(static_cast<float>(Int(-8, 8)), -24);
        if (shape == 3) v = static_cast<float>(Int(0, 30)) / 2;
        if (shape == 4) v = r == 9 ? size * 16 : Int(0, 7) == 0 ? size : 0.0f;
        if (shape == 5) v = mean + (r == 3 ? std::abs(mean) * 0x1p-10f : 0.0f);
        uint16_t bits = codec::F32ToF16(v);
        if (any_bits) bits = static_cast<uint16_t>(random_());
        if (any_bits && (bits & 0x7000) == 0x7000) bits ^= 0x4000;
        if (zero_rows && r % 3 == 0) bits = 0;
        t->rows[static_cast<size_t>(r * t->d + c)] = bits;
      }
    }
    if (Int(0, 29) == 0)
      t->rows[static_cast<size_t>(Int(0, 64 * t->d - 1))] = Int(0, 1) != 0 ? 0x7c00 : 0xfe00;
    if (Int(0, 29) == 0)
      t->rows[static_cast<size_t>(Int(0, 64 * t->d - 1))] = Int(0, 1) != 0 ? 0x7bff : 0xfbff;
  }

  std::mt19937_64 random_;
  float normal_[4096];
};

void Reference(Backend* cpu, Tile* t) {
  if (t->widths.empty()) {
    t->packed.assign(*VTileBytes(kind::VBits(t->bits), t->d, DType::kF16), std::byte{0xEE});
    t->status = cpu->QuantiseV(t->rows, t->d, t->bits, t->live, t->pins, t->packed, &t->v_exp);
  } else {
    t->packed.assign(*KTileBytes(kind::kLevel0, t->d, DType::kF16, t->widths, t->run),
                     std::byte{0xEE});
    t->status = cpu->QuantiseK(t->rows, t->d, t->widths, t->run, t->live, t->pins, t->packed);
  }
  if (!t->status.ok()) return;
  t->back.resize(t->rows.size());
  const Status s = t->widths.empty()
                       ? cpu->DequantiseV(t->packed, t->d, t->bits, t->v_exp, t->back)
                       : cpu->DequantiseK(t->packed, t->d, t->widths, t->run, t->back);
  ASSERT_TRUE(s.ok()) << s.ToString();
}

// Every worker makes and codes its share.
std::vector<Tile> MakeTiles(int d, uint64_t seed) {
  std::vector<Tile> tiles(kTilesAtOnce);
  const size_t workers = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> threads;
  for (size_t w = 0; w < workers; ++w)
    threads.emplace_back([&, w] {
      auto cpu = MakeCpuBackend();
      Maker maker(seed * 1000 + w);
      for (size_t i = w; i < tiles.size(); i += workers) {
        tiles[i] = maker.Make(d);
        Reference(cpu->get(), &tiles[i]);
      }
    });
  for (std::thread& t : threads) t.join();
  return tiles;
}

class Quantise : public ::testing::Test {
 protected:
  void SetUp() override {
    if (DeviceCount() == 0) GTEST_SKIP() << "no CUDA device";
    ASSERT_TRUE(plain_.Open().ok());
    ASSERT_TRUE(stream_.Open().ok());
    seed_ = testing::TestSeed();
  }

  // One launch, and the first tile that differs.
  void Compare(const std::vector<Tile>& tiles, int d) {
    size_t in = 0, out = 0, back = 0, places_bytes = 0;
    for (const Tile& t : tiles) {
      in += Staging::RoundUp(2 * t.rows.size());
      out += Staging::RoundUp(t.packed.size());
      back += Staging::RoundUp(2 * t.rows.size());
      places_bytes += Staging::RoundUp(sizeof(RunPlace) * t.widths.size());
    }
    ASSERT_TRUE(in_.Begin(in).ok());
    ASSERT_TRUE(out_.Begin(out).ok());
    std::vector<DeviceQuantise> jobs(tiles.size());
    std::vector<size_t> at(tiles.size());
    for (size_t i = 0; i < tiles.size(); ++i) {
      const Tile& t = tiles[i];
      const size_t from = in_.Take(2 * t.rows.size());
      std::memcpy(in_.host(from), t.rows.data(), 2 * t.rows.size());
      at[i] = out_.Take(t.packed.size());
      jobs[i] = {d, in_.device(from), t.widths, t.run, t.bits, t.live, t.pins, out_.device(at[i])};
    }
    std::memset(out_.host(0), 0xEE, out);  // what no kernel writes shows
    ASSERT_TRUE(in_.In(stream_.get()).ok());
    ASSERT_TRUE(out_.In(stream_.get()).ok());
    DeviceBatch batch(&plain_);
    batch.PlanQuantise(jobs);
    ASSERT_TRUE(batch.Upload(stream_.get()).ok());
    ASSERT_TRUE(batch.Launch(stream_.get()).ok());
    ASSERT_TRUE(out_.Out(stream_.get()).ok());
    const Status collected = batch.Collect(stream_.get());
    ASSERT_TRUE(collected.ok()) << collected.ToString();
    for (size_t i = 0; i < tiles.size(); ++i) {
      const Tile& t = tiles[i];
      SCOPED_TRACE(::testing::Message()
                   << "tile " << i << " d " << d << (t.widths.empty() ? " V bits " : " K run ")
                   << (t.widths.empty() ? t.bits : t.run) << " live " << std::hex << t.live
                   << " pins " << t.pins << " cpu " << t.status.ToString() << " flags "
                   << jobs[i].flags);
      ASSERT_EQ(jobs[i].flags == 0, t.status.ok());
      if (!t.status.ok()) {
        ++refused_;
        continue;
      }
      if (t.widths.empty()) {
        ASSERT_EQ(int{jobs[i].v_exp}, int{t.v_exp});
      }
      const std::byte* got = out_.host(at[i]);
      for (size_t k = 0; k < t.packed.size(); ++k)
        ASSERT_EQ(int(got[k]), int(t.packed[k])) << "byte " << k << " of " << t.packed.size();
    }
    CompareBack(tiles, d, back, places_bytes);
  }

  void CompareBack(const std::vector<Tile>& tiles, int d, size_t back, size_t places_bytes) {
    size_t packed = 0;
    for (const Tile& t : tiles) packed += Staging::RoundUp(t.packed.size());
    ASSERT_TRUE(
        in_.Begin(packed + places_bytes + tiles.size() * (256 + sizeof(DequantiseJob)) + 4096)
            .ok());
    ASSERT_TRUE(out_.Begin(back).ok());
    std::vector<DequantiseJob> jobs;
    std::vector<size_t> at;
    for (const Tile& t : tiles) {
      if (!t.status.ok()) continue;
      DequantiseJob job;
      const size_t tile = in_.Take(t.packed.size());
      std::memcpy(in_.host(tile), t.packed.data(), t.packed.size());
      const auto runs = PlaceRuns(t.widths, t.run, d);
      const size_t places = in_.Take(runs.size() * sizeof(RunPlace)), exponent = in_.Take(1);
      std::memcpy(in_.host(places), runs.data(), runs.size() * sizeof(RunPlace));
      std::memcpy(in_.host(exponent), &t.v_exp, 1);
      job.tile.at = in_.device(tile);
      job.tile.runs = reinterpret_cast<const RunPlace*>(in_.device(places));
      job.tile.v_exp = reinterpret_cast<const int8_t*>(in_.device(exponent));
      job.tile.run = static_cast<uint8_t>(t.run);
      job.tile.bits = static_cast<uint8_t>(t.bits);
      job.is_v = t.widths.empty() ? 1 : 0;
      at.push_back(out_.Take(2 * t.rows.size()));
      job.out = reinterpret_cast<uint16_t*>(out_.device(at.back()));
      jobs.push_back(job);
    }
    const size_t described = in_.Take(jobs.size() * sizeof(DequantiseJob));
    std::memcpy(in_.host(described), static_cast<const void*>(jobs.data()),
                jobs.size() * sizeof(DequantiseJob));
    ASSERT_TRUE(in_.In(stream_.get()).ok());
    ASSERT_TRUE(LaunchDequantise(reinterpret_cast<const DequantiseJob*>(in_.device(described)),
                                 static_cast<int>(jobs.size()), d, stream_.get()));
    ASSERT_TRUE(out_.Out(stream_.get()).ok());
    ASSERT_TRUE(WaitFor(stream_.get()).ok());
    size_t j = 0;
    for (const Tile& t : tiles) {
      if (!t.status.ok()) continue;
      ASSERT_EQ(std::memcmp(out_.host(at[j++]), t.back.data(), 2 * t.back.size()), 0) << "d " << d;
    }
  }

  PlainRuns plain_;
  Stream stream_;
  Staging in_, out_;
  uint64_t seed_ = 0;
  size_t refused_ = 0;
};

// 9 rounds of 6 head sizes of 2,048 tiles: 110,592.
TEST_F(Quantise, BytesAreThoseOfTheCpu) {
  const char* few = std::getenv("DYNA_FEW_TILES");  // under a checker of memory
  const uint64_t rounds = few != nullptr ? 1 : 9;
  for (uint64_t round = 0; round < rounds; ++round)
    for (const int d : kDims) {
      Compare(MakeTiles(d, seed_ + round * 64 + static_cast<uint64_t>(d)), d);
      if (HasFatalFailure()) return;
    }
  std::printf("%zu tiles, %zu refused by both\n", rounds * std::size(kDims) * kTilesAtOnce,
              refused_);
}

}  // namespace
}  // namespace dyna::cuda
