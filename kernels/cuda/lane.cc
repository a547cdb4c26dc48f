#include "kernels/cuda/lane.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/host_rows.h"

namespace dyna::cuda {
namespace {

// What the device wrote of one segment, to whoever asked for it. Null: it is there.
template <class DeviceJob, class Job>
void Deliver(const DeviceJob& from, const std::byte* bytes, Job* job) {
  job->status = from.status;
  job->bytes = from.place.bytes;
  job->nmse = from.place.nmse;
  if (!job->status.ok()) return;
  if (job->out.size() < job->bytes) {
    job->status = TooLarge("segment: needs " + std::to_string(job->bytes) + " bytes, has " +
                           std::to_string(job->out.size()));
    return;
  }
  if (bytes != nullptr) std::memcpy(job->out.data(), bytes, job->bytes);
}

bool All(const std::vector<bool>& flags) {
  return std::find(flags.begin(), flags.end(), false) == flags.end();
}

}  // namespace

size_t OutBytes(const EncodeJob& job) {
  std::vector<TilePlan> plan(job.plan.begin(), job.plan.end());
  size_t most = EncodedBytes(job.id, plan, job.pins, job.basis);
  for (TilePlan& tile : plan)
    if (kind::IsLevel(tile.k_kind)) tile.k_kind = kind::kPlain8;
  return std::max(most, EncodedBytes(job.id, plan, job.pins, job.basis));
}

Status Lane::BeginIn(size_t bytes) {
  from_host_.Begin();
  staged_in_ = false;
  return in_.Begin(bytes);
}

std::byte* Lane::TakeSegment(std::span<const std::byte> segment) {
  const size_t at = in_.Take(segment.size());
  if (HostPins::Covers(segment)) {
    from_host_.Add(in_.device(at), segment.data(), segment.size());
  } else {
    std::memcpy(in_.host(at), segment.data(), segment.size());
    staged_in_ = true;
  }
  return in_.device(at);
}

Status Lane::SendIn() {
  if (staged_in_) DYNA_RETURN_IF_ERROR(in_.In(stream_.get()));
  return from_host_.Launch(stream_.get());
}

template <class DeviceJob, class Job>
std::vector<bool> Lane::PlanOut(const std::vector<DeviceJob>& batch,
                                const std::vector<Job*>& owners, const std::vector<size_t>& at) {
  std::vector<bool> direct(batch.size(), false);
  to_host_.Begin();
  for (size_t i = 0; i < batch.size(); ++i) {
    const std::span<std::byte> out = owners[i]->out;
    const size_t bytes = batch[i].place.bytes;
    if (!batch[i].status.ok() || bytes > out.size() || !HostPins::Covers(out.first(bytes)))
      continue;
    to_host_.Add(out.data(), out_.device(at[i]), bytes);
    direct[i] = true;
  }
  return direct;
}

Status Lane::RunBatch(bool stage) {
  DYNA_RETURN_IF_ERROR(out_.Zero(stream_.get()));
  DYNA_RETURN_IF_ERROR(batch_.Upload(stream_.get()));
  DYNA_RETURN_IF_ERROR(batch_.Launch(stream_.get()));
  if (stage) DYNA_RETURN_IF_ERROR(out_.Out(stream_.get()));
  DYNA_RETURN_IF_ERROR(to_host_.Launch(stream_.get()));
  return batch_.Collect(stream_.get());
}

Status Lane::Encode(std::span<EncodeJob*> jobs) {
  size_t in_bytes = 0, out_bytes = 0;
  for (EncodeJob* job : jobs) {
    if (!InPlace(job->source))
      in_bytes += Staging::RoundUp(KvBytes(job->id.kv_heads, job->id.head_dim, job->id.dtype));
    out_bytes += Staging::RoundUp(OutBytes(*job));
  }
  DYNA_RETURN_IF_ERROR(in_.Begin(in_bytes));
  DYNA_RETURN_IF_ERROR(out_.Begin(out_bytes));
  std::vector<DeviceEncode> batch;
  std::vector<std::vector<TilePlan>> plans;
  std::vector<EncodeJob*> owners;
  std::vector<size_t> at;
  for (EncodeJob* job : jobs) {
    job->status = {};
    if (job->source.dtype != job->id.dtype)
      job->status = Invalid("source: dtype is not the context's");
    if (job->source.k == nullptr || job->source.v == nullptr)
      job->status = Invalid("source: no memory");
    if (job->status.ok()) job->status = CheckPlan(job->id, job->plan, job->basis);
    if (!job->status.ok()) continue;
    DeviceEncode d;
    d.id = job->id;
    if (InPlace(job->source)) {
      d.source = RowsAt(job->source);
    } else {
      const size_t from = in_.Take(KvBytes(job->id.kv_heads, job->id.head_dim, job->id.dtype));
      d.source = Contiguous(in_.device(from), job->id.head_dim, job->id.dtype);
      if (!job->source.on_device)
        Gather(job->source, job->id.kv_heads, job->id.head_dim, in_.host(from));
    }
    at.push_back(out_.Take(OutBytes(*job)));
    DYNA_ASSIGN_OR_RETURN(d.basis, cache_.Get(job->basis));
    DYNA_ASSIGN_OR_RETURN(d.rope, cache_.Get(job->rope));
    d.pins = job->pins;
    d.out = out_.device(at.back());
    d.capacity = OutBytes(*job);
    d.measure = job->measure;
    d.measure_x = !job->measure.empty();
    plans.emplace_back(job->plan.begin(), job->plan.end());
    batch.push_back(std::move(d));
    owners.push_back(job);
  }
  for (size_t i = 0; i < batch.size(); ++i) batch[i].plan = plans[i];
  DYNA_RETURN_IF_ERROR(in_.In(stream_.get()));
  for (size_t i = 0; i < batch.size(); ++i) {
    const KvView& source = owners[i]->source;
    if (source.on_device && !InPlace(source))
      DYNA_RETURN_IF_ERROR(MoveRows(source, batch[i].source, batch[i].id.kv_heads,
                                    batch[i].id.head_dim, true, stream_.get()));
  }
  // Again for those with a level that is not possible; the sources are the copies made above, or
  // what a client has on the device: one that writes there meanwhile harms its own block.
  while (!batch.empty()) {
    batch_.PlanEncode(batch);
    const std::vector<bool> direct = PlanOut(batch, owners, at);
    DYNA_RETURN_IF_ERROR(RunBatch(!All(direct)));
    size_t kept = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
      DeviceEncode& d = batch[i];
      if (d.status.code() == StatusCode::kTooLarge && d.above_top != 0) {
        for (size_t h = 0; h < plans[i].size(); ++h)
          if (h < 64 && (d.above_top >> h & 1) != 0) plans[i][h].k_kind = kind::kPlain8;
        std::swap(plans[kept], plans[i]);
        std::swap(owners[kept], owners[i]);
        std::swap(at[kept], at[i]);
        std::swap(batch[kept], batch[i]);
        batch[kept].plan = plans[kept];
        if (kept != i) batch[i].plan = plans[i];
        ++kept;
        continue;
      }
      Deliver(d, direct[i] ? nullptr : out_.host(at[i]), owners[i]);
    }
    batch.resize(kept);
    plans.resize(kept);
    owners.resize(kept);
    at.resize(kept);
  }
  return {};
}

