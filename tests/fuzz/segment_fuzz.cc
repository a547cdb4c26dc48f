// The door of segments. What passes is decoded by the scalar path and by this machine's best, and
// demoted to means: hostile tile bytes may give any values, but no access outside the segment.
#include "kernels/segment.h"

#include "kernels/backend.h"
#include "tests/fuzz/fuzz.h"

namespace dyna {
namespace {

struct World {
  std::shared_ptr<const Basis> basis = fuzz::MakeBasis();
  RopeTable rope{fuzz::Spec().ropes[0]};
  std::vector<std::unique_ptr<Backend>> backends;
  World() {
    for (const char* isa : {"scalar", "auto"})
      backends.push_back(std::move(MakeCpuBackend(isa).value()));
  }
};

void Decode(const World& world, const SegmentView& view, Backend& backend) {
  const SegmentId& id = view.id();
  const size_t row = size_t{id.head_dim} * 4, head = row * kBlockTokens;
  std::vector<std::byte> target(2 * head * id.kv_heads);
  DecodeJob job;
  job.segment = view.bytes();
  job.basis = id.basis != 0 ? world.basis.get() : nullptr;
  job.rope = &world.rope;
  job.head_begin = id.head0;
  job.head_end = static_cast<uint16_t>(id.head0 + id.kv_heads);
  const auto token = static_cast<int64_t>(row), pair = static_cast<int64_t>(2 * head);
  job.target = {target.data(), target.data() + head, token, pair, token, pair, DType::kF32};
  backend.Decode({&job, 1});
}

void Demote(const World& world, const SegmentView& view, Backend& backend) {
  const SegmentId& id = view.id();
  std::vector<TilePlan> plan(id.kv_heads);
  for (int i = 0; i < id.kv_heads; ++i) {
    const TileView tile = view.tile(i);
    plan[static_cast<size_t>(i)] = {kind::IsLevel(tile.k_kind) ? kind::Level(0) : tile.k_kind,
                                    kind::VBits(0), tile.live};
  }
  std::vector<std::byte> out(view.bytes().size() + kArenaUnit);
  TranscodeJob job;
  job.segment = view.bytes();
  job.basis = id.basis != 0 ? world.basis.get() : nullptr;
  job.rope = &world.rope;
  job.plan = plan;
  job.out = out;
  backend.Transcode({&job, 1});
  if (job.status.ok())
    DYNA_FUZZ_CHECK(ParseSegment(std::span(out).first(job.bytes), job.basis).ok());
}

}  // namespace
}  // namespace dyna

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const dyna::World world;
  const std::vector<std::byte> bytes = dyna::fuzz::Copy(data, size);
  const auto header = dyna::ParseSegmentHeader(bytes);
  if (!header.ok()) return 0;
  const dyna::Basis* basis = header->id.basis != 0 ? world.basis.get() : nullptr;
  const auto view = dyna::ParseSegment(bytes, basis);
  if (!view.ok()) return 0;
  (void)dyna::VerifySegmentChecksum(view->bytes());
  for (const auto& backend : world.backends) {
    dyna::Decode(world, *view, *backend);
    dyna::Demote(world, *view, *backend);
  }
  return 0;
}
