#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/host_rows.h"
#include "kernels/cuda/lane.h"
#include "kernels/host_copy_backend.h"

namespace dyna {
namespace cuda {
namespace {

// Bytes of a call that are on their way at once: of one lane.
constexpr size_t kStagedBytes = size_t{64} << 20;
// Enough that launches and waits are a small part of the copies.
constexpr size_t kBatchBytes = size_t{8} << 20;

// Lanes, each used by one call at a time.
class Lanes {
 public:
  Status Open(int count) {
    DYNA_RETURN_IF_ERROR(plain_.Open());
    for (int i = 0; i < std::max(count, 1); ++i) {
      all_.push_back(std::make_unique<Lane>(&plain_));
      DYNA_RETURN_IF_ERROR(all_.back()->Open());
      free_.push_back(all_.back().get());
    }
    return {};
  }
  // What `use` (called with a lane; waits for one) says.
  template <typename Use>
  Status With(const Use& use) {
    Lane* lane = nullptr;
    {
      std::unique_lock lock(mutex_);
      returned_.wait(lock, [this] { return !free_.empty(); });
      lane = free_.back();  // the one used last: its buffers have grown
      free_.pop_back();
    }
    lane->Trim();
    Status s = use(*lane);
    {
      const std::lock_guard lock(mutex_);
      free_.push_back(lane);
    }
    returned_.notify_one();
    return s;
  }

 private:
  PlainRuns plain_;
  std::vector<std::unique_ptr<Lane>> all_;
  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<Lane*> free_;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(std::unique_ptr<Backend> cpu)
      : cpu_(std::move(cpu)), description_("cuda (" + DeviceName() + ")") {}
  Status Open(int lanes) { return lanes_.Open(lanes); }

  std::string_view name() const override { return "cuda"; }
  std::string_view description() const override { return description_; }
  size_t batch_bytes() const override { return kBatchBytes; }
  bool lost() const override { return DeviceLost(); }

  void Encode(std::span<EncodeJob> jobs) override {
    InChunks(
        jobs, [](const EncodeJob& job) { return HasKernels(job.id.head_dim); },
        [](const EncodeJob& job) {
          return OutBytes(job) + (InPlace(job.source)
                                      ? 0
                                      : KvBytes(job.id.kv_heads, job.id.head_dim, job.id.dtype));
        },
        &Lane::Encode, [this](EncodeJob& job) { cpu_->Encode(std::span(&job, 1)); });
  }
  void Decode(std::span<DecodeJob> jobs) override {
    InChunks(
        jobs, [](const DecodeJob& job) { return HasKernels(DimOf(job.segment)); },
        [](const DecodeJob& job) {
          const auto header = ParseSegmentHeader(job.segment);
          const int heads = job.head_end - job.head_begin;
          return job.segment.size() + (header.ok() && heads > 0 && !InPlace(job.target)
                                           ? KvBytes(heads, header->id.head_dim, job.target.dtype)
                                           : 0);
        },
        &Lane::Decode, [this](DecodeJob& job) { cpu_->Decode(std::span(&job, 1)); });
  }
  void Transcode(std::span<TranscodeJob> jobs) override {
    InChunks(
        jobs, [](const TranscodeJob& job) { return HasKernels(DimOf(job.segment)); },
        [](const TranscodeJob& job) { return 2 * job.segment.size() + 65536; }, &Lane::Transcode,
        [this](TranscodeJob& job) { cpu_->Transcode(std::span(&job, 1)); });
  }
  void Score(std::span<ScoreJob> jobs) override {
    constexpr int kSlots = 16;  // query heads of a group that the kernels have room for
    InChunks(
        jobs,
        [](const ScoreJob& job) {
          if (job.chain.empty()) return false;
          const auto header = ParseSegmentHeader(job.chain[0].segment);
          return header.ok() && job.q_heads <= kSlots * header->id.kv_heads &&
                 HasKernels(header->id.head_dim);
        },
        [](const ScoreJob&) { return kStagedBytes; }, &Lane::Score,
        [this](ScoreJob& job) { cpu_->Score(std::span(&job, 1)); });
  }
  void Moments(std::span<MomentsJob> jobs) override {
    AddMoments(
        jobs, [](const MomentsJob& job) { return RawTileBytes(job.head_dim, job.source.dtype); },
        &Lane::Moments, [this](MomentsJob& job) { cpu_->Moments(std::span(&job, 1)); });
  }
  void QueryMoments(std::span<QueryMomentsJob> jobs) override {
    AddMoments(
        jobs, [](const QueryMomentsJob& job) { return job.queries.size_bytes() / job.kv_heads; },
        &Lane::QueryMoments,
        [this](QueryMomentsJob& job) {
          cpu_->QueryMoments({&job, 1});
        });
  }

