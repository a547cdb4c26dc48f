// The door of rows on disk: whatever passes must pass again, and mean the same.
#include "schemas/record.h"

#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<uint8_t> bytes(data, data + size);
  const auto row = dyna::record::Parse(bytes);
  if (!row.ok()) {
    DYNA_FUZZ_CHECK(!row.status().message().empty());
    return 0;
  }
  DYNA_FUZZ_CHECK(dyna::record::Validate(*row).ok());
  const std::vector<uint8_t> once = dyna::record::Serialize(*row);
  const auto again = dyna::record::Parse(once);
  DYNA_FUZZ_CHECK(again.ok());
  DYNA_FUZZ_CHECK(dyna::record::Serialize(*again) == once);
  return 0;
}
