// The jobs of kernels/backend.h over a table of inner loops: one function each, one job at a time.
// Each sets job.status and never throws.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile_codec.h"
#include "kernels/cpu/tile_ops.h"

namespace dyna::cpu {

void Encode(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, EncodeJob& job);
void Decode(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, DecodeJob& job);
void Transcode(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, TranscodeJob& job);
void Score(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, ScoreJob& job);
void Moments(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, MomentsJob& job);
void QueryMoments(const TileOps& ops, Scratch& scratch, RopeOfBlock& rope, QueryMomentsJob& job);

// "layer 3, head 2, token 17: " + what, as INVALID.
Status AtToken(const SegmentId& id, int head, int token, const std::string& what);
// Why a tile could not be coded: looks for the value in `planes` that does not fit.
Status NotCodable(const SegmentId& id, int head, const char* what, const float* planes, int d);

// One row of one dtype as another; e4m3 and e5m2 only as themselves.
void ConvertRow(const std::byte* from, DType from_type, std::byte* to, DType to_type, int d);
// One token of planes from a row, and to one (pins).
void SetLane(float* planes, int lane, const std::byte* row, DType dtype, int d);
void GetLane(const float* planes, int lane, std::byte* row, DType dtype, int d);

}  // namespace dyna::cpu
