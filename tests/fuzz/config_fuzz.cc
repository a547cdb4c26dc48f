// The door of the configuration: no text crashes it, and what it accepts survives being printed.
#include "daemon/config/config.h"

#include <string>

#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto options = dyna::config::Parse(text, "fuzz.toml");
  if (!options.ok()) {
    DYNA_FUZZ_CHECK(!options.status().message().empty());
    return 0;
  }
  const std::string printed = dyna::config::Print(*options);
  const auto again = dyna::config::Parse(printed, "printed.toml");
  DYNA_FUZZ_CHECK(again.ok());
  DYNA_FUZZ_CHECK(dyna::config::Print(*again) == printed);
  return 0;
}
