// Small things asked of the operating system. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "schemas/status.h"

namespace dyna {

// From the kernel's generator. Never fails once the machine has booted; aborts if it does, because
// a guessable token is worse than no service.
void RandomBytes(std::span<std::byte> out);
uint64_t RandomU64();

// Of the calling thread; cut to the 15 characters that Linux keeps.
void SetThreadName(std::string_view name);

// "cannot open /x: No such file or directory" as INTERNAL (or `code`).
Status ErrnoStatus(std::string_view what, int error, StatusCode code = StatusCode::kInternal);

}  // namespace dyna
