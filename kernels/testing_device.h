// For tests: a "device" that is the CPU, and fails when told to, and memory that is on no host. The
// injection points for everything above FallbackBackend on machines without a GPU.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/shared_device.h"

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

// One allocation of a device that is not there: following its addresses on the CPU faults, and the
// bytes behind them are the test's to see. Handles are opened in the process that made them.
class FakeMemory final : public SharedDevice {
 public:
  explicit FakeMemory(size_t bytes) : bytes_(bytes) {
    void* p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    base_ = static_cast<std::byte*>(p);
  }
  ~FakeMemory() override { munmap(base_, bytes_.size()); }

  static constexpr std::array<uint8_t, 16> kDevice{0xfa, 0xce};
  std::byte* device() const { return base_; }
  std::span<std::byte> bytes() { return bytes_; }
  std::vector<uint8_t> handle() const {
    std::vector<uint8_t> handle(64);
    std::memcpy(handle.data(), &base_, sizeof base_);
    return handle;
  }
  std::atomic<int> open{0}, opened{0}, copies{0};
  std::atomic<bool> failing{false};
  // Outlives this.
  const std::shared_ptr<std::atomic<size_t>> pinned = std::make_shared<std::atomic<size_t>>(0);

  Result<std::unique_ptr<Mapping>> Open(const Handle& h) override {
    if (h.device != kDevice) return Unsupported("memory of another GPU than this daemon's");
    const auto mine = handle();
    if (!std::equal(h.handle.begin(), h.handle.end(), mine.begin(), mine.end()))
      return Invalid("handle: cannot be opened");
    if (h.offset > bytes_.size() || h.bytes > bytes_.size() - h.offset)
      return Invalid("region: beyond its allocation of " + std::to_string(bytes_.size()));
    ++opened;
    return std::unique_ptr<Mapping>(new Opened(this, base_ + h.offset));
  }
  Status PinHost(std::span<std::byte> next) override {
    if (failing) return Internal("cuda: pinning: test");
    *pinned += next.size();
    return {};
  }
  void UnpinHost() override { *pinned = 0; }
  Status ToHost(const std::byte* from, int64_t stride, size_t row, size_t rows,
                std::byte* to) override {
    ++copies;
    if (failing) return Internal("device lost: test");
    for (size_t r = 0; r < rows; ++r)
      std::memcpy(to + r * row, At(from + static_cast<int64_t>(r) * stride, row), row);
    return {};
  }
  Status ToDevice(const std::byte* from, size_t row, size_t rows, std::byte* to,
                  int64_t stride) override {
    ++copies;
    if (failing) return Internal("device lost: test");
    for (size_t r = 0; r < rows; ++r)
      std::memcpy(At(to + static_cast<int64_t>(r) * stride, row), from + r * row, row);
    return {};
  }

 private:
  struct Opened final : Mapping {
    Opened(FakeMemory* m, std::byte* data) : memory(m) {
      data_ = data;
      ++memory->open;
    }
    ~Opened() override { --memory->open; }
    FakeMemory* memory;
  };
  std::byte* At(const std::byte* address, size_t n) {
    const size_t at = static_cast<size_t>(address - base_);
    if (address < base_ || at > bytes_.size() || n > bytes_.size() - at) std::abort();
    return bytes_.data() + at;
  }

  std::byte* base_ = nullptr;
  std::vector<std::byte> bytes_;
};

}  // namespace dyna::testing
