// The door of messages: whatever passes must pass again, and mean the same.
#include "schemas/wire.h"

#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::vector<uint8_t> bytes(data, data + size);
  const auto message = dyna::wire::Parse(bytes);
  if (!message.ok()) {
    DYNA_FUZZ_CHECK(!message.status().message().empty());
    return 0;
  }
  const std::vector<uint8_t> once = dyna::wire::Serialize(*message);
  const auto again = dyna::wire::Parse(once);
  DYNA_FUZZ_CHECK(again.ok());
  DYNA_FUZZ_CHECK(dyna::wire::Serialize(*again) == once);
  return 0;
}
