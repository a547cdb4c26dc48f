// How jobs over segments become tiles of one thread block each.
#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "kernels/cuda/device_batch.h"
#include "kernels/segment_layout.h"

namespace dyna::cuda {
namespace {

namespace at = segment_layout;

bool IsPlain(uint8_t k) { return k == kind::kPlain8 || k == kind::kPlain4; }
bool IsCodedV(uint8_t v) { return v >= kind::VBits(1) && v <= kind::VBits(8); }

// Bits of `mask` at the places of `within`, closed up.
uint64_t CloseUp(uint64_t mask, uint64_t within) {
  if (within == ~uint64_t{0}) return mask;
  uint64_t out = 0;
  for (int r = 0; within != 0; within &= within - 1, ++r)
    out |= (mask >> std::countr_zero(within) & 1) << r;
  return out;
}

bool Aligned(const DeviceRows& rows) {
  const int64_t all = static_cast<int64_t>(reinterpret_cast<uintptr_t>(rows.base)) |
                      rows.token_stride | rows.head_stride | rows.page_stride;
  return all % 16 == 0;
}

Status CheckKv(const DeviceKv& kv, const char* name) {
  if (kv.k.base == nullptr || kv.v.base == nullptr)
    return Invalid(std::string(name) + ": no memory");
  if (!Aligned(kv.k) || !Aligned(kv.v))
    return Invalid(std::string(name) + ": a base or stride is not a multiple of 16 bytes");
  for (const DeviceRows* rows : {&kv.k, &kv.v})
    if (rows->pages != nullptr && !std::has_single_bit(rows->page_tokens))
      return Invalid(std::string(name) + ": page_tokens is not a power of two");
  return {};
}

TileOp OpOf(uint8_t tile_kind, bool v) {
  if (tile_kind == kind::kRaw) return TileOp::kRaw;
  if (tile_kind == kind::kFp8) return TileOp::kFp8;
  if (tile_kind == kind::kNone) return TileOp::kNone;
  if (!v) return TileOp::kCodedK;
  return tile_kind == kind::VBits(0) ? TileOp::kMean : TileOp::kCodedV;
}

const int8_t* VExpAt(const std::byte* segment, int index) {
  return reinterpret_cast<const int8_t*>(
      segment + kSegmentHeaderBytes + at::kEntryBytes * static_cast<size_t>(index) + at::kVExpAt);
}

// What every tile of head `index` of a segment at `segment` has in common.
TileJob JobOf(const SegmentPlace& place, const std::byte* segment, int index, bool v) {
  const SegmentPlace::Tile& tile = place.tiles[static_cast<size_t>(index)];
  TileJob job;
  job.live = tile.plan.live;
  job.pinned = place.pins;
  job.counted = CloseUp(job.live & ~place.pins, job.live);
  job.stored = place.id.dtype;
  job.is_v = v ? 1 : 0;
  auto* base = const_cast<std::byte*>(segment);
  job.tile.at = base + (v ? tile.v_at : tile.k_at);
  job.tile.bytes = v ? tile.v_bytes : tile.k_bytes;
  job.tile.v_exp = VExpAt(segment, index);
  const uint8_t tile_kind = v ? tile.plan.v_kind : tile.plan.k_kind;
  job.op = OpOf(tile_kind, v);
  if (v && IsCodedV(tile_kind)) {
    job.tile.bits = static_cast<uint8_t>(tile_kind - kind::VBits(0));
    job.change = Change::kHadamard;
  }
  const auto row = [&](int rank) {
    return at::PinRowAt(rank, index, v, place.id.kv_heads, place.id.head_dim, place.id.dtype);
  };
  job.pins = place.pins == 0 ? nullptr : base + row(0);
  job.pin_stride = static_cast<int64_t>(row(1) - row(0));
  return job;
}

Status CheckDim(int head_dim) {
  if (HasKernels(head_dim)) return {};
  return Unsupported("head_dim " + std::to_string(head_dim) + " has no kernels");
}

}  // namespace

Rows RowsOf(const DeviceRows& rows, int head_index) {
  Rows r;
  r.base = rows.base + head_index * rows.head_stride;
  r.token_stride = rows.token_stride;
  r.pages = rows.pages;
  r.page_stride = rows.page_stride;
  r.first = rows.first_token;
  r.shift = rows.pages == nullptr ? 0 : static_cast<uint32_t>(std::countr_zero(rows.page_tokens));
  return r;
}

SegmentPlace PlaceOf(const SegmentView& view) {
  SegmentPlace place;
  place.id = view.id();
  place.pins = view.pins();
  place.flags = view.flags();
  place.nmse = view.nmse();
  place.bytes = static_cast<uint32_t>(view.bytes().size());
  for (int i = 0; i < view.id().kv_heads; ++i) {
    const TileView tile = view.tile(i);
    const auto offset = [&](std::span<const std::byte> part) {
      return part.empty() ? 0u : static_cast<uint32_t>(part.data() - view.bytes().data());
    };
    place.tiles.push_back({{tile.k_kind, tile.v_kind, tile.live},
                           offset(tile.k),
                           offset(tile.v),
                           static_cast<uint32_t>(tile.k.size()),
                           static_cast<uint32_t>(tile.v.size())});
  }
  return place;
}

int DeviceBatch::BaseOf(const DeviceRope* rope, uint32_t block_index) {
  const auto [it, is_new] = base_of_.try_emplace({rope, block_index}, 0);
  if (!is_new) return it->second;
  it->second = static_cast<int>(bases_.size());
  RopeTable::Angle at[kMaxHeadDim / 2];
  const auto pairs = std::span(at).first(static_cast<size_t>(rope->pairs()));
  rope->table().FirstAngles(uint64_t{block_index} * kBlockTokens, pairs);
  for (const RopeTable::Angle& a : pairs) bases_.push_back({a.cos, a.sin});
  if (bases_.size() % 2 != 0) bases_.push_back({1, 0});  // pairs of turns are loaded together
  return it->second;
}

void DeviceBatch::SetRope(const DeviceRope* rope, uint32_t block_index, Planned* planned) {
  if (rope == nullptr || rope->table().kind() == RopeKind::kNone || rope->pairs() == 0) return;
  planned->job.table = rope->turns();
  planned->job.pairs = static_cast<uint16_t>(rope->pairs());
  planned->job.rope = rope->table().kind();
  planned->base = BaseOf(rope, block_index);
}

// A coded K kind's runs, and the basis where it has one.
void DeviceBatch::SetK(const DeviceBasis* basis, int head, int head_dim, uint8_t k_kind,
                       TileJob* job, CodedTile* tile) const {
  if (kind::IsLevel(k_kind)) {
    job->change = Change::kBasis;
    job->cell = basis->cell(head);
    tile->runs = basis->runs(head, k_kind - kind::kLevel0);
    tile->run = basis->basis().info().run;
  } else if (IsPlain(k_kind)) {
    job->change = Change::kIdentity;
    tile->runs = plain_->of(head_dim, k_kind);
    tile->run = 16;
  }
}

// Header and directory, made by the one writer of segments, and where the tiles will lie.
Status DeviceBatch::Describe(const SegmentId& id, std::span<const TilePlan> plan, uint64_t pins,
                             const DeviceBasis* basis, size_t capacity, SegmentPlace* place,
                             size_t* head_at) {
  const Basis* b = basis == nullptr ? nullptr : &basis->basis();
  DYNA_RETURN_IF_ERROR(CheckDim(id.head_dim));
  DYNA_RETURN_IF_ERROR(CheckPlan(id, plan, b));
  const size_t bytes = EncodedBytes(id, plan, pins, b);
  place->bytes = static_cast<uint32_t>(bytes);
  if (bytes > capacity)
    return TooLarge("segment: needs " + std::to_string(bytes) + " bytes, has " +
                    std::to_string(capacity));
  scratch_.resize(std::max(scratch_.size(), bytes));
  DYNA_ASSIGN_OR_RETURN(SegmentWriter writer, SegmentWriter::Create(scratch_, id, plan, pins, b));
  writer.Finish(0, 0);
  place->id = id;
  place->pins = pins;
  place->tiles.clear();
  for (int i = 0; i < id.kv_heads; ++i) {
    const auto k = writer.k(i), v = writer.v(i);
    place->tiles.push_back({plan[static_cast<size_t>(i)],
                            static_cast<uint32_t>(k.data() - scratch_.data()),
                            static_cast<uint32_t>(v.data() - scratch_.data()),
                            static_cast<uint32_t>(k.size()), static_cast<uint32_t>(v.size())});
  }
  *head_at = heads_.size();
  const auto head = std::span(scratch_).first(at::DirectoryEnd(id.kv_heads));
  heads_.insert(heads_.end(), head.begin(), head.end());
  return {};
}

void DeviceBatch::AddSegment(const SegmentPlace& place, std::byte* out, size_t head_at,
                             float nmse_before, uint32_t is_estimate) {
  SegmentJob job;
  job.out = out;
  job.head = reinterpret_cast<const std::byte*>(head_at);  // an offset until Upload
  job.head_bytes = static_cast<uint32_t>(at::DirectoryEnd(place.id.kv_heads));
  const SegmentPlace::Tile& last = place.tiles.back();
  job.end = last.v_at + last.v_bytes;
  job.bytes = place.bytes;
  job.first_result = result_count_;
  job.kv_heads = place.id.kv_heads;
  job.nmse_before = nmse_before;
  job.is_estimate = is_estimate;
  segments_.push_back(job);
  first_results_.push_back(result_count_);
  result_count_ += 2u * place.id.kv_heads;
}

Status DeviceBatch::PlanOne(DeviceEncode* job) {
  const SegmentId& id = job->id;
  DYNA_RETURN_IF_ERROR(CheckKv(job->source, "source"));
  if (job->source.dtype != id.dtype) return Invalid("source: dtype is not the context's");
  if (!job->measure.empty() && job->measure.size() != id.kv_heads)
    return Invalid("measure: not of kv_heads entries");
  size_t head_at = 0;
  DYNA_RETURN_IF_ERROR(
      Describe(id, job->plan, job->pins, job->basis, job->capacity, &job->place, &head_at));
  const uint32_t first = result_count_;
  AddSegment(job->place, job->out, head_at, 0, 0);
  for (int i = 0; i < id.kv_heads; ++i) {
    const TilePlan& plan = job->plan[static_cast<size_t>(i)];
    const bool level = kind::IsLevel(plan.k_kind);
    const void* order = level ? static_cast<const void*>(job->basis->cell(id.head0 + i)) : nullptr;
    for (const bool v : {false, true}) {
      Planned planned;
      planned.job = JobOf(job->place, job->out, i, v);
      planned.job.rows = RowsOf(v ? job->source.v : job->source.k, i);
      planned.job.dtype = id.dtype;
      planned.job.result = first + static_cast<uint32_t>(2 * i + (v ? 1 : 0));
      planned.order = order;
      if (!v) {
        SetK(job->basis, id.head0 + i, id.head_dim, plan.k_kind, &planned.job, &planned.job.tile);
        planned.job.measure_x = level && job->measure_x ? 1 : 0;
        if (level && job->basis->basis().info().frame == Frame::kPre)
          SetRope(job->rope, id.block_index, &planned);
      }
      Add(&tiles_, id.head_dim, std::move(planned));
    }
  }
  return {};
}

void DeviceBatch::PlanEncode(std::span<DeviceEncode> jobs) {
  Clear();
  encodes_ = jobs;
  encoding_ = true;
  for (DeviceEncode& job : jobs) {
    const size_t before = first_results_.size();
    job.status = PlanOne(&job);
    if (first_results_.size() == before) first_results_.push_back(0);
  }
}

Status DeviceBatch::PlanOne(DeviceDecode* job) {
  const SegmentPlace& place = *job->place;
  const SegmentId& id = place.id;
  DYNA_RETURN_IF_ERROR(CheckDim(id.head_dim));
  DeviceKv target = job->target;
  if (job->k_only) target.v = target.k;
  DYNA_RETURN_IF_ERROR(CheckKv(target, "target"));
  if (job->head_begin < id.head0 || job->head_end > id.head0 + id.kv_heads ||
      job->head_begin >= job->head_end)
    return Invalid("head range: not within the segment's");
  if (job->target.dtype != id.dtype &&
      (DTypeBytes(job->target.dtype) == 1 || DTypeBytes(id.dtype) == 1))
    return Unsupported("target: fp8 is an engine's own format, it is not converted");
  for (int head = job->head_begin; head < job->head_end; ++head) {
    const int index = head - id.head0;
    const TilePlan& plan = place.tiles[static_cast<size_t>(index)].plan;
    const bool level = kind::IsLevel(plan.k_kind);
    if (level && job->basis == nullptr) return Invalid("segment: its basis is not given");
    for (const bool v : {false, true}) {
      if (v && job->k_only) continue;
      Planned planned;
      planned.job = JobOf(place, job->segment, index, v);
      planned.job.rows = RowsOf(v ? job->target.v : job->target.k, head - job->head_begin);
      planned.job.dtype = job->target.dtype;
      planned.order = level ? job->basis->cell(head) : nullptr;
      if (!v) {
        SetK(job->basis, head, id.head_dim, plan.k_kind, &planned.job, &planned.job.tile);
        if (level && job->basis->basis().info().frame == Frame::kPre)
          SetRope(job->rope, id.block_index, &planned);
      }
      Add(&tiles_, id.head_dim, std::move(planned));
    }
  }
  return {};
}

void DeviceBatch::PlanDecode(std::span<DeviceDecode> jobs) {
  Clear();
  encoding_ = false;
  for (DeviceDecode& job : jobs) job.status = PlanOne(&job);
}

// One side of one head: copied, requantised where it lies, or decoded to the workspace and coded
// anew.
void DeviceBatch::PlanSide(DeviceTranscode* job, int index, bool v) {
  const SegmentId& id = job->place.id;
  const SegmentPlace::Tile& now = job->from->tiles[static_cast<size_t>(index)];
  const TilePlan& plan = job->place.tiles[static_cast<size_t>(index)].plan;
  const uint8_t from = v ? now.plan.v_kind : now.plan.k_kind, to = v ? plan.v_kind : plan.k_kind;
  const int head = id.head0 + index;
  const bool pre = job->basis != nullptr && job->basis->basis().info().frame == Frame::kPre;
  Planned source;
  source.job = JobOf(*job->from, job->segment, index, v);
  Planned planned;
  planned.job = JobOf(job->place, job->out, index, v);
  planned.job.pins = nullptr;  // copied as they are, all together
  planned.job.result = first_results_.back() + static_cast<uint32_t>(2 * index + (v ? 1 : 0));
  planned.job.dtype = id.dtype;
  if (!v) SetK(job->basis, head, id.head_dim, to, &planned.job, &planned.job.tile);
  if (from == to && (plan.live == now.plan.live || to == kind::kNone)) {
    planned.job.op = TileOp::kCopy;
    planned.job.from = source.job.tile;
    planned.job.copy_bytes = v ? now.v_bytes : now.k_bytes;
    if (source.job.op != TileOp::kCodedV) planned.job.from.v_exp = nullptr;
    return Add(&tiles_, id.head_dim, std::move(planned));
  }
  const bool coded =
      v ? IsCodedV(from) && IsCodedV(to)
        : (kind::IsLevel(from) && kind::IsLevel(to)) || (IsPlain(from) && IsPlain(to));
  planned.job.narrow =
      plan.live == now.plan.live ? ~uint64_t{0} : CloseUp(plan.live, now.plan.live);
  if (coded || (to == kind::kRaw && from == kind::kRaw)) {
    planned.job.from = source.job.tile;
    if (!v) {
      TileJob unused;
      SetK(job->basis, head, id.head_dim, from, &unused, &planned.job.from);
    }
    planned.job.change = Change::kIdentity;
    planned.job.cell = nullptr;
    return Add(&tiles_, id.head_dim, std::move(planned));
  }
  if (to == kind::kNone) return Add(&tiles_, id.head_dim, std::move(planned));
  if (!v) SetK(job->basis, head, id.head_dim, from, &source.job, &source.job.tile);
  source.job.pins = nullptr;
  source.job.dtype = planned.job.dtype = DType::kF32;
  source.job.rows.token_stride = planned.job.rows.token_stride = 4 * id.head_dim;
  source.workspace = planned.workspace = static_cast<int64_t>(workspace_bytes_);
  workspace_bytes_ += static_cast<size_t>(kBlockTokens * 4 * id.head_dim);
  if (!v && pre && kind::IsLevel(from)) SetRope(job->rope, id.block_index, &source);
  if (!v && pre && kind::IsLevel(to)) SetRope(job->rope, id.block_index, &planned);
  planned.job.measure_x = !v && kind::IsLevel(to) ? 1 : 0;
  Add(&before_, id.head_dim, std::move(source));
  Add(&tiles_, id.head_dim, std::move(planned));
}

Status DeviceBatch::PlanOne(DeviceTranscode* job) {
  SegmentId id = job->from->id;
  const Basis* b = job->basis == nullptr ? nullptr : &job->basis->basis();
  if (id.basis == 0 && b != nullptr) id.basis = b->name();
  DYNA_RETURN_IF_ERROR(CheckPlan(id, job->plan, b));
  if (!job->measure.empty() && job->measure.size() != id.kv_heads)
    return Invalid("measure: not of kv_heads entries");
  DYNA_RETURN_IF_ERROR(CheckFewerBits(id, *job->from, job->plan, b));
  size_t head_at = 0;
  DYNA_RETURN_IF_ERROR(
      Describe(id, job->plan, job->from->pins, job->basis, job->capacity, &job->place, &head_at));
  AddSegment(job->place, job->out, head_at, job->from->nmse,
             (job->from->flags & kSegmentErrorIsEstimate) != 0 ? 1 : 2);
  for (int i = 0; i < id.kv_heads; ++i)
    for (const bool v : {false, true}) PlanSide(job, i, v);
  if (job->from->pins != 0) {
    Planned pins;
    pins.job.op = TileOp::kCopy;
    const size_t begin = at::DirectoryEnd(id.kv_heads);
    pins.job.copy_bytes =
        static_cast<uint32_t>(at::PinBytes(job->from->pins, id.kv_heads, id.head_dim, id.dtype));
    pins.job.tile.at = job->out + begin;
    pins.job.from.at = const_cast<std::byte*>(job->segment) + begin;
    pins.job.result = result_count_++;
    Add(&tiles_, id.head_dim, std::move(pins));
  }
  return {};
}

void DeviceBatch::PlanTranscode(std::span<DeviceTranscode> jobs) {
  Clear();
  transcodes_ = jobs;
  encoding_ = true;
  for (DeviceTranscode& job : jobs) {
    const size_t before = first_results_.size();
    job.status = PlanOne(&job);
    if (first_results_.size() == before) first_results_.push_back(0);
  }
}

void DeviceBatch::PlanQuantise(std::span<DeviceQuantise> jobs) {
  Clear();
  quantises_ = jobs;
  encoding_ = true;
  for (const DeviceQuantise& q : jobs) {
    Planned planned;
    TileJob& job = planned.job;
    job.rows.base = const_cast<std::byte*>(q.rows);
    job.rows.token_stride = 2 * q.head_dim;
    job.dtype = job.stored = DType::kF16;
    job.live = q.live;
    job.values = 1;
    job.counted = CloseUp(q.live & ~q.pins, q.live);
    job.tile.at = q.tile;
    job.result = result_count_;
    if (q.widths.empty()) {
      job.op = TileOp::kCodedV;
      job.is_v = 1;
      job.tile.bits = static_cast<uint8_t>(q.bits);
    } else {
      job.op = TileOp::kCodedK;
      job.tile.run = static_cast<uint8_t>(q.run);
      planned.runs = static_cast<int64_t>(own_runs_.size());
      const auto places = PlaceRuns(q.widths, q.run, q.head_dim);
      own_runs_.insert(own_runs_.end(), places.begin(), places.end());
    }
    first_results_.push_back(result_count_++);
    Add(&tiles_, q.head_dim, std::move(planned));
  }
}

}  // namespace dyna::cuda
