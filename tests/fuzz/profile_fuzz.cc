// The door of profile files, with the checksum made right.
#include "daemon/policy/basis/profile.h"

#include "kernels/crc32c.h"
#include "tests/fuzz/fuzz.h"

namespace {

void Try(std::span<const std::byte> bytes) {
  static const dyna::ContextSpec spec = dyna::fuzz::Spec();
  const auto profile = dyna::ParseProfile(bytes, spec, dyna::fuzz::kModel);
  if (!profile.ok()) {
    DYNA_FUZZ_CHECK(!profile.status().message().empty());
    return;
  }
  DYNA_FUZZ_CHECK(profile->bases.size() == spec.layers.size());
  const auto once = dyna::SerializeProfile(*profile);
  DYNA_FUZZ_CHECK(dyna::ParseProfile(once, spec, dyna::fuzz::kModel).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> bytes = dyna::fuzz::Copy(data, size);
  Try(bytes);
  if (size >= 64) {
    std::memset(&bytes[60], 0, 4);
    const uint32_t crc = dyna::Crc32c(bytes);
    std::memcpy(&bytes[60], &crc, 4);
    Try(bytes);
  }
  return 0;
}
