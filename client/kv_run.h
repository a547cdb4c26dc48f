// A call's segments seen as memory: where each lies, whether it can be named in place, and the
// copy where it cannot. Shared by put and fetch. A value; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "client/kv_memory.h"
#include "kernels/shared_device.h"
#include "schemas/context.h"
#include "schemas/status.h"
#include "schemas/wire.h"

namespace dyna {

// A rectangle of segments: what one message is about.
struct Piece {
  uint32_t block = 0, blocks = 0;
  uint16_t layer = 0, layers = 0;  // relative to the run
  size_t segments() const { return size_t{blocks} * layers; }
};

class KvRun {
 public:
  KvRun() = default;
  // INVALID: counts that are not those of `memory`, layers of several shapes of which one does not
  // fit `heads`, null addresses. REQUIRES a validated spec and layer range. `device` copies what is
  // on a device, and outlives the run.
  static Result<KvRun> Create(const ContextSpec& spec, uint16_t layer_begin, uint16_t layers,
                              uint32_t blocks, uint16_t heads, KvMemory memory,
                              DeviceCopier* device);

  uint32_t blocks() const { return blocks_; }
  uint16_t layers() const { return layers_; }
  uint16_t heads() const { return heads_; }
  const KvMemory& memory() const { return memory_; }
  size_t Index(const Piece& piece, size_t segment) const;  // of a piece's segment in the run
  uint64_t DenseBytes(const Piece& piece) const;
  uint64_t DenseBytes(size_t segment) const { return dense_bytes_[segment % layers_]; }

  // Blocks before `block` are not wanted of this layer (relative to the run): in no piece.
  void SkipBefore(uint16_t layer, uint32_t block);
  bool Skips(size_t segment) const { return segment / layers_ < first_block_[segment % layers_]; }

  // Pieces of at most that many segments and dense bytes, in order; always at least one segment.
  std::vector<Piece> Split(size_t max_segments, uint64_t max_bytes) const;

  // All rows of the run, K and V.
  std::span<std::byte> Hull() const;
  // The wire's description of a piece inside memory that starts at `base`.
  wire::Layout NamedLayout(const Piece& piece, const std::byte* base) const;
  // The same when the piece was copied, dense, to `offset`.
  wire::Layout StagedLayout(const Piece& piece, uint64_t offset) const;

  // The memory of a piece that is dense already; empty when it is not, or not the host's.
  std::span<std::byte> DenseSpan(const Piece& piece) const;
  // Only memory of a device can fail.
  Status Pack(const Piece& piece, std::byte* dense) const;
  Status UnpackSegment(size_t segment, const std::byte* dense) const;

 private:
  int64_t RowBytes(size_t segment) const {
    return int64_t{head_dims_[segment % layers_]} * DTypeBytes(memory_.dtype);
  }
  // `whole`: a rectangle of wanted segments.
  void SplitInto(const Piece& whole, size_t max_segments, uint64_t max_bytes,
                 std::vector<Piece>* pieces) const;
  // `tile` gets the first row, the stride and the row's bytes; in dense order.
  template <typename Tile>
  Status ForTiles(size_t segment, Tile tile) const;

  DeviceCopier* device_ = nullptr;
  KvMemory memory_;
  uint32_t blocks_ = 0;
  uint16_t layers_ = 0, heads_ = 0;
  std::vector<uint16_t> head_dims_;    // [layers]
  std::vector<uint64_t> dense_bytes_;  // [layers]
  std::vector<uint32_t> first_block_;  // [layers]
};

}  // namespace dyna