Status Lane::Decode(std::span<DecodeJob*> jobs) {
  std::vector<DeviceDecode> batch;
  std::vector<SegmentPlace> places;
  std::vector<DecodeJob*> owners;
  std::vector<size_t> at;
  size_t in_bytes = 0, out_bytes = 0;
  for (DecodeJob* job : jobs) {
    const auto view = ParseSegment(job->segment, job->basis);
    job->status = view.status();
    if (!view.ok()) continue;
    const SegmentId& id = view->id();
    const int heads = job->head_end - job->head_begin;
    if (job->target.k == nullptr || job->target.v == nullptr)
      job->status = Invalid("target: no memory");
    else if (job->head_begin < id.head0 || job->head_end > id.head0 + id.kv_heads || heads <= 0)
      job->status = Invalid("head range: not within the segment's");
    else if (!job->live.empty() && job->live.size() != static_cast<size_t>(heads))
      job->status = Invalid("live: not of head_end - head_begin entries");
    if (!job->status.ok()) continue;
    places.push_back(PlaceOf(*view));
    owners.push_back(job);
    in_bytes += Staging::RoundUp(view->bytes().size());
    if (!InPlace(job->target))
      out_bytes += Staging::RoundUp(KvBytes(heads, id.head_dim, job->target.dtype));
  }
  DYNA_RETURN_IF_ERROR(BeginIn(in_bytes));
  DYNA_RETURN_IF_ERROR(out_.Begin(out_bytes));
  to_host_.Begin();
  for (size_t i = 0; i < owners.size(); ++i) {
    const DecodeJob* job = owners[i];
    const SegmentId& id = places[i].id;
    at.push_back(InPlace(job->target) ? 0
                                      : out_.Take(KvBytes(job->head_end - job->head_begin,
                                                          id.head_dim, job->target.dtype)));
    DeviceDecode d;
    d.place = &places[i];
    d.segment = TakeSegment(job->segment.first(places[i].bytes));
    DYNA_ASSIGN_OR_RETURN(d.basis, cache_.Get(job->basis));
    DYNA_ASSIGN_OR_RETURN(d.rope, cache_.Get(job->rope));
    d.head_begin = job->head_begin;
    d.head_end = job->head_end;
    d.target = InPlace(job->target)
                   ? RowsAt(job->target)
                   : Contiguous(out_.device(at.back()), id.head_dim, job->target.dtype);
    batch.push_back(d);
  }
  DYNA_RETURN_IF_ERROR(SendIn());
  batch_.PlanDecode(batch);
  DYNA_RETURN_IF_ERROR(RunBatch(true));
  bool moved = false;
  for (size_t i = 0; i < owners.size(); ++i) {
    DecodeJob* job = owners[i];
    job->status = batch[i].status;
    if (!job->status.ok()) continue;
    const int heads = job->head_end - job->head_begin, dim = places[i].id.head_dim;
    if (!job->target.on_device) {
      Scatter(out_.host(at[i]), heads, dim, job->target);
    } else if (!InPlace(job->target)) {
      DYNA_RETURN_IF_ERROR(
          MoveRows(job->target, batch[i].target, heads, dim, false, stream_.get()));
      moved = true;
    }
    for (size_t h = 0; h < job->live.size(); ++h) {
      const TilePlan& plan =
          places[i].tiles[static_cast<size_t>(job->head_begin - places[i].id.head0) + h].plan;
      const bool none = plan.k_kind == kind::kNone && plan.v_kind == kind::kNone;
      job->live[h] = none ? 0 : plan.live;
    }
  }
  return moved ? WaitFor(stream_.get()) : Status();
}

