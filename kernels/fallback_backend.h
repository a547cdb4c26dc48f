// A device's backend that never fails its caller: what the device could not do is done again on the
// CPU, and counted. A lost device (Backend::lost) is left alone from then on and told once.
//
// Calls may come from several threads at once. Jobs are done again from their own sources: where
// those are a client's memory they are read a second time.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "kernels/backend.h"

namespace dyna {

struct FallbackStats {
  uint64_t failures = 0;   // calls that the device could not do all of
  uint64_t redone = 0;     // jobs that the CPU did for that reason
  std::string last_error;  // of the latest failure
};

class FallbackBackend final : public Backend {
 public:
  // `device` says INTERNAL of a job that it could not do for a reason of its own; its Moments and
  // QueryMoments then added nothing.
  FallbackBackend(std::unique_ptr<Backend> device, std::unique_ptr<Backend> cpu);

  // Called once, on the thread of the call that lost the device, with its error. Set it before the
  // first call.
  void OnLost(std::function<void(const std::string& error)> told) { told_ = std::move(told); }
  FallbackStats stats() const;

  std::string_view name() const override { return device_->name(); }
  std::string_view description() const override { return device_->description(); }
  size_t batch_bytes() const override { return device_->batch_bytes(); }
  bool lost() const override { return device_->lost(); }

  void Encode(std::span<EncodeJob> jobs) override;
  void Decode(std::span<DecodeJob> jobs) override;
  void Transcode(std::span<TranscodeJob> jobs) override;
  void Score(std::span<ScoreJob> jobs) override;
  void Moments(std::span<MomentsJob> jobs) override;
  void QueryMoments(std::span<QueryMomentsJob> jobs) override;

  Status QuantiseK(std::span<const uint16_t> y, int head_dim, std::span<const uint8_t> widths,
                   int run, uint64_t live, uint64_t pins, std::span<std::byte> packed) override;
  Status QuantiseV(std::span<const uint16_t> z, int head_dim, int bits, uint64_t live,
                   uint64_t pins, std::span<std::byte> packed, int8_t* v_exp) override;
  Status DequantiseK(std::span<const std::byte> packed, int head_dim,
                     std::span<const uint8_t> widths, int run, std::span<uint16_t> y) override;
  Status DequantiseV(std::span<const std::byte> packed, int head_dim, int bits, int8_t v_exp,
                     std::span<uint16_t> z) override;

 private:
  template <typename Job>
  void Run(std::span<Job> jobs, void (Backend::*call)(std::span<Job>));
  template <typename Call>
  Status One(const Call& call);
  void Failed(const Status& error, size_t jobs);

  const std::unique_ptr<Backend> device_, cpu_;
  std::function<void(const std::string&)> told_;
  std::once_flag once_;
  mutable std::mutex mutex_;
  FallbackStats stats_;
};

}  // namespace dyna
