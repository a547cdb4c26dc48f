// The CPU backend: chooses a table of inner loops and hands the jobs of a batch to it, one by one.
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/codec_math.h"
#include "kernels/cpu/jobs.h"
#ifdef DYNA_WITH_HIGHWAY
#include "kernels/cpu/hwy_ops.h"
#endif

namespace dyna {
namespace {

#ifdef DYNA_WITH_HIGHWAY
const TileOps* Avx2Ops() { return HwyAvx2TileOps(); }
const TileOps* Avx512Ops() { return HwyAvx512TileOps(); }
#else
const TileOps* Avx2Ops() { return nullptr; }
const TileOps* Avx512Ops() { return nullptr; }
#endif

Status ToStatus(QuantiseResult result) {
  switch (result) {
    case QuantiseResult::kOk:
      return {};
    case QuantiseResult::kNotF16:
      return Invalid("a value or scale is outside the range of f16");
    case QuantiseResult::kAboveLog8:
      return TooLarge("a scale is above the top of LOG8");
  }
  return Internal("quantise");
}

// Token-major f16 <-> planes.
void ToPlanes(std::span<const uint16_t> rows, int d, float* planes) {
  for (int t = 0; t < kLanes; ++t)
    for (int c = 0; c < d; ++c)
      planes[c * kLanes + t] = codec::F16ToF32(rows[static_cast<size_t>(t * d + c)]);
}
void FromPlanes(const float* planes, int d, std::span<uint16_t> rows) {
  for (int t = 0; t < kLanes; ++t)
    for (int c = 0; c < d; ++c)
      rows[static_cast<size_t>(t * d + c)] = codec::F32ToF16(planes[c * kLanes + t]);
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const TileOps& ops)
      : ops_(ops), description_("cpu (" + std::string(ops.name) + ")") {}

  std::string_view name() const override { return "cpu"; }
  std::string_view description() const override { return description_; }

  void Encode(std::span<EncodeJob> jobs) override { ForEach(jobs, cpu::Encode); }
  void Decode(std::span<DecodeJob> jobs) override { ForEach(jobs, cpu::Decode); }
  void Transcode(std::span<TranscodeJob> jobs) override { ForEach(jobs, cpu::Transcode); }
  void Score(std::span<ScoreJob> jobs) override { ForEach(jobs, cpu::Score); }
  void Moments(std::span<MomentsJob> jobs) override { ForEach(jobs, cpu::Moments); }
  void QueryMoments(std::span<QueryMomentsJob> jobs) override { ForEach(jobs, cpu::QueryMoments); }

  Status QuantiseK(std::span<const uint16_t> y, int d, std::span<const uint8_t> widths, int run,
                   uint64_t live, uint64_t pins, std::span<std::byte> packed) override {
    DYNA_RETURN_IF_ERROR(CheckK(y.size(), d, widths, run, packed.size()));
    cpu::Scratch& scratch = cpu::ThreadScratch();
    ToPlanes(y, d, scratch.x);
    cpu::PackLanes(scratch.x, d, live);
    ErrorSums sums;
    return ToStatus(cpu::QuantiseRuns(ops_, scratch.x, d, widths, run, cpu::CountedRows(live, pins),
                                      packed, &sums));
  }

  Status QuantiseV(std::span<const uint16_t> z, int d, int bits, uint64_t live, uint64_t pins,
                   std::span<std::byte> packed, int8_t* v_exp) override {
    DYNA_RETURN_IF_ERROR(CheckV(z.size(), d, bits, packed.size()));
    cpu::Scratch& scratch = cpu::ThreadScratch();
    ToPlanes(z, d, scratch.x);
    cpu::PackLanes(scratch.x, d, live);
    ErrorSums sums;
    return ToStatus(ops_.quantise_v(scratch.x, d, bits, cpu::CountedRows(live, pins), packed.data(),
                                    packed.data() + cpu::GainBytes(bits), v_exp, &sums));
  }

  Status DequantiseK(std::span<const std::byte> packed, int d, std::span<const uint8_t> widths,
                     int run, std::span<uint16_t> y) override {
    DYNA_RETURN_IF_ERROR(CheckK(y.size(), d, widths, run, packed.size()));
    cpu::Scratch& scratch = cpu::ThreadScratch();
    cpu::DequantiseRuns(ops_, packed, d, d, widths, run, scratch.x);
    FromPlanes(scratch.x, d, y);
    return {};
  }

  Status DequantiseV(std::span<const std::byte> packed, int d, int bits, int8_t v_exp,
                     std::span<uint16_t> z) override {
    DYNA_RETURN_IF_ERROR(CheckV(z.size(), d, bits, packed.size()));
    cpu::Scratch& scratch = cpu::ThreadScratch();
    ops_.dequantise_v(packed.data(), packed.data() + cpu::GainBytes(bits), d, bits, v_exp,
                      scratch.x);
    FromPlanes(scratch.x, d, z);
    return {};
  }

 private:
  template <typename Job>
  void ForEach(std::span<Job> jobs,
               void (*run)(const TileOps&, cpu::Scratch&, cpu::RopeOfBlock&, Job&)) const {
    cpu::Scratch& scratch = cpu::ThreadScratch();
    cpu::RopeOfBlock rope(&scratch.rope);
    for (Job& job : jobs) run(ops_, scratch, rope, job);
  }

  static Status CheckK(size_t values, int d, std::span<const uint8_t> widths, int run,
                       size_t packed) {
    if (d < 16 || d > kMaxHeadDim || d % 16 != 0) return Invalid("head_dim");
    if ((run != 8 && run != 16) || widths.size() != static_cast<size_t>(d / run))
      return Invalid("run or widths");
    for (const uint8_t w : widths)
      if (w != 0 && w != 2 && w != 4 && w != 8) return Invalid("a width is not 0, 2, 4 or 8");
    if (values != static_cast<size_t>(kBlockTokens * d)) return Invalid("y: not [64][head_dim]");
    if (packed != *KTileBytes(kind::kLevel0, d, DType::kF16, widths, run))
      return Invalid("packed: size");
    return {};
  }

  static Status CheckV(size_t values, int d, int bits, size_t packed) {
    if (d < 16 || d > kMaxHeadDim || d % 16 != 0) return Invalid("head_dim");
    if (bits != 1 && bits != 2 && bits != 4 && bits != 8) return Invalid("bits");
    if (values != static_cast<size_t>(kBlockTokens * d)) return Invalid("z: not [64][head_dim]");
    if (packed != *VTileBytes(kind::VBits(bits), d, DType::kF16)) return Invalid("packed: size");
    return {};
  }

  const TileOps& ops_;
  const std::string description_;
};

}  // namespace

Result<std::unique_ptr<Backend>> MakeCpuBackend(std::string_view isa) {
  if (isa != "auto" && isa != "scalar" && isa != "avx2" && isa != "avx512")
    return Invalid("isa '" + std::string(isa) + "': not auto, scalar, avx2 or avx512");
  const TileOps* ops = nullptr;
  const bool any = isa == "auto";
  if (any || isa == "avx512") ops = Avx512Ops();
  if (ops == nullptr && (any || isa == "avx2")) ops = Avx2Ops();
  if (ops == nullptr && (any || isa == "scalar")) ops = &ScalarTileOps();
  if (ops == nullptr)
    return Unsupported("this machine or build has no " + std::string(isa) + " codec");
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(*ops));
}

}  // namespace dyna