Status Lane::Transcode(std::span<TranscodeJob*> jobs) {
  std::vector<DeviceTranscode> batch;
  std::vector<SegmentPlace> places;
  std::vector<std::vector<TilePlan>> plans;
  std::vector<TranscodeJob*> owners;
  std::vector<size_t> at;
  size_t in_bytes = 0;
  for (TranscodeJob* job : jobs) {
    const auto view = ParseSegment(job->segment, job->basis);
    job->status = view.status();
    if (!view.ok()) continue;
    places.push_back(PlaceOf(*view));
    owners.push_back(job);
    in_bytes += Staging::RoundUp(places.back().bytes);
  }
  // Never more bits, so never more bytes.
  DYNA_RETURN_IF_ERROR(BeginIn(in_bytes));
  DYNA_RETURN_IF_ERROR(out_.Begin(in_bytes));
  for (size_t i = 0; i < owners.size(); ++i) {
    TranscodeJob* job = owners[i];
    at.push_back(out_.Take(places[i].bytes));
    DeviceTranscode d;
    d.from = &places[i];
    d.segment = TakeSegment(job->segment.first(places[i].bytes));
    DYNA_ASSIGN_OR_RETURN(d.basis, cache_.Get(job->basis));
    DYNA_ASSIGN_OR_RETURN(d.rope, cache_.Get(job->rope));
    plans.emplace_back(job->plan.begin(), job->plan.end());
    d.out = out_.device(at.back());
    d.capacity = places[i].bytes;
    d.measure = job->measure;
    batch.push_back(std::move(d));
  }
  DYNA_RETURN_IF_ERROR(SendIn());
  std::vector<bool> done(owners.size(), false);
  for (size_t round = 0, left = owners.size(); left > 0; ++round) {
    for (size_t i = 0; i < batch.size(); ++i) batch[i].plan = plans[i];
    batch_.PlanTranscode(batch);  // those that are done are done again: rare, and the same
    const std::vector<bool> direct = PlanOut(batch, owners, at);
    DYNA_RETURN_IF_ERROR(RunBatch(!All(direct)));
    for (size_t i = 0; i < batch.size(); ++i) {
      if (done[i]) continue;
      DeviceTranscode& d = batch[i];
      if (d.status.code() == StatusCode::kTooLarge && d.above_top != 0) {
        bool stays = false;
        for (size_t h = 0; h < plans[i].size() && h < 64; ++h) {
          if ((d.above_top >> h & 1) == 0) continue;
          stays |= plans[i][h].k_kind != places[i].tiles[h].plan.k_kind;
          plans[i][h].k_kind = places[i].tiles[h].plan.k_kind;
        }
        if (stays) continue;
        d.status = Invalid("a scale of K is outside the range of f16");
      }
      done[i] = true;
      --left;
      Deliver(d, direct[i] ? nullptr : out_.host(at[i]), owners[i]);
    }
  }
  return {};
}

