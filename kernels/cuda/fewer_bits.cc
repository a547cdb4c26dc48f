#include <string>

#include "kernels/cuda/device_batch.h"

namespace dyna::cuda {
namespace {

Status CheckHead(const SegmentId& id, int head, const SegmentPlace::Tile& now, const TilePlan& plan,
                 const Basis* basis) {
  const auto bad = [&](const std::string& what) {
    return Invalid("layer " + std::to_string(id.layer) + ", head " + std::to_string(head) + ": " +
                   what);
  };
  if ((plan.live & ~now.plan.live) != 0) return bad("a dropped token cannot come back");
  if (plan.k_kind != now.plan.k_kind) {
    const bool levels = kind::IsLevel(plan.k_kind) && kind::IsLevel(now.plan.k_kind);
    const size_t bytes = *KTileBytes(plan.k_kind, id.head_dim, id.dtype, basis, head);
    if (levels ? plan.k_kind > now.plan.k_kind : bytes >= now.k_bytes)
      return bad("K would not get fewer bits");
  }
  if (plan.v_kind != now.plan.v_kind) {
    if (*VTileBytes(plan.v_kind, id.head_dim, id.dtype) >= now.v_bytes)
      return bad("V would not get fewer bits");
  }
  return {};
}

}  // namespace

Status CheckFewerBits(const SegmentId& id, const SegmentPlace& from, std::span<const TilePlan> plan,
                      const Basis* basis) {
  for (int i = 0; i < id.kv_heads; ++i)
    DYNA_RETURN_IF_ERROR(CheckHead(id, id.head0 + i, from.tiles[static_cast<size_t>(i)],
                                   plan[static_cast<size_t>(i)], basis));
  return {};
}

}  // namespace dyna::cuda
