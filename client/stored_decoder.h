// Decodes segments that came as they are stored (formats 6) into the caller's memory. Lives on the
// loop, which the decoding occupies: a piece is a few MiB.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "client/core.h"
#include "client/kv_run.h"

namespace dyna {

struct StoredPiece {
  std::shared_ptr<ContextState> context;
  uint16_t layer_begin = 0, head_begin = 0;  // of the run
  Piece piece;
  std::vector<wire::SegmentStatus> segments;  // `bytes`: each one's share of `payload`
  std::span<const std::byte> payload;         // 16-byte aligned
  std::span<uint64_t> live;                   // of the run, [segment][head]; may be empty
};

// Gets the bases that the core lacks from the daemon; `done` when they are there, or cannot be.
void FetchBases(const std::shared_ptr<ClientCore>& core, Fingerprint context,
                std::vector<BasisName> names, TimePoint deadline, std::function<void()> done);

// One status a segment: MISS for bytes that fail their checksum, INTERNAL for others that are not
// what was asked for. A segment's share may be several stored ones, of writers with other splits.
std::vector<Status> DecodeStored(ClientCore& core, const KvRun& run, const StoredPiece& stored);

}  // namespace dyna