  Status QuantiseK(std::span<const uint16_t> y, int d, std::span<const uint8_t> widths, int run,
                   uint64_t live, uint64_t pins, std::span<std::byte> packed) override {
    if (!HasKernels(d) || y.size() != static_cast<size_t>(kBlockTokens * d) ||
        packed.size() != KTileBytes(kind::kLevel0, d, DType::kF16, widths, run))
      return cpu_->QuantiseK(y, d, widths, run, live, pins, packed);
    DeviceQuantise job;
    job.widths.assign(widths.begin(), widths.end());
    job.run = run;
    int8_t unused;
    return lanes_.With(
        [&](Lane& lane) { return lane.Quantise(y, d, live, pins, packed, &unused, &job); });
  }
  Status QuantiseV(std::span<const uint16_t> z, int d, int bits, uint64_t live, uint64_t pins,
                   std::span<std::byte> packed, int8_t* v_exp) override {
    if (!HasKernels(d) || z.size() != static_cast<size_t>(kBlockTokens * d) ||
        (bits != 1 && bits != 2 && bits != 4 && bits != 8) ||
        packed.size() != VTileBytes(kind::VBits(bits), d, DType::kF16))
      return cpu_->QuantiseV(z, d, bits, live, pins, packed, v_exp);
    DeviceQuantise job;
    job.bits = bits;
    return lanes_.With(
        [&](Lane& lane) { return lane.Quantise(z, d, live, pins, packed, v_exp, &job); });
  }
  Status DequantiseK(std::span<const std::byte> packed, int d, std::span<const uint8_t> widths,
                     int run, std::span<uint16_t> y) override {
    if (y.size() != static_cast<size_t>(kBlockTokens * d) ||
        packed.size() != KTileBytes(kind::kLevel0, d, DType::kF16, widths, run))
      return cpu_->DequantiseK(packed, d, widths, run, y);
    DequantiseJob job;
    job.tile.run = static_cast<uint8_t>(run);
    return lanes_.With([&](Lane& lane) {
      return lane.Dequantise(packed, PlaceRuns(widths, run, d), 0, d, y, job);
    });
  }
  Status DequantiseV(std::span<const std::byte> packed, int d, int bits, int8_t v_exp,
                     std::span<uint16_t> z) override {
    if (z.size() != static_cast<size_t>(kBlockTokens * d) || bits < 1 || bits > 8 ||
        packed.size() != VTileBytes(kind::VBits(bits), d, DType::kF16))
      return cpu_->DequantiseV(packed, d, bits, v_exp, z);
    DequantiseJob job;
    job.tile.bits = static_cast<uint8_t>(bits);
    job.is_v = 1;
    return lanes_.With([&](Lane& lane) { return lane.Dequantise(packed, {}, v_exp, d, z, job); });
  }

 private:
  static int DimOf(std::span<const std::byte> segment) {
    const auto header = ParseSegmentHeader(segment);
    return header.ok() ? header->id.head_dim : 0;
  }

  // Rows on the device are read where they are, an element at a time.
  static bool Reaches(const MomentsJob& job) {
    const auto at = static_cast<int64_t>(reinterpret_cast<uintptr_t>(job.source.k));
    return !job.source.on_device || (at | job.source.k_token_stride | job.source.k_head_stride) %
                                            DTypeBytes(job.source.dtype) ==
                                        0;
  }
  static bool Reaches(const QueryMomentsJob&) { return true; }

  // Of any head size; what does not fit is refused by the CPU. `head_bytes`: staged for a kv head.
  template <typename Job, typename HeadBytes, typename Cpu>
  void AddMoments(std::span<Job> jobs, const HeadBytes& head_bytes,
                  Status (Lane::*some)(std::span<Job*>), const Cpu& cpu) {
    InChunks(
        jobs, [](const Job& job) { return CheckMoments(job).ok() && Reaches(job); },
        [&](const Job& job) {
          return job.kv_heads *
                 (head_bytes(job) + sizeof(float) * DeviceMomentsBatch::Stride(job.head_dim));
        },
        some, cpu);
  }

  // Runs jobs that have kernels in chunks of bounded size, the others (and what cannot even be
  // read, for its message) on the CPU. A failing device fails the jobs of its chunk.
  template <typename Job, typename Has, typename Size, typename Cpu>
  void InChunks(std::span<Job> jobs, const Has& has_kernels, const Size& size,
                Status (Lane::*some)(std::span<Job*>), const Cpu& cpu) {
    std::vector<Job*> chunk;
    size_t bytes = 0;
    const auto flush = [&] {
      if (chunk.empty()) return;
      const Status s = lanes_.With([&](Lane& lane) { return (lane.*some)(chunk); });
      if (!s.ok())
        for (Job* job : chunk) job->status = s;
      chunk.clear();
      bytes = 0;
    };
    for (Job& job : jobs) {
      if (!has_kernels(job)) {
        cpu(job);
        continue;
      }
      chunk.push_back(&job);
      bytes += size(job);
      if (bytes >= kStagedBytes) flush();
    }
    flush();
  }

  const std::unique_ptr<Backend> cpu_;
  const std::string description_;
  Lanes lanes_;
};

}  // namespace
}  // namespace cuda

Result<CudaDevice> FindCudaDevice() {
  const std::string driver = cuda::DriverVersion();
  if (driver.empty()) return Unsupported("there is no CUDA driver (libcuda.so.1)");
  if (cuda::DeviceCount() == 0)
    return Unsupported("driver " + driver + " shows no CUDA device to this process");
  return CudaDevice{cuda::DeviceName(), driver};
}

Result<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options) {
  const auto device = FindCudaDevice();
  if (!device.ok()) return device.status();
  DYNA_RETURN_IF_ERROR(cuda::SleepWhileWaiting());
  DYNA_ASSIGN_OR_RETURN(std::unique_ptr<Backend> cpu, MakeCpuBackend(options.isa));
  if (options.shared != nullptr)
    cpu = std::make_unique<HostCopyBackend>(std::move(cpu), options.shared);
  auto backend = std::make_unique<cuda::CudaBackend>(std::move(cpu));
  DYNA_RETURN_IF_ERROR(backend->Open(options.lanes));
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace dyna
