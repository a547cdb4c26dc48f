// Fetch: see transfer.h.
#include <algorithm>
#include <memory>
#include <new>
#include <utility>

#include "client/stored_decoder.h"
#include "client/transfer.h"

namespace dyna {
namespace {

// Payload that is not received in place: aligned for the codec, not zeroed.
class Buffer {
 public:
  explicit Buffer(uint64_t bytes)
      : bytes_(bytes), data_(static_cast<std::byte*>(::operator new(bytes, kAlign))) {}
  ~Buffer() { ::operator delete(data_, kAlign); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  std::span<std::byte> span() const { return {data_, bytes_}; }

 private:
  static constexpr std::align_val_t kAlign{64};
  const uint64_t bytes_;
  std::byte* const data_;
};

class FetchOp : public std::enable_shared_from_this<FetchOp> {
 public:
  FetchOp(std::shared_ptr<ClientCore> core, std::shared_ptr<LeaseState> lease, FetchRequest request,
          KvRun run, Plan plan, std::function<void(FetchResult)> done)
      : core_(std::move(core)),
        lease_(std::move(lease)),
        request_(std::move(request)),
        run_(std::move(run)),
        plan_(std::move(plan)),
        done_(std::move(done)),
        deadline_(core_->DeadlineOf(request_.deadline)),
        outcome_(size_t{run_.blocks()} * run_.layers()) {
    result_.tiers.resize(outcome_.segments().size());
    if (request_.want_masks) result_.live.resize(outcome_.segments().size() * run_.heads(), ~0ull);
    for (size_t i = 0; i < outcome_.segments().size(); ++i)
      if (run_.Skips(i)) outcome_.LeaveOut(i);
  }

  void Start() {
    RunPieces(
        plan_.pieces.size(), plan_.window,
        [self = shared_from_this()](size_t i, PieceEnd end) {
          self->Send(self->plan_.pieces[i], std::move(end));
        },
        [self = shared_from_this()](size_t started) { self->Finish(started); });
  }

 private:
  struct Received {
    std::unique_ptr<Buffer> buffer;  // null: nothing, or the target itself
    uint64_t bytes = 0;
  };
  using End = std::function<void(const Result<wire::FetchReply>&)>;

  bool stored() const { return request_.form == wire::Form::kAsStored; }

  Call MakeCall(const Piece& piece) const {
    wire::Fetch m;
    m.context = lease_->context->fingerprint;
    m.lease = lease_->id;
    m.head_begin = request_.head_begin;
    m.head_end = request_.head_end;
    m.layer_begin = static_cast<uint16_t>(request_.layer_begin + piece.layer);
    m.layer_count = piece.layers;
    m.block_begin = request_.block_begin + piece.block;
    m.block_count = piece.blocks;
    m.form = request_.form;
    m.want_masks = request_.want_masks && !stored();
    m.layout.dtype = run_.memory().dtype;
    Call call;
    call.request = std::move(m);
    call.epoch = lease_->epoch;
    call.deadline = deadline_;
    return call;
  }

  void Submit(Call call, End end) {
    call.done = [end = std::move(end)](Result<wire::Message> outcome) {
      end(Expect<wire::FetchReply>(std::move(outcome)));
    };
    core_->Submit(std::move(call));
  }

  // What every way has in common: statuses, tiers, masks, bases.
  bool Take(const Piece& piece, const Result<wire::FetchReply>& reply) {
    if (!reply.ok()) return outcome_.Take(run_, piece, reply.status(), {});
    const bool each = outcome_.Take(run_, piece, reply->status, reply->segments);
    if (!each) return false;
    const size_t heads = run_.heads();
    for (size_t s = 0; s < piece.segments(); ++s) {
      const size_t i = run_.Index(piece, s);
      result_.tiers[i] = reply->tiers[s];
      if (!stored() && reply->live.size() == piece.segments() * heads)
        std::copy_n(reply->live.begin() + static_cast<long>(s * heads), heads,
                    result_.live.begin() + static_cast<long>(i * heads));
    }
    for (BasisName b : reply->bases)
      if (std::find(result_.bases.begin(), result_.bases.end(), b) == result_.bases.end())
        result_.bases.push_back(b);
    return true;
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
    Call call = MakeCall(piece);
    std::get<wire::Fetch>(call.request).layout = run_.NamedLayout(piece, plan_.region->base());
    call.region = plan_.region;
    core_->CountInPlace(run_.DenseBytes(piece), false);
    Submit(std::move(call), [self = shared_from_this(), piece, end = std::move(end)](
                                const auto& reply) { end(self->Take(piece, reply)); });
  }

