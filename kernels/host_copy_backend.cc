#include "kernels/host_copy_backend.h"

#include <string>
#include <vector>

namespace dyna {
namespace {

// Dense K, then V, of [heads][64][head_dim] on the host. v: null where only K is wanted.
struct HostKv {
  std::vector<std::byte> bytes;
  std::byte *k = nullptr, *v = nullptr;
  int64_t row = 0, tile = 0;

  HostKv(int heads, int head_dim, DType dtype, bool with_v) {
    row = int64_t{head_dim} * DTypeBytes(dtype);
    tile = kBlockTokens * row;
    bytes.resize(static_cast<size_t>(heads * tile) * (with_v ? 2 : 1));
    k = bytes.data();
    v = with_v ? k + heads * tile : nullptr;
  }
  template <typename View>
  View ViewOf(DType dtype) const {
    return {k, v, row, tile, row, tile, dtype, false};
  }
};

int HeadsOf(const EncodeJob& job) { return job.id.kv_heads; }
int HeadsOf(const MomentsJob& job) { return job.kv_heads; }
int DimOf(const EncodeJob& job) { return job.id.head_dim; }
int DimOf(const MomentsJob& job) { return job.head_dim; }
constexpr bool ReadsV(const EncodeJob*) { return true; }
constexpr bool ReadsV(const MomentsJob*) { return false; }

// Those of the host one after the other, as they are; the others by `each`.
template <typename Job, typename OnDevice, typename Host, typename Each>
void Separate(std::span<Job> jobs, const OnDevice& on_device, const Host& host, const Each& each) {
  for (size_t begin = 0; begin < jobs.size();) {
    size_t end = begin;
    while (end < jobs.size() && !on_device(jobs[end])) ++end;
    if (end > begin) host(jobs.subspan(begin, end - begin));
    if (end < jobs.size()) each(jobs[end++]);
    begin = end;
  }
}

}  // namespace

template <typename Job>
void HostCopyBackend::FromHost(std::span<Job> jobs, void (Backend::*call)(std::span<Job>)) {
  const auto each = [&](Job& job) {
    const KvView there = job.source;
    const int heads = HeadsOf(job);
    const HostKv here(heads, DimOf(job), there.dtype, ReadsV(&job));
    Status copied;
    for (int h = 0; h < heads && copied.ok(); ++h) {
      const auto row = static_cast<size_t>(here.row);
      copied = device_.ToHost(there.k + h * there.k_head_stride, there.k_token_stride, row,
                              kBlockTokens, here.k + h * here.tile);
      if (copied.ok() && here.v != nullptr)
        copied = device_.ToHost(there.v + h * there.v_head_stride, there.v_token_stride, row,
                                kBlockTokens, here.v + h * here.tile);
    }
    if (!copied.ok()) {
      job.status = Internal("source on the GPU: " + std::string(copied.message()));
      return;
    }
    job.source = here.ViewOf<KvView>(there.dtype);
    (cpu_.get()->*call)(std::span(&job, 1));
    job.source = there;  // whoever asked may read it again
  };
  Separate(
      jobs, [](const Job& job) { return job.source.on_device; },
      [&](std::span<Job> some) { (cpu_.get()->*call)(some); }, each);
}

void HostCopyBackend::Encode(std::span<EncodeJob> jobs) { FromHost(jobs, &Backend::Encode); }
void HostCopyBackend::Moments(std::span<MomentsJob> jobs) { FromHost(jobs, &Backend::Moments); }

void HostCopyBackend::Decode(std::span<DecodeJob> jobs) {
  const auto each = [&](DecodeJob& job) {
    const MutableKvView there = job.target;
    const auto header = ParseSegmentHeader(job.segment);
    const int heads = job.head_end - job.head_begin;
    if (!header.ok() || heads <= 0) {
      job.status = header.ok() ? Invalid("head range: empty") : header.status();
      return;
    }
    const HostKv here(heads, header->id.head_dim, there.dtype, true);
    job.target = here.ViewOf<MutableKvView>(there.dtype);
    cpu_->Decode(std::span(&job, 1));
    job.target = there;
    Status copied;
    for (int h = 0; h < heads && job.status.ok() && copied.ok(); ++h) {
      const auto row = static_cast<size_t>(here.row);
      copied = device_.ToDevice(here.k + h * here.tile, row, kBlockTokens,
                                there.k + h * there.k_head_stride, there.k_token_stride);
      if (copied.ok())
        copied = device_.ToDevice(here.v + h * here.tile, row, kBlockTokens,
                                  there.v + h * there.v_head_stride, there.v_token_stride);
    }
    if (!copied.ok()) job.status = Internal("target on the GPU: " + std::string(copied.message()));
  };
  Separate(
      jobs, [](const DecodeJob& job) { return job.target.on_device; },
      [&](std::span<DecodeJob> some) { cpu_->Decode(some); }, each);
}

}  // namespace dyna
