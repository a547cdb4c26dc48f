// A profile file: what is known of a model beforehand: bases and sensitivities (policy 2 and 4).
//
// Bytes, little-endian, each part padded to 16:
//   header 64 B { "DYNF", version u16, header bytes u16, context fingerprint 8 B, layers u32,
//                 flags u32 (0: has omega), total bytes u64, reserved zeros, crc32c u32 last: over
//                 the file with this field 0 }
//   per layer   { basis bytes u32 (0: none), cells u32 (0: none, else kv heads), reserved 8 B,
//                 the basis object (formats 1),
//                 cells x { omega_k, omega_v, k_error_l4, k_error_l2 } f32 }
//
// Thread rule: const after Parse.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "daemon/policy/sensitivity.h"
#include "kernels/basis.h"
#include "schemas/context.h"
#include "schemas/status.h"

namespace dyna {

inline constexpr size_t kMaxProfileBytes = size_t{1} << 31;

struct Profile {
  Fingerprint fingerprint = 0;
  std::vector<std::shared_ptr<const Basis>> bases;  // [layer], null: none
  std::vector<std::vector<CellSensitivity>> cells;  // [layer][kv head]; empty: no omega
  bool has_omega() const { return !cells.empty(); }
};

// The door. INVALID naming the field: another model's fingerprint, a shape that is not the
// context's, damage, a length that lies, a basis that does not parse, an omega out of bounds.
Result<Profile> ParseProfile(std::span<const std::byte> bytes, const ContextSpec& spec,
                             Fingerprint fingerprint);
std::vector<std::byte> SerializeProfile(const Profile& profile);

}  // namespace dyna