  void SendStaged(const Piece& piece, PieceEnd end) {
    const uint64_t bytes = run_.DenseBytes(piece);
    core_->staging().Take(
        bytes, deadline_,
        [self = shared_from_this(), piece, bytes, end = std::move(end)](auto slice) mutable {
          if (!slice.ok()) return end(self->outcome_.Take(self->run_, piece, slice.status(), {}));
          Call call = self->MakeCall(piece);
          std::get<wire::Fetch>(call.request).layout =
              self->run_.StagedLayout(piece, (*slice)->offset);
          call.region = (*slice)->region;
          self->core_->CountInPlace(bytes, true);
          self->Submit(std::move(call),
                       [self, piece, slice = *slice, end = std::move(end)](const auto& reply) {
                         const bool more = self->Take(piece, reply);
                         if (more) self->Unpack(piece, *reply, slice->data(), true);
                         end(more);
                       });
        });
  }

  // `every`: segments that are not OK have their place in `dense`, too.
  void Unpack(const Piece& piece, const wire::FetchReply& reply, const std::byte* dense,
              bool every) {
    for (size_t s = 0; s < piece.segments(); ++s) {
      const size_t i = run_.Index(piece, s);
      const bool ok = reply.segments[s].status == StatusCode::kOk;
      if (ok)
        if (Status copied = run_.UnpackSegment(i, dense); !copied.ok()) outcome_.Fail(i, copied);
      if (ok || every) dense += run_.DenseBytes(i);
    }
  }

  void SendFrame(const Piece& piece, PieceEnd end) {
    Call call = MakeCall(piece);
    call.over_ucx = plan_.route == Route::kUcx;
    call.reply_bytes = run_.DenseBytes(piece);
    auto received = std::make_shared<Received>();
    call.receive = [self = shared_from_this(), piece, received](const wire::Message& reply,
                                                                uint64_t bytes) {
      return self->Receive(piece, reply, bytes, *received);
    };
    Submit(std::move(call), [self = shared_from_this(), piece, received,
                             end = std::move(end)](const auto& reply) {
      self->result_.bytes_received += received->bytes;
      const bool more = self->Take(piece, reply);
      if (more && received->bytes == 0) self->NothingCame(piece, *reply);
      if (!more || !received->buffer) return end(more);
      if (self->stored()) return self->Decode(piece, *reply, received, end);
      const auto dense = received->buffer->span();
      self->Unpack(piece, *reply, dense.data(), dense.size() == self->run_.DenseBytes(piece));
      end(true);
    });
  }

  // A frame with one segment missing may come without the others.
  void NothingCame(const Piece& piece, const wire::FetchReply& reply) {
    for (size_t s = 0; s < piece.segments(); ++s)
      if (reply.segments[s].status == StatusCode::kOk)
        outcome_.Fail(run_.Index(piece, s),
                      reply.status.ok() ? Internal("the daemon sent no payload") : reply.status);
  }

  // Where a reply's payload goes: the target itself when it is dense.
  std::vector<std::span<std::byte>> Receive(const Piece& piece, const wire::Message& message,
                                            uint64_t bytes, Received& received) {
    const auto* reply = std::get_if<wire::FetchReply>(&message);
    if (reply == nullptr || reply->segments.size() != piece.segments()) return {};
    uint64_t expected = 0;  // of the segments that are there
    for (size_t s = 0; s < piece.segments(); ++s)
      if (reply->segments[s].status == StatusCode::kOk)
        expected += stored() ? reply->segments[s].bytes : run_.DenseBytes(run_.Index(piece, s));
    const uint64_t whole = run_.DenseBytes(piece);
    if (bytes != expected && (stored() || bytes != whole)) return {};
    if (stored() && bytes > 4 * whole + kArenaUnit * 4 * piece.segments()) return {};
    received.bytes = bytes;
    if (const auto dense = run_.DenseSpan(piece); !stored() && bytes == whole && !dense.empty())
      return {dense};
    received.buffer = std::make_unique<Buffer>(bytes);
    return {received.buffer->span()};
  }

