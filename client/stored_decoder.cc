#include "client/stored_decoder.h"

#include <algorithm>
#include <string>
#include <utility>

namespace dyna {
namespace {

constexpr size_t kNamesPerCall = 64;

void AddBases(ClientCore& core, const std::vector<std::byte>& payload,
              const std::vector<uint32_t>& sizes) {
  size_t at = 0;
  for (uint32_t size : sizes) {
    if (size > payload.size() - at) return;
    auto basis = Basis::Parse(std::span(payload).subspan(at, size));
    if (size > 0 && basis.ok()) core.bases().Add(std::move(*basis));
    at += size;
  }
}

// The jobs of one segment's share; fails where it is not what was asked for.
struct ShareReader {
  ClientCore& core;
  const KvRun& run;
  const StoredPiece& stored;
  std::vector<DecodeJob>& jobs;
  std::vector<std::shared_ptr<const Basis>>& bases;  // kept while jobs run

  Status Read(size_t segment, std::span<const std::byte> share) {
    const size_t index = run.Index(stored.piece, segment);
    const auto layer = static_cast<uint16_t>(stored.layer_begin + stored.piece.layer +
                                             segment % stored.piece.layers);
    int covered = 0;
    while (!share.empty()) {
      DYNA_ASSIGN_OR_RETURN(const SegmentHeader header, ParseSegmentHeader(share));
      if (header.bytes == 0 || header.bytes > share.size())
        return Internal("a stored segment is longer than its share");
      DYNA_ASSIGN_OR_RETURN(const int heads,
                            AddJob(index, layer, header, share.first(header.bytes)));
      covered += heads;
      share = share.subspan(header.bytes);
    }
    if (covered != run.heads()) return Internal("stored segments do not cover the heads asked for");
    return {};
  }

  Result<int> AddJob(size_t index, uint16_t layer, const SegmentHeader& header,
                     std::span<const std::byte> bytes) {
    const ContextSpec& spec = stored.context->spec;
    const SegmentId& id = header.id;
    if (id.fingerprint != stored.context->fingerprint || id.layer != layer ||
        id.head_dim != spec.layers[layer].head_dim || id.dtype != spec.dtype)
      return Internal("a stored segment of another context, layer or shape");
    std::shared_ptr<const Basis> basis;
    if (id.basis != 0 && !(basis = core.bases().Find(id.basis)))
      return Internal("basis " + std::to_string(id.basis) + " of a stored segment is unknown");
    DYNA_ASSIGN_OR_RETURN(const SegmentView view, ParseSegment(bytes, basis.get()));
    (void)view;
    if (!VerifySegmentChecksum(bytes).ok())
      return Status(StatusCode::kMiss, "a stored segment was damaged on its way");
    DecodeJob job;
    job.segment = bytes;
    job.basis = basis.get();
    const RopeTable& rope = stored.context->ropes[spec.layers[layer].rope];
    if (basis && basis->info().frame == Frame::kPre && rope.kind() != RopeKind::kNone)
      job.rope = &rope;
    job.head_begin = std::max(id.head0, stored.head_begin);
    job.head_end = static_cast<uint16_t>(
        std::min<int>(id.head0 + id.kv_heads, stored.head_begin + run.heads()));
    if (job.head_begin >= job.head_end) return 0;
    const int64_t first = job.head_begin - stored.head_begin;
    const KvMemory& m = run.memory();
    job.target = {m.k[index] + first * m.k_head_stride,
                  m.v[index] + first * m.v_head_stride,
                  m.k_token_stride,
                  m.k_head_stride,
                  m.v_token_stride,
                  m.v_head_stride,
                  m.dtype,
                  m.on_device};
    const auto heads = static_cast<size_t>(job.head_end - job.head_begin);
    if (!stored.live.empty())
      job.live = stored.live.subspan(index * run.heads() + static_cast<size_t>(first), heads);
    jobs.push_back(job);
    if (basis) bases.push_back(std::move(basis));
    return static_cast<int>(heads);
  }
};

}  // namespace

void FetchBases(const std::shared_ptr<ClientCore>& core, Fingerprint context,
                std::vector<BasisName> names, TimePoint deadline, std::function<void()> done) {
  names.erase(std::remove_if(names.begin(), names.end(),
                             [&](BasisName n) { return n == 0 || core->bases().Find(n); }),
              names.end());
  if (names.empty()) return done();
  std::vector<BasisName> rest;
  if (names.size() > kNamesPerCall) {
    rest.assign(names.begin() + kNamesPerCall, names.end());
    names.resize(kNamesPerCall);
  }
  auto bytes = std::make_shared<std::vector<std::byte>>();
  Call call;
  call.request = wire::GetBasis{context, std::move(names)};
  call.deadline = deadline;
  call.receive = [bytes](const wire::Message& reply, uint64_t n) {
    std::vector<std::span<std::byte>> parts;
    if (!std::holds_alternative<wire::GetBasisReply>(reply)) return parts;
    bytes->resize(n);
    parts.emplace_back(*bytes);
    return parts;
  };
  call.done = [core, context, bytes, rest = std::move(rest), deadline,
               done = std::move(done)](Result<wire::Message> outcome) mutable {
    const auto reply = Expect<wire::GetBasisReply>(std::move(outcome));
    if (!reply.ok() || !reply->status.ok()) return done();  // segments that lack one will say so
    AddBases(*core, *bytes, reply->sizes);
    FetchBases(core, context, std::move(rest), deadline, std::move(done));
  };
  core->Submit(std::move(call));
}

std::vector<Status> DecodeStored(ClientCore& core, const KvRun& run, const StoredPiece& stored) {
  std::vector<DecodeJob> jobs;
  std::vector<size_t> job_segment;
  std::vector<std::shared_ptr<const Basis>> bases;
  std::vector<Status> statuses(stored.piece.segments());
  ShareReader reader{core, run, stored, jobs, bases};
  size_t at = 0;
  for (size_t s = 0; s < statuses.size(); ++s) {
    if (stored.segments[s].status != StatusCode::kOk) continue;
    const size_t bytes = stored.segments[s].bytes, jobs_before = jobs.size();
    if (bytes > stored.payload.size() - at) {
      statuses[s] = Internal("the payload ends before its segments do");
      continue;
    }
    statuses[s] = reader.Read(s, stored.payload.subspan(at, bytes));
    if (!statuses[s].ok()) jobs.resize(jobs_before);
    job_segment.resize(jobs.size(), s);
    at += bytes;
  }
  core.backend().Decode(jobs);
  for (size_t j = 0; j < jobs.size(); ++j)
    if (!jobs[j].status.ok() && statuses[job_segment[j]].ok())
      statuses[job_segment[j]] = jobs[j].status;
  return statuses;
}

}  // namespace dyna
