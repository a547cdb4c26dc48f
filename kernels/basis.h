// A calibrated basis of K for one layer (formats 1): immutable, verified once, named by its bytes.
//
// Thread rule: const after Parse; share it by shared_ptr<const Basis>.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/ladder.h"
#include "schemas/status.h"
#include "schemas/types.h"

namespace dyna {

inline constexpr int kBasisHeaderBytes = 64;

// What the header of a basis object says.
struct BasisInfo {
  Fingerprint fingerprint = 0;
  uint16_t layer = 0, head0 = 0, kv_heads = 0, head_dim = 0;
  Frame frame = Frame::kPre;
  uint8_t run = 0;     // 8 or 16
  uint8_t levels = 0;  // 1..16; level 0 is the mean
  BasisSource source = BasisSource::kLearned;
  uint32_t tokens = 0, queries = 0;  // it was learned from
};

// One kv head of a basis that is being made: double in, f16 in the object. An unseen head has
// empty vectors: it becomes the identity with variances 0, and its tiles stay plain.
struct BasisHeadParts {
  std::vector<double> mu;         // [d]
  std::vector<double> a, b;       // [d][d] row-major: y = A (x - mu), x = B y + mu
  std::vector<double> variances;  // [d], of y
};

// Bytes of a basis object; bounds its size for everybody who stores or sends one.
size_t BasisBytes(int kv_heads, int head_dim, int run, int levels);

class Basis {
 public:
  // Rounds, makes the ladder, writes the bytes and parses them back. `info.levels` is ignored.
  // INVALID when a value is not finite or does not fit f16, or B is not the inverse of A.
  static Result<std::shared_ptr<const Basis>> Build(const BasisInfo& info,
                                                    std::span<const BasisHeadParts> heads);

  // The only door to the bytes of a basis: lengths, enums, reserved zeros, checksum, finite
  // values, widths in {0, 2, 4, 8} that never narrow from level to level, level 0 all zero; on
  // heads that were seen B must undo A (tried on a few vectors).
  static Result<std::shared_ptr<const Basis>> Parse(std::span<const std::byte> bytes);

  const BasisInfo& info() const { return info_; }
  BasisName name() const { return name_; }
  std::span<const std::byte> bytes() const { return bytes_; }
  // Everything this object keeps in memory: the bytes and their f32 copies.
  size_t memory_bytes() const;
  int runs() const { return info_.head_dim / info_.run; }
  bool Covers(int head) const { return head >= info_.head0 && head < info_.head0 + info_.kv_heads; }

  // Below, `head` is absolute (REQUIRES Covers) and `level` < info().levels.
  bool seen(int head) const;  // false: the head stays on the plain kinds
  std::span<const uint8_t> widths(int head, int level) const;  // [runs()]
  std::span<const float> variances(int head) const;            // [d]
  double mean_bits(int head, int level) const;                 // what class floors compare
  double relative_error(int head, int level) const;            // predicted, in the metric of y
  // The target a level is called by ("L2" is 2): the least target that all heads' bits are within.
  double target(int level) const { return targets_[static_cast<size_t>(level)]; }
  // The level made for `target`: the last one called by it or by less.
  int LevelOf(double target) const;

  // For the codec: f32 copies, row-major.
  const float* mu(int head) const { return cell(head).mu.data(); }
  const float* a(int head) const { return cell(head).a.data(); }
  const float* b(int head) const { return cell(head).b.data(); }
  // Channels [0, live) hold every run with a width above 0; those beyond are means only.
  int live_channels(int head, int level) const;
  // kProbes rows [kProbes][d], each a +-1 sum of A's rows beyond live_channels over sqrt(kProbes):
  // sum over probes of (p x)^2 is an unbiased estimate of what those channels hold of x, at the
  // cost of four channels. Null when there are none beyond.
  static constexpr int kProbes = 4;
  const float* probes(int head, int level) const;

 private:
  struct Cell {
    std::vector<float> mu, a, b, variances;
    std::vector<uint8_t> widths;             // [levels][runs]
    std::vector<int> live;                   // [levels]
    std::vector<std::vector<float>> probes;  // [levels]
    bool seen = false;
  };
  Basis() = default;
  Status ParseHeader();
  const Cell& cell(int head) const { return cells_[static_cast<size_t>(head - info_.head0)]; }
  Status ParseCell(const std::byte* at, Cell* cell) const;
  Status CheckWidths(const Cell& cell) const;
  void Derive();  // what is computed from the bytes: live channels, probes, targets

  BasisInfo info_;
  BasisName name_ = 0;
  std::vector<std::byte> bytes_;
  std::vector<Cell> cells_;
  std::vector<double> targets_;
};

}  // namespace dyna
