// Every instruction set of the CPU backend against goldens.txt and the binary goldens, which an
// independent numpy reference made from formats.md alone (make_goldens.py).
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/basis.h"
#ifdef DYNA_WITH_CUDA
#include "kernels/cuda/cuda_backend.h"
#endif
#include "kernels/segment.h"
#include "schemas/sha256.h"
#include "tests/golden/golden_inputs.h"

namespace dyna {
namespace {

std::string ShortHash(std::span<const std::byte> bytes) {
  const auto digest = Sha256(bytes);
  std::string hex;
  for (int i = 0; i < 8; ++i) {
    char two[3];
    std::snprintf(two, sizeof two, "%02x", static_cast<unsigned>(digest[static_cast<size_t>(i)]));
    hex += two;
  }
  return hex;
}
std::string ShortHash(const std::vector<uint16_t>& v) {
  return ShortHash(std::as_bytes(std::span(v)));
}

std::vector<std::byte> ReadGolden(const std::string& name) {
  std::ifstream in(std::string(DYNA_GOLDEN_DIR) + "/" + name, std::ios::binary);
  EXPECT_TRUE(in.good()) << name;
  const std::string s((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<std::byte> out(s.size());
  std::memcpy(out.data(), s.data(), s.size());
  return out;
}

double F16ToDouble(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

Result<std::unique_ptr<Backend>> Make(std::string_view name) {
#ifdef DYNA_WITH_CUDA
  if (name == "cuda") return MakeCudaBackend();
#endif
  return MakeCpuBackend(name);
}

class Golden : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto backend = Make(GetParam());
    if (!backend.ok()) {
      ASSERT_EQ(backend.status().code(), StatusCode::kUnsupported);
      GTEST_SKIP() << backend.status().ToString();
    }
    backend_ = std::move(*backend);
  }

  void CheckK(std::istream& in) {
    int d, run;
    std::string digits, name, input, packed_hash, decoded_hash;
    uint64_t seed, live, pins;
    in >> d >> run >> digits >> name >> std::dec >> seed >> std::hex >> live >> pins >> input >>
        packed_hash >> decoded_hash;
    ASSERT_FALSE(in.fail());
    const auto y = golden::MakeInput(name, seed, d);
    ASSERT_EQ(ShortHash(y), input);
    std::vector<uint8_t> widths;
    for (char c : digits) widths.push_back(static_cast<uint8_t>(c - '0'));
    const auto size = KTileBytes(kind::kLevel0, d, DType::kF16, widths, run);
    ASSERT_TRUE(size.has_value());
    std::vector<std::byte> packed(*size, std::byte{0xEE});
    const Status s = backend_->QuantiseK(y, d, widths, run, live, pins, packed);
    ASSERT_TRUE(s.ok()) << s.ToString();
    EXPECT_EQ(ShortHash(packed), packed_hash);
    std::vector<uint16_t> decoded(y.size());
    const Status back = backend_->DequantiseK(packed, d, widths, run, decoded);
    ASSERT_TRUE(back.ok()) << back.ToString();
    EXPECT_EQ(ShortHash(decoded), decoded_hash);
  }

  // The mean is not the quantiser's: it comes from a whole encode.
  void CheckMean(const std::vector<uint16_t>& v, int d, uint64_t live, uint64_t pins,
                 const std::string& packed_hash) {
    const TilePlan plan{kind::kPlain8, kind::VBits(0), live};
    std::vector<std::byte> out(1 << 20);
    EncodeJob job;
    job.id.kv_heads = 1;
    job.id.head_dim = static_cast<uint16_t>(d);
    job.id.dtype = DType::kF16;
    job.source.k = job.source.v = reinterpret_cast<const std::byte*>(v.data());
    job.source.k_token_stride = job.source.v_token_stride = d * 2;
    job.source.dtype = DType::kF16;
    job.pins = pins;
    job.plan = std::span(&plan, 1);
    job.out = out;
    backend_->Encode(std::span(&job, 1));
    ASSERT_TRUE(job.status.ok()) << job.status.ToString();
    const auto view = ParseSegment(std::span(out).first(job.bytes), nullptr);
    ASSERT_TRUE(view.ok()) << view.status().ToString();
    EXPECT_EQ(ShortHash(view->tile(0).v), packed_hash);
  }

  void CheckV(std::istream& in) {
    int d, bits, v_exp;
    std::string name, input, packed_hash, decoded_hash;
    uint64_t seed, live, pins;
    in >> d >> bits >> name >> seed >> std::hex >> live >> pins >> input >> packed_hash >>
        std::dec >> v_exp >> decoded_hash;
    ASSERT_FALSE(in.fail());
    const auto z = golden::MakeInput(name, seed, d);
    ASSERT_EQ(ShortHash(z), input);
    if (bits == 0) return CheckMean(z, d, live, pins, packed_hash);
    const auto size = VTileBytes(kind::VBits(bits), d, DType::kF16);
    ASSERT_TRUE(size.has_value());
    std::vector<std::byte> packed(*size, std::byte{0xEE});
    int8_t got_exp = 99;
    const Status s = backend_->QuantiseV(z, d, bits, live, pins, packed, &got_exp);
    ASSERT_TRUE(s.ok()) << s.ToString();
    EXPECT_EQ(int{got_exp}, v_exp);
    EXPECT_EQ(ShortHash(packed), packed_hash);
    std::vector<uint16_t> decoded(z.size());
    const Status back = backend_->DequantiseV(packed, d, bits, got_exp, decoded);
    ASSERT_TRUE(back.ok()) << back.ToString();
    EXPECT_EQ(ShortHash(decoded), decoded_hash);
  }

  std::unique_ptr<Backend> backend_;
};

TEST_P(Golden, QuantiserBytesAreThoseOfTheReference) {
  std::ifstream file(std::string(DYNA_GOLDEN_DIR) + "/goldens.txt");
  ASSERT_TRUE(file.good());
  std::string line;
  int lines = 0, wrong = 0;
  while (std::getline(file, line)) {
    ++lines;
    SCOPED_TRACE(line);
    std::istringstream in(line);
    std::string what;
    in >> what;
    what == "K" ? CheckK(in) : CheckV(in);
    if (HasFailure() && ++wrong > 12) FAIL() << "a dozen lines after the first failure";
  }
  EXPECT_GT(lines, 700);
}

TEST_P(Golden, BasisAndSegmentFilesAreUnderstood) {
  const auto basis_bytes = ReadGolden("basis_d64.bin");
  const auto basis = Basis::Parse(basis_bytes);
  ASSERT_TRUE(basis.ok()) << basis.status().ToString();
  EXPECT_EQ((*basis)->info().kv_heads, 3);
  EXPECT_EQ((*basis)->info().layer, 5);

  const auto stored = ReadGolden("segment_d64.bin");
  const auto checksum = VerifySegmentChecksum(stored);
  EXPECT_TRUE(checksum.ok()) << checksum.ToString();
  const auto view = ParseSegment(stored, basis->get());
  ASSERT_TRUE(view.ok()) << view.status().ToString();
  EXPECT_EQ(view->bytes().size(), stored.size());
  EXPECT_EQ(view->id().basis, (*basis)->name());
  EXPECT_EQ(view->id().block_index, 3u);
  EXPECT_EQ(view->pins(), 0x8000000000000011u);
  EXPECT_FALSE(ParseSegment(stored, nullptr).ok());
}

// What the reference decoded, within the bound of formats 2 and the rounding of both to f16.
TEST_P(Golden, SegmentDecodesToTheReference) {
  const auto basis_bytes = ReadGolden("basis_d64.bin");
  const auto stored = ReadGolden("segment_d64.bin");
  const auto want_bytes = ReadGolden("segment_d64_decoded.bin");
  const auto basis = Basis::Parse(basis_bytes);
  ASSERT_TRUE(basis.ok());
  constexpr int kD = 64, kHeads = 3, kTile = 64 * kD;
  std::vector<uint16_t> want(want_bytes.size() / 2), got(want.size());
  std::memcpy(want.data(), want_bytes.data(), want_bytes.size());
  ASSERT_EQ(want.size(), size_t{kHeads * 2 * kTile});

  Rope rope;
  rope.kind = RopeKind::kHalf;
  rope.rotary_dim = kD;
  for (int i = 0; i < kD / 2; ++i)
    rope.inv_freq.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / kD)));
  const RopeTable table(rope);

