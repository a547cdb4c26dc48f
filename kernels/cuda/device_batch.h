// Batches over segments and sources that are in device memory: what a device arena and the
// benchmark use, and what the Backend stages host memory through.
//
// A batch is planned on the host (sizes, places, one descriptor a tile, uploaded once), launched on
// a stream any number of times, and collected: one launch for all tiles of a head_dim, whatever
// their kinds and widths, and one that ends the segments. Head sizes without kernels
// (tile_kernels.h: HasKernels) are UNSUPPORTED.
//
// Thread rule: a batch belongs to one thread at a time; jobs and what they point to outlive it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/device_basis.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/tile_job.h"
#include "kernels/cuda/tile_kernels.h"

namespace dyna::cuda {

// K or V of some heads of one block in device memory. Strides in bytes; rows contiguous; the base
// and every stride multiples of 16. With `pages` (device, int32) token t of the block is row
// (first_token + t) % page_tokens of page pages[(first_token + t) / page_tokens]; page_tokens is a
// power of two. NHD and HND layouts are strides.
struct DeviceRows {
  std::byte* base = nullptr;
  int64_t token_stride = 0, head_stride = 0;
  const int32_t* pages = nullptr;
  int64_t page_stride = 0;
  uint32_t page_tokens = 0;
  uint32_t first_token = 0;
};
Rows RowsOf(const DeviceRows& rows, int head_index);
struct DeviceKv {
  DeviceRows k, v;
  DType dtype = DType::kBf16;
};

// Where the tiles of a segment lie: what the host knows of one that is in device memory.
struct SegmentPlace {
  struct Tile {
    TilePlan plan;
    uint32_t k_at = 0, v_at = 0, k_bytes = 0, v_bytes = 0;
  };
  SegmentId id;
  uint64_t pins = 0;
  uint16_t flags = 0;
  float nmse = 0;
  uint32_t bytes = 0;
  std::vector<Tile> tiles;  // [kv_heads]
};
SegmentPlace PlaceOf(const SegmentView& view);

// Never more bits, V at 1 bit only from 8 bits or raw, no token comes back: INVALID otherwise.
Status CheckFewerBits(const SegmentId& id, const SegmentPlace& from, std::span<const TilePlan> plan,
                      const Basis* basis);

struct DeviceEncode {
  SegmentId id;
  DeviceKv source;
  const DeviceBasis* basis = nullptr;
  const DeviceRope* rope = nullptr;
  uint64_t pins = 0;
  std::span<const TilePlan> plan;  // [kv_heads]
  std::byte* out = nullptr;        // device, 16-byte aligned
  size_t capacity = 0;
  bool measure_x = false;  // also TileMeasure::k_energy of levels, at the price of some sums
  // results: of the plan at once, of the kernels after Collect
  Status status;
  SegmentPlace place;
  std::span<TileMeasure> measure;  // [kv_heads], may be empty
  uint64_t above_top = 0;          // heads whose level must become plain8 (TOO_LARGE), below 64
};

struct DeviceDecode {
  const SegmentPlace* place = nullptr;
  const std::byte* segment = nullptr;  // device
  const DeviceBasis* basis = nullptr;
  const DeviceRope* rope = nullptr;
  uint16_t head_begin = 0, head_end = 0;  // absolute
  DeviceKv target;                        // head_begin is at head index 0
  bool k_only = false;                    // then target.v is not looked at
  Status status;
};

struct DeviceTranscode {
  const SegmentPlace* from = nullptr;
  const std::byte* segment = nullptr;  // device
  const DeviceBasis* basis = nullptr;
  const DeviceRope* rope = nullptr;
  std::span<const TilePlan> plan;
  std::byte* out = nullptr;  // device; does not overlap `segment`
  size_t capacity = 0;
  Status status;
  SegmentPlace place;
  std::span<TileMeasure> measure;
  uint64_t above_top = 0;  // heads that must stay what they are
};

// Tiles of y or z alone (golden and differential tests): rows are f16 [64][d] in device memory.
struct DeviceQuantise {
  int head_dim = 0;
  const std::byte* rows = nullptr;
  std::vector<uint8_t> widths;  // K; empty: V
  int run = 16, bits = 0;
  uint64_t live = ~uint64_t{0}, pins = 0;
  std::byte* tile = nullptr;  // device
  // results
  uint32_t flags = 0;  // of TileResult
  int8_t v_exp = 0;
};

class DeviceBatch {
 public:
  explicit DeviceBatch(const PlainRuns* plain) : plain_(plain) {}

