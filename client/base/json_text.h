// Text as the inside of a JSON string. Any thread.
#pragma once

#include <string>
#include <string_view>

namespace dyna {

// Without the quotes around it: quotes, backslashes and control characters escaped; bytes that are
// no UTF-8 become U+FFFD, one each. What a client sent may be in it.
std::string JsonEscape(std::string_view text);

}  // namespace dyna
