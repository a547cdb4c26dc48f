// One way to the device and back: pinned staging for what is in host memory (K and V that are on
// the device are coded where they lie), a stream, a batch, and its own copies of bases and ropes.
// Lanes share nothing, so that copies and kernels of one run beside those of another.
//
// Thread rule: belongs to one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/device_batch.h"
#include "kernels/cuda/device_cache.h"
#include "kernels/cuda/device_moments.h"
#include "kernels/cuda/span_copier.h"
#include "kernels/cuda/staging.h"

namespace dyna::cuda {

// Bytes that the segment of `job` can need: a level may become plain8.
size_t OutBytes(const EncodeJob& job);

class Lane {
 public:
  explicit Lane(const PlainRuns* plain) : plain_(plain), batch_(plain) {}  // which outlives it
  Status Open() { return stream_.Open(); }
  void Trim() { cache_.Trim(); }  // between calls

  // Results are in the jobs; an error is the device's, and then none of the jobs is done.
  Status Encode(std::span<EncodeJob*> jobs);
  Status Decode(std::span<DecodeJob*> jobs);
  Status Transcode(std::span<TranscodeJob*> jobs);
  Status Score(std::span<ScoreJob*> jobs);      // groups of at most 16 query heads
  Status Moments(std::span<MomentsJob*> jobs);  // of this and the next: checked (moments_plan.h)
  Status QueryMoments(std::span<QueryMomentsJob*> jobs);
  Status Quantise(std::span<const uint16_t> rows, int d, uint64_t live, uint64_t pins,
                  std::span<std::byte> packed, int8_t* v_exp, DeviceQuantise* job);
  Status Dequantise(std::span<const std::byte> packed, const std::vector<RunPlace>& runs,
                    int8_t v_exp, int d, std::span<uint16_t> out, DequantiseJob job);

 private:
  // Segments in, of at most so many rounded bytes in all. Where the device reaches them by itself
  // they need no staging of the host.
  Status BeginIn(size_t bytes);
  std::byte* TakeSegment(std::span<const std::byte> segment);  // where it will be on the device
  Status SendIn();
  // Segments out: which of them the device puts where they belong.
  template <class DeviceJob, class Job>
  std::vector<bool> PlanOut(const std::vector<DeviceJob>& batch, const std::vector<Job*>& owners,
                            const std::vector<size_t>& at);
  // What was planned; `stage`: out_ is wanted on the host, too.
  Status RunBatch(bool stage);

  struct Scoring;
  Status StageWindow(const ScoreJob& job, Scoring* scoring);
  Status StageBlocks(const ScoreJob& job, size_t part, Scoring* scoring);
  Status ScoreOne(ScoreJob* job);

  template <typename Job>
  Status MomentsOf(std::vector<Job*> jobs, bool centred);
  template <typename Job>
  Status MomentsByDim(std::span<Job*> jobs, bool centred);

  DeviceCache cache_;
  Stream stream_;
  Staging in_, out_, mass_;
  SpanCopier from_host_, to_host_;            // segments where the device reaches them
  bool staged_in_ = false;                    // some of in_ comes from the host's side of it
  DeviceMemory decoded_, partial_, queries_;  // of scores
  const PlainRuns* const plain_;
  DeviceBatch batch_;
  DeviceMomentsBatch moments_;
  std::vector<std::unique_ptr<DeviceBatch>> parts_;  // of a chain that is scored
};

}  // namespace dyna::cuda
