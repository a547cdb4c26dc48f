// The CPU's backend for jobs whose K and V may be on a device: it copies them to the host and back,
// job by job. What stands behind a device's backend where that cannot do a job itself, so slow is
// all right; following an address of the device on the CPU is not.
//
// Calls may come from several threads at once.
#pragma once

#include <memory>

#include "kernels/backend.h"
#include "kernels/shared_device.h"

namespace dyna {

class HostCopyBackend final : public Backend {
 public:
  // `device` outlives it.
  HostCopyBackend(std::unique_ptr<Backend> cpu, DeviceCopier* device)
      : cpu_(std::move(cpu)), device_(*device) {}

  std::string_view name() const override { return cpu_->name(); }
  std::string_view description() const override { return cpu_->description(); }
  size_t batch_bytes() const override { return cpu_->batch_bytes(); }

  // A job whose memory cannot be copied ends INTERNAL, and so says that it was the device's.
  void Encode(std::span<EncodeJob> jobs) override;
  void Decode(std::span<DecodeJob> jobs) override;
  void Moments(std::span<MomentsJob> jobs) override;
  void Transcode(std::span<TranscodeJob> jobs) override { cpu_->Transcode(jobs); }
  void Score(std::span<ScoreJob> jobs) override { cpu_->Score(jobs); }
  void QueryMoments(std::span<QueryMomentsJob> jobs) override { cpu_->QueryMoments(jobs); }

  Status QuantiseK(std::span<const uint16_t> y, int head_dim, std::span<const uint8_t> widths,
                   int run, uint64_t live, uint64_t pins, std::span<std::byte> packed) override {
    return cpu_->QuantiseK(y, head_dim, widths, run, live, pins, packed);
  }
  Status QuantiseV(std::span<const uint16_t> z, int head_dim, int bits, uint64_t live,
                   uint64_t pins, std::span<std::byte> packed, int8_t* v_exp) override {
    return cpu_->QuantiseV(z, head_dim, bits, live, pins, packed, v_exp);
  }
  Status DequantiseK(std::span<const std::byte> packed, int head_dim,
                     std::span<const uint8_t> widths, int run, std::span<uint16_t> y) override {
    return cpu_->DequantiseK(packed, head_dim, widths, run, y);
  }
  Status DequantiseV(std::span<const std::byte> packed, int head_dim, int bits, int8_t v_exp,
                     std::span<uint16_t> z) override {
    return cpu_->DequantiseV(packed, head_dim, bits, v_exp, z);
  }

 private:
  template <typename Job>
  void FromHost(std::span<Job> jobs, void (Backend::*call)(std::span<Job>));

  const std::unique_ptr<Backend> cpu_;
  DeviceCopier& device_;
};

}  // namespace dyna
