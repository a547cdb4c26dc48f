// Put and fetch, on the loop: cut into messages, each by the cheapest way there is, a window of
// them in flight. `done` runs once, when every message was answered.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "client/core.h"
#include "client/kv_run.h"
#include "client/requests.h"

namespace dyna {

void StartPut(const std::shared_ptr<ClientCore>& core, std::shared_ptr<ContextState> context,
              PutRequest request, std::function<void(PutResult)> done);
void StartFetch(const std::shared_ptr<ClientCore>& core, std::shared_ptr<LeaseState> lease,
                FetchRequest request, std::function<void(FetchResult)> done);

// ---- what the two share

// How a piece of K and V travels.
enum class Route : uint8_t {
  kNamed,   // where it lies, in a registered region
  kStaged,  // copied through the staging region
  kSocket,  // in a frame
  kUcx,     // in a frame over UCX
};
struct Plan {
  Route route = Route::kSocket;
  std::shared_ptr<RegisteredRegion> region;  // kNamed
  std::vector<Piece> pieces;
  size_t window = 1;  // messages in flight
};
// `stored`: the reply brings segments as they are stored, which come in frames only.
Result<Plan> MakePlan(ClientCore& core, const KvRun& run, size_t max_segments, bool stored);

// Starts pieces 0, 1, .. with at most `window` open. A piece ends by calling its argument: false
// means that the rest is not worth starting. `done` gets how many were started.
using PieceEnd = std::function<void(bool go_on)>;
void RunPieces(size_t pieces, size_t window, std::function<void(size_t, PieceEnd)> start,
               std::function<void(size_t)> done);

// Puts a piece's outcome where it belongs in the whole: its segments, and the first failure by
// position. `reply` has one status a segment, or none when the message failed as a whole.
class Outcome {
 public:
  explicit Outcome(size_t segments) : segments_(segments) {}
  // False when the whole message failed in a way that the next ones would, too.
  bool Take(const KvRun& run, const Piece& piece, const Status& status,
            const std::vector<wire::SegmentStatus>& segments);
  void Fail(size_t segment, Status status);
  // Nobody asked for it: a miss, and no failure.
  void LeaveOut(size_t segment) { segments_[segment].status = StatusCode::kMiss; }
  // What was never sent has the status of what stopped it.
  void Skip(const KvRun& run, const Piece& piece);
  Status status() const { return status_; }
  std::vector<wire::SegmentStatus>& segments() { return segments_; }

 private:
  void Note(size_t segment, const Status& status);
  std::vector<wire::SegmentStatus> segments_;
  Status status_, stopped_by_;
  size_t at_ = SIZE_MAX;
};

}  // namespace dyna
