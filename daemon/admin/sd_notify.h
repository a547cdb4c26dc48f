// Tells systemd (Type=notify) how the daemon is: "READY=1", "STOPPING=1", "STATUS=...",
// "RELOADING=1", "WATCHDOG=1". Any thread; never blocks.
#pragma once

#include <cstdint>
#include <string_view>

namespace dyna::admin {

// True when it was sent; false without NOTIFY_SOCKET, that is when nobody wants to know.
bool SdNotify(std::string_view state);

// How often "WATCHDOG=1" is expected, in microseconds; 0: never. Call it twice as often.
uint64_t SdWatchdogMicros();

}  // namespace dyna::admin