  void Decode(const Piece& piece, const wire::FetchReply& reply,
              const std::shared_ptr<Received>& received, PieceEnd end) {
    auto stored = std::make_shared<StoredPiece>(
        StoredPiece{lease_->context, request_.layer_begin, request_.head_begin, piece,
                    reply.segments, received->buffer->span(), result_.live});
    FetchBases(core_, lease_->context->fingerprint, reply.bases, deadline_,
               [self = shared_from_this(), stored, received, end = std::move(end)] {
                 const auto statuses = DecodeStored(*self->core_, self->run_, *stored);
                 for (size_t s = 0; s < statuses.size(); ++s)
                   if (!statuses[s].ok())
                     self->outcome_.Fail(self->run_.Index(stored->piece, s), statuses[s]);
                 end(true);
               });
  }

  void Finish(size_t started) {
    for (size_t i = started; i < plan_.pieces.size(); ++i) outcome_.Skip(run_, plan_.pieces[i]);
    result_.status = outcome_.status();
    result_.segments = std::move(outcome_.segments());
    done_(std::move(result_));
  }

  const std::shared_ptr<ClientCore> core_;
  const std::shared_ptr<LeaseState> lease_;
  const FetchRequest request_;
  const KvRun run_;
  const Plan plan_;
  const std::function<void(FetchResult)> done_;
  const TimePoint deadline_;
  Outcome outcome_;
  FetchResult result_;
};

// Fills in what was left at 0 and checks the rest against the lease.
Status Complete(FetchRequest& r, const LeaseState& lease) {
  if (r.layer_count == 0) {
    r.layer_begin = lease.shard.layer_begin;
    r.layer_count = static_cast<uint16_t>(lease.shard.layer_end - lease.shard.layer_begin);
  }
  if (r.head_end == 0) {
    r.head_begin = lease.shard.head_begin;
    r.head_end = lease.shard.head_end;
  }
  if (r.block_count == 0 && r.block_begin < lease.run) r.block_count = lease.run - r.block_begin;
  if (r.block_count == 0 || r.block_begin >= lease.run || r.block_count > lease.run - r.block_begin)
    return Invalid("block_begin, block_count: outside the lease's run of " +
                   std::to_string(lease.run));
  if (r.layer_begin < lease.shard.layer_begin ||
      r.layer_begin + r.layer_count > lease.shard.layer_end)
    return Invalid("layer_begin, layer_count: outside the lookup's layers");
  if (r.head_begin >= r.head_end || r.head_begin < lease.shard.head_begin ||
      r.head_end > lease.shard.head_end)
    return Invalid("head_begin, head_end: outside the lookup's heads");
  return {};
}

}  // namespace

void StartFetch(const std::shared_ptr<ClientCore>& core, std::shared_ptr<LeaseState> lease,
                FetchRequest request, std::function<void(FetchResult)> done) {
  auto fail = [&](Status s) { done(FailedWith<FetchResult>(std::move(s))); };
  if (!lease || lease->id == 0) return fail(Invalid("lease: it holds nothing"));
  if (!core->lost_for_good().ok()) return fail(core->lost_for_good());
  if (lease->released) return fail(Invalid("lease: released"));
  if (lease->lost || lease->core.lock() != core)
    return fail(Status(StatusCode::kLeaseLost, "the lease was revoked or its connection is gone"));
  if (Status s = Complete(request, *lease); !s.ok()) return fail(std::move(s));
  const auto heads = static_cast<uint16_t>(request.head_end - request.head_begin);
  auto run =
      KvRun::Create(lease->context->spec, request.layer_begin, request.layer_count,
                    request.block_count, heads, std::exchange(request.target, {}), &core->device());
  if (!run.ok()) return fail(run.status());
  for (uint16_t l = 0; l < request.layer_count && !request.beyond_windows; ++l) {
    const LayerShape& layer = lease->context->spec.layers[size_t{request.layer_begin} + l];
    const uint32_t first = layer.FirstBlockNeeded(lease->run);
    if (first > request.block_begin) run->SkipBefore(l, first - request.block_begin);
  }
  size_t max_segments = wire::kMaxSegmentsPerMessage;
  if (request.want_masks) max_segments = std::max<size_t>(1, wire::kMaxMasksPerMessage / heads);
  auto plan = MakePlan(*core, *run, std::min(max_segments, wire::kMaxSegmentsPerMessage),
                       request.form == wire::Form::kAsStored);
  if (!plan.ok()) return fail(plan.status());
  std::make_shared<FetchOp>(core, std::move(lease), std::move(request), std::move(*run),
                            std::move(*plan), std::move(done))
      ->Start();
}

}  // namespace dyna
