// For tests: a "device" that is the CPU, and fails when told to. The injection point for everything
// above FallbackBackend on machines without a GPU.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

#include "kernels/backend.h"

namespace dyna::testing {

class FaultyDevice final : public Backend {
 public:
  explicit FaultyDevice(std::unique_ptr<Backend> cpu) : cpu_(std::move(cpu)) {}

  std::atomic<int> failing{0};      // calls from now on that end INTERNAL
  std::atomic<bool> losing{false};  // the next call meets an error that sticks
  std::atomic<int> calls{0};
  bool spoils_output = true;  // a failing job leaves garbage where its result would be

  std::string_view name() const override { return "faulty"; }
  std::string_view description() const override { return "faulty (test)"; }
  size_t batch_bytes() const override { return size_t{1} << 20; }
  bool lost() const override { return gone_; }

  void Encode(std::span<EncodeJob> jobs) override {
    Run(jobs, &Backend::Encode, [](EncodeJob& j) { Spoil(j.out); });
  }
  void Decode(std::span<DecodeJob> jobs) override {
    Run(jobs, &Backend::Decode, [](DecodeJob&) {});
  }
  void Transcode(std::span<TranscodeJob> jobs) override {
    Run(jobs, &Backend::Transcode, [](TranscodeJob& j) { Spoil(j.out); });
  }
  void Score(std::span<ScoreJob> jobs) override {
    Run(jobs, &Backend::Score, [](ScoreJob&) {});
  }
  void Moments(std::span<MomentsJob> jobs) override {
    Run(jobs, &Backend::Moments, [](MomentsJob&) {});
  }
  void QueryMoments(std::span<QueryMomentsJob> jobs) override {
    Run(jobs, &Backend::QueryMoments, [](QueryMomentsJob&) {});
  }
  Status QuantiseK(std::span<const uint16_t> y, int d, std::span<const uint8_t> widths, int run,
                   uint64_t live, uint64_t pins, std::span<std::byte> packed) override {
    return Fails() ? Error() : cpu_->QuantiseK(y, d, widths, run, live, pins, packed);
  }
  Status QuantiseV(std::span<const uint16_t> z, int d, int bits, uint64_t live, uint64_t pins,
                   std::span<std::byte> packed, int8_t* v_exp) override {
    return Fails() ? Error() : cpu_->QuantiseV(z, d, bits, live, pins, packed, v_exp);
  }
  Status DequantiseK(std::span<const std::byte> packed, int d, std::span<const uint8_t> widths,
                     int run, std::span<uint16_t> y) override {
    return Fails() ? Error() : cpu_->DequantiseK(packed, d, widths, run, y);
  }
  Status DequantiseV(std::span<const std::byte> packed, int d, int bits, int8_t v_exp,
                     std::span<uint16_t> z) override {
    return Fails() ? Error() : cpu_->DequantiseV(packed, d, bits, v_exp, z);
  }

 private:
  bool Fails() {
    ++calls;
    if (losing) gone_ = true;
    if (gone_) return true;
    int left = failing;
    while (left > 0)
      if (failing.compare_exchange_weak(left, left - 1)) return true;
    return false;
  }
  Status Error() const { return Internal(gone_ ? "device lost: test" : "cuda: launch: test"); }
  static void Spoil(std::span<std::byte> out) {
    for (std::byte& b : out) b = std::byte{0xee};
  }
  template <typename Job, typename Ruin>
  void Run(std::span<Job> jobs, void (Backend::*call)(std::span<Job>), const Ruin& ruin) {
    if (!Fails()) return (cpu_.get()->*call)(jobs);
    for (Job& job : jobs) {
      if (spoils_output) ruin(job);
      job.status = Error();
    }
  }

  const std::unique_ptr<Backend> cpu_;
  std::atomic<bool> gone_{false};
};

}  // namespace dyna::testing
