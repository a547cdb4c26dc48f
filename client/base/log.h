// One log for the process: asynchronous, so that no thread of ours waits for a disk or a pipe.
//
// When its queue is full the oldest line is dropped and counted. Any thread. Before StartLog and
// after StopLog lines go to stderr directly.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "schemas/status.h"

namespace dyna {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarn, kError, kOff };
Result<LogLevel> ParseLogLevel(std::string_view name);  // "debug", "info", "warn", "error", "off"

enum class LogFormat : uint8_t { kText, kJson };          // kJson: one object a line
Result<LogFormat> ParseLogFormat(std::string_view name);  // "text", "json"

struct LogOptions {
  LogLevel level = LogLevel::kInfo;
  std::string file;  // empty: stderr
  size_t queue_lines = 8192;
  LogFormat format = LogFormat::kText;
};

Status StartLog(const LogOptions& options);
void StopLog();  // writes what is queued
void SetLogLevel(LogLevel level);
bool LogEnabled(LogLevel level);
uint64_t DroppedLogLines();
void LogLine(LogLevel level, std::string_view line);

template <typename... Args>
void Log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (LogEnabled(level)) LogLine(level, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void LogDebug(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kDebug, format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogInfo(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kInfo, format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogWarn(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kWarn, format, std::forward<Args>(args)...);
}
template <typename... Args>
void LogError(fmt::format_string<Args...> format, Args&&... args) {
  Log(LogLevel::kError, format, std::forward<Args>(args)...);
}

}  // namespace dyna