  DecodeJob job;
  job.segment = stored;
  job.basis = basis->get();
  job.rope = &table;
  job.head_begin = (*basis)->info().head0;
  job.head_end = static_cast<uint16_t>(job.head_begin + kHeads);
  job.target.k = reinterpret_cast<std::byte*>(got.data());
  job.target.v = job.target.k + kTile * 2;
  job.target.k_token_stride = job.target.v_token_stride = kD * 2;
  job.target.k_head_stride = job.target.v_head_stride = kTile * 4;
  job.target.dtype = DType::kF16;
  backend_->Decode(std::span(&job, 1));
  ASSERT_TRUE(job.status.ok()) << job.status.ToString();

  for (int row = 0; row < kHeads * 2 * 64; ++row) {
    double square = 0;
    for (int c = 0; c < kD; ++c) {
      const double w = F16ToDouble(want[static_cast<size_t>(row * kD + c)]);
      square += w * w;
    }
    const double rms = std::sqrt(square / kD);
    for (int c = 0; c < kD; ++c) {
      const auto at = static_cast<size_t>(row * kD + c);
      const double w = F16ToDouble(want[at]);
      ASSERT_NEAR(F16ToDouble(got[at]), w, rms / 1024 + std::abs(w) / 1024 + 1e-7)
          << "head " << row / 128 << (row / 64 % 2 ? " V" : " K") << " token " << row % 64
          << " channel " << c;
    }
  }
}

#ifdef DYNA_WITH_CUDA
INSTANTIATE_TEST_SUITE_P(Device, Golden, testing::Values("cuda"),
                         [](const auto& i) { return std::string(i.param); });
#endif
INSTANTIATE_TEST_SUITE_P(Isa, Golden, testing::Values("scalar", "avx2", "avx512"),
                         [](const auto& i) { return std::string(i.param); });

}  // namespace
}  // namespace dyna
