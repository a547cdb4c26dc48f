#include "kernels/fallback_backend.h"

#include <utility>
#include <vector>

namespace dyna {
namespace {

// Those of `jobs` whose status is `code`, once more on `cpu`. How many.
template <typename Job>
size_t Redo(std::span<Job> jobs, StatusCode code, Backend& cpu,
            void (Backend::*call)(std::span<Job>)) {
  std::vector<size_t> at;
  std::vector<Job> again;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (jobs[i].status.code() != code) continue;
    at.push_back(i);
    again.push_back(jobs[i]);
    again.back().status = {};
  }
  if (again.empty()) return 0;
  (cpu.*call)(again);
  for (size_t i = 0; i < at.size(); ++i) jobs[at[i]] = std::move(again[i]);
  return at.size();
}

}  // namespace

FallbackBackend::FallbackBackend(std::unique_ptr<Backend> device, std::unique_ptr<Backend> cpu)
    : device_(std::move(device)), cpu_(std::move(cpu)) {}

FallbackStats FallbackBackend::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void FallbackBackend::Failed(const Status& error, size_t jobs) {
  {
    const std::lock_guard lock(mutex_);
    ++stats_.failures;
    stats_.redone += jobs;
    stats_.last_error = std::string(error.message());
  }
  if (device_->lost() && told_) std::call_once(once_, [&] { told_(std::string(error.message())); });
}

template <typename Job>
void FallbackBackend::Run(std::span<Job> jobs, void (Backend::*call)(std::span<Job>)) {
  if (device_->lost()) return (cpu_.get()->*call)(jobs);
  (device_.get()->*call)(jobs);
  Status error;
  for (const Job& job : jobs)
    if (job.status.code() == StatusCode::kInternal) error = job.status;
  if (!error.ok()) Failed(error, Redo(jobs, StatusCode::kInternal, *cpu_, call));
}

void FallbackBackend::Encode(std::span<EncodeJob> jobs) {
  Run(jobs, &Backend::Encode);
  // Values beyond f16 that a transform makes fit are refused by a device whose rows are f16: the
  // CPU has the last word on what cannot be coded.
  if (!device_->lost()) Redo(jobs, StatusCode::kInvalid, *cpu_, &Backend::Encode);
}

void FallbackBackend::Decode(std::span<DecodeJob> jobs) { Run(jobs, &Backend::Decode); }
void FallbackBackend::Transcode(std::span<TranscodeJob> jobs) { Run(jobs, &Backend::Transcode); }
void FallbackBackend::Score(std::span<ScoreJob> jobs) { Run(jobs, &Backend::Score); }
void FallbackBackend::Moments(std::span<MomentsJob> jobs) { Run(jobs, &Backend::Moments); }
void FallbackBackend::QueryMoments(std::span<QueryMomentsJob> jobs) {
  Run(jobs, &Backend::QueryMoments);
}

template <typename Call>
Status FallbackBackend::One(const Call& call) {
  if (device_->lost()) return call(*cpu_);
  Status s = call(*device_);
  if (s.code() != StatusCode::kInternal) return s;
  Failed(s, 1);
  return call(*cpu_);
}

Status FallbackBackend::QuantiseK(std::span<const uint16_t> y, int head_dim,
                                  std::span<const uint8_t> widths, int run, uint64_t live,
                                  uint64_t pins, std::span<std::byte> packed) {
  return One([&](Backend& b) { return b.QuantiseK(y, head_dim, widths, run, live, pins, packed); });
}
Status FallbackBackend::QuantiseV(std::span<const uint16_t> z, int head_dim, int bits,
                                  uint64_t live, uint64_t pins, std::span<std::byte> packed,
                                  int8_t* v_exp) {
  return One([&](Backend& b) { return b.QuantiseV(z, head_dim, bits, live, pins, packed, v_exp); });
}
Status FallbackBackend::DequantiseK(std::span<const std::byte> packed, int head_dim,
                                    std::span<const uint8_t> widths, int run,
                                    std::span<uint16_t> y) {
  return One([&](Backend& b) { return b.DequantiseK(packed, head_dim, widths, run, y); });
}
Status FallbackBackend::DequantiseV(std::span<const std::byte> packed, int head_dim, int bits,
                                    int8_t v_exp, std::span<uint16_t> z) {
  return One([&](Backend& b) { return b.DequantiseV(packed, head_dim, bits, v_exp, z); });
}

}  // namespace dyna