Status Lane::Quantise(std::span<const uint16_t> rows, int d, uint64_t live, uint64_t pins,
                      std::span<std::byte> packed, int8_t* v_exp, DeviceQuantise* job) {
  DYNA_RETURN_IF_ERROR(in_.Begin(rows.size_bytes()));
  DYNA_RETURN_IF_ERROR(out_.Begin(packed.size()));
  const size_t from = in_.Take(rows.size_bytes()), to = out_.Take(packed.size());
  std::memcpy(in_.host(from), rows.data(), rows.size_bytes());
  job->head_dim = d;
  job->rows = in_.device(from);
  job->live = live;
  job->pins = pins;
  job->tile = out_.device(to);
  DYNA_RETURN_IF_ERROR(in_.In(stream_.get()));
  to_host_.Begin();
  batch_.PlanQuantise(std::span(job, 1));
  DYNA_RETURN_IF_ERROR(RunBatch(true));
  if ((job->flags & kBadValue) != 0) return Invalid("a value or scale is outside the range of f16");
  if ((job->flags & kAboveTop) != 0) return TooLarge("a scale is above the top of LOG8");
  if (job->flags != 0) return Invalid("a value or scale is outside the range of f16");
  std::memcpy(packed.data(), out_.host(to), packed.size());
  *v_exp = job->v_exp;
  return {};
}

Status Lane::Dequantise(std::span<const std::byte> packed, const std::vector<RunPlace>& runs,
                        int8_t v_exp, int d, std::span<uint16_t> out, DequantiseJob job) {
  DYNA_RETURN_IF_ERROR(in_.Begin(packed.size() + 4096));
  DYNA_RETURN_IF_ERROR(out_.Begin(out.size_bytes()));
  const size_t tile = in_.Take(packed.size()), places = in_.Take(runs.size() * sizeof(RunPlace));
  const size_t exponent = in_.Take(1), described = in_.Take(sizeof job);
  const size_t to = out_.Take(out.size_bytes());
  std::memcpy(in_.host(tile), packed.data(), packed.size());
  std::memcpy(in_.host(places), runs.data(), runs.size() * sizeof(RunPlace));
  std::memcpy(in_.host(exponent), &v_exp, 1);
  job.tile.at = in_.device(tile);
  job.tile.runs = reinterpret_cast<const RunPlace*>(in_.device(places));
  job.tile.v_exp = reinterpret_cast<const int8_t*>(in_.device(exponent));
  job.out = reinterpret_cast<uint16_t*>(out_.device(to));
  std::memcpy(in_.host(described), static_cast<const void*>(&job), sizeof job);
  DYNA_RETURN_IF_ERROR(in_.In(stream_.get()));
  if (!LaunchDequantise(reinterpret_cast<const DequantiseJob*>(in_.device(described)), 1, d,
                        stream_.get()))
    return LastError("launch of dequantise");
  DYNA_RETURN_IF_ERROR(out_.Out(stream_.get()));
  DYNA_RETURN_IF_ERROR(WaitFor(stream_.get()));
  std::memcpy(out.data(), out_.host(to), out.size_bytes());
  return {};
}

}  // namespace dyna::cuda