  // Replaces what was planned. A job that cannot be planned has its own status and no tiles.
  void PlanEncode(std::span<DeviceEncode> jobs);
  void PlanDecode(std::span<DeviceDecode> jobs);
  void PlanTranscode(std::span<DeviceTranscode> jobs);
  void PlanQuantise(std::span<DeviceQuantise> jobs);

  Status Upload(CUstream_st* stream);  // once after a plan
  Status Launch(CUstream_st* stream);  // kernels only: may be repeated
  // Waits and puts results into the jobs that were planned.
  Status Collect(CUstream_st* stream);

 private:
  struct Planned {
    TileJob job;
    int base = -1;                // first turn of the block's rope
    int64_t workspace = -1;       // rows there instead
    int64_t runs = -1;            // own runs instead of a basis'
    const void* order = nullptr;  // tiles of one basis cell run beside each other
  };
  struct Sorted {
    const void* order;
    uint32_t index;   // of the tile
    uint32_t kernel;  // which of a launch's (TileCounts)
  };
  struct Group {  // tiles of one head_dim
    std::vector<Planned> tiles;
    std::vector<Sorted> sorted;
    LaunchNeeds needs;
    TileCounts count;
    size_t at = 0;
  };
  using Groups = std::map<int, Group>;

  void Clear();
  static void Sort(Group* group);
  void Add(Groups* groups, int head_dim, Planned planned);
  int BaseOf(const DeviceRope* rope, uint32_t block_index);
  void SetRope(const DeviceRope* rope, uint32_t block_index, Planned* planned);
  void SetK(const DeviceBasis* basis, int head, int head_dim, uint8_t k_kind, TileJob* job,
            CodedTile* tile) const;
  Status PlanOne(DeviceEncode* job);
  Status PlanOne(DeviceDecode* job);
  Status PlanOne(DeviceTranscode* job);
  void PlanSide(DeviceTranscode* job, int index, bool v);
  void AddSegment(const SegmentPlace& place, std::byte* out, size_t head_at, float nmse_before,
                  uint32_t is_estimate);
  Status Describe(const SegmentId& id, std::span<const TilePlan> plan, uint64_t pins,
                  const DeviceBasis* basis, size_t capacity, SegmentPlace* place, size_t* head_at);
  Status LaunchGroups(const Groups& groups, bool encode, CUstream_st* stream) const;
  Status TileStatus(const SegmentId& id, uint32_t first_result, uint64_t* above_top) const;

  const PlainRuns* plain_;
  std::span<DeviceEncode> encodes_;
  std::span<DeviceTranscode> transcodes_;
  std::span<DeviceQuantise> quantises_;
  std::vector<uint32_t> first_results_;  // of each job of those
  Groups before_, tiles_;                // decoded to the workspace first; the batch itself
  bool encoding_ = false;
  std::vector<SegmentJob> segments_;
  std::vector<std::byte> heads_, scratch_;
  std::vector<Turn> bases_;
  std::vector<RunPlace> own_runs_;
  std::map<std::pair<const DeviceRope*, uint32_t>, int> base_of_;
  uint32_t result_count_ = 0;
  size_t workspace_bytes_ = 0, results_at_ = 0, segments_at_ = 0;
  PinnedMemory image_, results_;
  DeviceMemory device_, workspace_;
};

}  // namespace dyna::cuda
