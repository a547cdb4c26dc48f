#include "client/transfer.h"

#include <algorithm>
#include <string>
#include <utility>

namespace dyna {
namespace {

// Large enough to keep a codec thread busy, small enough to overlap with its neighbours.
constexpr uint64_t kFrameBytes = 8u << 20, kStoredBytes = 16u << 20;
constexpr size_t kWindow = 4, kUcxWindow = 16;

Result<Route> ChooseRoute(ClientCore& core, bool in_region, uint64_t segment_bytes, bool stored) {
  const Bulk bulk = core.options().bulk;
  if (bulk == Bulk::kUcx) return Route::kUcx;
  if (bulk == Bulk::kSocket || stored || !core.same_host()) return Route::kSocket;
  if (in_region) return Route::kNamed;
  if (segment_bytes <= core.staging().capacity()) return Route::kStaged;
  if (bulk == Bulk::kAuto) return Route::kSocket;
  return TooLarge("memory: a segment of " + std::to_string(segment_bytes) +
                  " bytes outside of a region is above staging_bytes");
}

}  // namespace

Result<Plan> MakePlan(ClientCore& core, const KvRun& run, size_t max_segments, bool stored) {
  Plan plan;
  plan.region = core.regions().Find(run.Hull());
  if (plan.region && plan.region->on_device() && !run.memory().on_device)
    return Invalid("memory: it is a GPU's, and KvMemory::on_device is not set");
  // The daemon may have been started again, without the GPU.
  if (run.memory().on_device && plan.region && plan.region->epoch != core.epoch())
    plan.region.reset();
  uint64_t segment_bytes = 0;
  for (size_t l = 0; l < run.layers(); ++l)
    segment_bytes = std::max(segment_bytes, run.DenseBytes(l));
  DYNA_ASSIGN_OR_RETURN(plan.route,
                        ChooseRoute(core, plan.region != nullptr, segment_bytes, stored));
  if (plan.route != Route::kNamed) plan.region.reset();
  uint64_t max_bytes = stored ? kStoredBytes : kFrameBytes;
  plan.window = kWindow;
  switch (plan.route) {
    case Route::kNamed:
      max_bytes = UINT64_MAX;
      break;
    case Route::kStaged:
      max_bytes = std::min(max_bytes, core.staging().capacity() / kWindow);
      break;
    case Route::kUcx:
      max_segments = std::min(max_segments, wire::kMaxUcxSegments);
      plan.window = kUcxWindow;
      [[fallthrough]];
    case Route::kSocket:
      max_bytes = std::min(max_bytes, std::max<uint64_t>(core.byte_credits() / 2, 1));
      break;
  }
  plan.pieces = run.Split(max_segments, max_bytes);
  return plan;
}

void RunPieces(size_t pieces, size_t window, std::function<void(size_t, PieceEnd)> start,
               std::function<void(size_t)> done) {
  struct Runner : std::enable_shared_from_this<Runner> {
    size_t pieces = 0, window = 0, next = 0, open = 0;
    bool go_on = true, pumping = false;
    std::function<void(size_t, PieceEnd)> start;
    std::function<void(size_t)> done;

    void Pump() {
      if (pumping) return;  // a piece ended before its start returned
      pumping = true;
      while (go_on && next < pieces && open < window) {
        ++open;
        start(next++, [self = shared_from_this()](bool more) {
          --self->open;
          self->go_on = self->go_on && more;
          self->Pump();
        });
      }
      pumping = false;
      if (open == 0 && done) std::exchange(done, nullptr)(next);
    }
  };
  auto runner = std::make_shared<Runner>();
  runner->pieces = pieces;
  runner->window = window;
  runner->start = std::move(start);
  runner->done = std::move(done);
  runner->Pump();
}

bool Outcome::Take(const KvRun& run, const Piece& piece, const Status& status,
                   const std::vector<wire::SegmentStatus>& segments) {
  const bool each = segments.size() == piece.segments();
  Status whole = status;
  if (!each && status.ok())
    whole = Internal("the daemon answered about " + std::to_string(segments.size()) + " of " +
                     std::to_string(piece.segments()) + " segments");
  for (size_t s = 0; s < piece.segments(); ++s) {
    wire::SegmentStatus& at = segments_[run.Index(piece, s)];
    if (each)
      at = segments[s];
    else
      at.status = whole.code();
    if (at.status != StatusCode::kOk && at.status != StatusCode::kExists)
      Note(run.Index(piece, s),
           at.status == whole.code()
               ? whole
               : Status(at.status, "segment " + std::to_string(run.Index(piece, s))));
  }
  if (!each) stopped_by_ = whole;
  return each;
}

void Outcome::Fail(size_t segment, Status status) {
  segments_[segment].status = status.code();
  Note(segment, status);
}

void Outcome::Skip(const KvRun& run, const Piece& piece) {
  for (size_t s = 0; s < piece.segments(); ++s) Fail(run.Index(piece, s), stopped_by_);
}

void Outcome::Note(size_t segment, const Status& status) {
  if (segment >= at_) return;
  at_ = segment;
  status_ = status;
}

}  // namespace dyna
