// Put: see transfer.h.
#include <algorithm>
#include <memory>
#include <utility>

#include "client/submit.h"
#include "client/transfer.h"

namespace dyna {
namespace {

class PutOp : public std::enable_shared_from_this<PutOp> {
 public:
  PutOp(std::shared_ptr<ClientCore> core, std::shared_ptr<ContextState> context, PutRequest request,
        KvRun run, Plan plan, std::function<void(PutResult)> done)
      : core_(std::move(core)),
        context_(std::move(context)),
        request_(std::move(request)),
        run_(std::move(run)),
        plan_(std::move(plan)),
        done_(std::move(done)),
        deadline_(core_->DeadlineOf(request_.deadline)),
        outcome_(size_t{run_.blocks()} * run_.layers()) {}

  void Start() {
    RunPieces(
        plan_.pieces.size(), plan_.window,
        [self = shared_from_this()](size_t i, PieceEnd end) {
          self->Send(self->plan_.pieces[i], std::move(end));
        },
        [self = shared_from_this()](size_t started) { self->Finish(started); });
  }

 private:
  wire::Put Message(const Piece& piece) const {
    wire::Put m;
    m.context = context_->fingerprint;
    m.shard = request_.shard;
    m.layer_begin = static_cast<uint16_t>(request_.layer_begin + piece.layer);
    m.layer_count = piece.layers;
    m.parent = piece.block == 0 ? request_.parent : request_.hashes[piece.block - 1];
    m.first_index = request_.first_index + piece.block;
    m.hashes.assign(request_.hashes.begin() + piece.block,
                    request_.hashes.begin() + piece.block + piece.blocks);
    m.quality = request_.quality;
    m.durability = request_.durability;
    m.ttl_ms = Millis(request_.ttl);
    m.layout.dtype = run_.memory().dtype;
    return m;
  }

  void Send(const Piece& piece, PieceEnd end) {
    switch (plan_.route) {
      case Route::kNamed:
        return SendNamed(piece, std::move(end));
      case Route::kStaged:
        return SendStaged(piece, std::move(end));
      case Route::kSocket:
      case Route::kUcx:
        return SendFrame(piece, std::move(end));
    }
  }

  void SendNamed(const Piece& piece, PieceEnd end) {
    wire::Put m = Message(piece);
    m.layout = run_.NamedLayout(piece, plan_.region->base());
    core_->CountInPlace(run_.DenseBytes(piece), false);
    Call call;
    call.request = std::move(m);
    call.region = plan_.region;
    Submit(std::move(call), piece, nullptr, std::move(end));
  }

  void SendStaged(const Piece& piece, PieceEnd end) {
    const uint64_t bytes = run_.DenseBytes(piece);
    core_->staging().Take(
        bytes, deadline_,
        [self = shared_from_this(), piece, bytes, end = std::move(end)](auto slice) mutable {
          if (!slice.ok()) return end(self->outcome_.Take(self->run_, piece, slice.status(), {}));
          if (Status s = self->run_.Pack(piece, (*slice)->data()); !s.ok())
            return end(self->outcome_.Take(self->run_, piece, s, {}));
          wire::Put m = self->Message(piece);
          m.layout = self->run_.StagedLayout(piece, (*slice)->offset);
          self->core_->CountInPlace(bytes, true);
          Call call;
          call.request = std::move(m);
          call.region = (*slice)->region;
          self->Submit(std::move(call), piece, std::move(*slice), std::move(end));
        });
  }

  void SendFrame(const Piece& piece, PieceEnd end) {
    Call call;
    call.request = Message(piece);
    call.over_ucx = plan_.route == Route::kUcx;
    std::shared_ptr<std::vector<std::byte>> packed;
    if (const auto dense = run_.DenseSpan(piece); !dense.empty()) {
      call.payload.push_back(dense);
    } else {
      packed = std::make_shared<std::vector<std::byte>>(run_.DenseBytes(piece));
      if (Status s = run_.Pack(piece, packed->data()); !s.ok())
        return end(outcome_.Take(run_, piece, s, {}));
      call.payload.push_back(*packed);
    }
    Submit(std::move(call), piece, std::move(packed), std::move(end));
  }

  // `held` stays until the call is over.
  void Submit(Call call, const Piece& piece, std::shared_ptr<void> held, PieceEnd end) {
    call.deadline = deadline_;
    call.done = [self = shared_from_this(), piece, held = std::move(held),
                 end = std::move(end)](Result<wire::Message> outcome) {
      const auto reply = Expect<wire::PutReply>(std::move(outcome));
      if (self->TryAgain(reply.ok() ? reply->status : reply.status(), piece, end)) return;
      end(reply.ok() ? self->outcome_.Take(self->run_, piece, reply->status, reply->segments)
                     : self->outcome_.Take(self->run_, piece, reply.status(), {}));
    };
    core_->Submit(std::move(call));
  }

  // Segments that were stored meanwhile answer EXISTS: sending all of the piece again is safe.
  bool TryAgain(const Status& status, const Piece& piece, const PieceEnd& end) {
    if (status.code() != StatusCode::kRetry || !request_.wait_for_room) return false;
    const auto wait = std::chrono::milliseconds(std::max<uint32_t>(status.retry_after_ms(), 1));
    const TimePoint when = core_->Now() + wait;
    if (when >= deadline_) return false;
    core_->At(when, [self = shared_from_this(), piece, end] { self->Send(piece, end); });
    return true;
  }

  void Finish(size_t started) {
    for (size_t i = started; i < plan_.pieces.size(); ++i) outcome_.Skip(run_, plan_.pieces[i]);
    done_(PutResult{outcome_.status(), std::move(outcome_.segments())});
  }

  const std::shared_ptr<ClientCore> core_;
  const std::shared_ptr<ContextState> context_;
  const PutRequest request_;
  const KvRun run_;
  const Plan plan_;
  const std::function<void(PutResult)> done_;
  const TimePoint deadline_;
  Outcome outcome_;
};

}  // namespace

void StartPut(const std::shared_ptr<ClientCore>& core, std::shared_ptr<ContextState> context,
              PutRequest request, std::function<void(PutResult)> done) {
  auto fail = [&](Status s) { done(FailedWith<PutResult>(std::move(s))); };
  if (Status s = Validate(request.shard, context->spec); !s.ok()) return fail(std::move(s));
  if (request.layer_count == 0 && request.layer_begin <= request.shard.layer_begin) {
    request.layer_begin = request.shard.layer_begin;
    request.layer_count =
        static_cast<uint16_t>(request.shard.layer_end - request.shard.layer_begin);
  }
  if (request.layer_begin < request.shard.layer_begin ||
      request.layer_begin + request.layer_count > request.shard.layer_end)
    return fail(Invalid("layer_begin, layer_count: outside the shard's layers"));
  if (request.hashes.size() > wire::kMaxSegmentsPerMessage)
    return fail(TooLarge("hashes: more than 16384 in one put"));
  auto run = KvRun::Create(context->spec, request.layer_begin, request.layer_count,
                           static_cast<uint32_t>(request.hashes.size()),
                           static_cast<uint16_t>(request.shard.head_end - request.shard.head_begin),
                           std::exchange(request.source, {}), &core->device());
  if (!run.ok()) return fail(run.status());
  auto plan = MakePlan(*core, *run, wire::kMaxSegmentsPerMessage, false);
  if (!plan.ok()) return fail(plan.status());
  std::make_shared<PutOp>(core, std::move(context), std::move(request), std::move(*run),
                          std::move(*plan), std::move(done))
      ->Start();
}

}  // namespace dyna
