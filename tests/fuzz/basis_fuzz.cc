// The door of bases, with the checksum made right: an attacker can compute one too.
#include "kernels/basis.h"

#include "kernels/basis_layout.h"
#include "kernels/crc32c.h"
#include "tests/fuzz/fuzz.h"

namespace dyna {
namespace {

void Try(std::span<const std::byte> bytes) {
  const auto basis = Basis::Parse(bytes);
  if (!basis.ok()) return;
  const Basis& b = **basis;
  DYNA_FUZZ_CHECK(b.bytes().size() == bytes.size());
  for (int head = b.info().head0; head < b.info().head0 + b.info().kv_heads; ++head)
    for (int level = 0; level < b.info().levels; ++level) {
      DYNA_FUZZ_CHECK(b.live_channels(head, level) <= b.info().head_dim);
      DYNA_FUZZ_CHECK(b.mean_bits(head, level) >= 0 && b.mean_bits(head, level) <= 8);
      // Unbounded is an answer here, not a number is not.
      DYNA_FUZZ_CHECK(!std::isnan(b.relative_error(head, level)));
    }
  DYNA_FUZZ_CHECK(b.LevelOf(2) < b.info().levels);
}

}  // namespace
}  // namespace dyna

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> bytes = dyna::fuzz::Copy(data, size);
  dyna::Try(bytes);
  if (size >= dyna::kBasisHeaderBytes) {
    std::memset(&bytes[dyna::basis_layout::kCrcAt], 0, 4);
    const uint32_t crc = dyna::Crc32c(bytes);
    std::memcpy(&bytes[dyna::basis_layout::kCrcAt], &crc, 4);
    dyna::Try(bytes);
  }
  return 0;
}
