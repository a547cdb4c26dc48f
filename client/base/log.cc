#include "client/base/log.h"

#include <spdlog/async.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <mutex>

#include "client/base/json_text.h"
#include "client/base/os.h"

namespace dyna {
namespace {

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      break;
  }
  return spdlog::level::off;
}

struct Sink {
  std::shared_ptr<spdlog::details::thread_pool> pool;
  std::shared_ptr<spdlog::async_logger> logger;
};

std::atomic<LogLevel> threshold{LogLevel::kInfo};
std::atomic<bool> escapes{false};         // lines go into a JSON string
std::atomic<uint64_t> dropped_before{0};  // by sinks that are stopped
std::mutex mutex;                         // held for a push only, never for writing
Sink& CurrentSink() {
  static Sink* sink = new Sink;  // outlives every thread that may still log at exit
  return *sink;
}

}  // namespace

Result<LogLevel> ParseLogLevel(std::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warn") return LogLevel::kWarn;
  if (name == "error") return LogLevel::kError;
  if (name == "off") return LogLevel::kOff;
  return Invalid("log level \"" + std::string(name) + "\": one of debug, info, warn, error, off");
}

Result<LogFormat> ParseLogFormat(std::string_view name) {
  if (name == "text") return LogFormat::kText;
  if (name == "json") return LogFormat::kJson;
  return Invalid("log format \"" + std::string(name) + "\": one of text, json");
}

Status StartLog(const LogOptions& options) {
  Sink next;
  try {
    spdlog::sink_ptr sink;
    if (options.file.empty()) {
      sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    } else {
      sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file);
    }
    next.pool = std::make_shared<spdlog::details::thread_pool>(options.queue_lines, 1,
                                                               [] { SetThreadName("dyna-log"); });
    next.logger = std::make_shared<spdlog::async_logger>(
        "dyna", std::move(sink), next.pool, spdlog::async_overflow_policy::overrun_oldest);
    next.logger->set_level(spdlog::level::trace);  // `threshold` decides
    next.logger->set_pattern(
        options.format == LogFormat::kJson
            ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","message":"%v"})"
            : "%Y-%m-%dT%H:%M:%S.%e%z %l %v");
    next.logger->flush_on(spdlog::level::warn);
  } catch (const std::exception& error) {
    return {StatusCode::kInternal, std::string("log: ") + error.what()};
  }
  StopLog();
  threshold = options.level;
  std::lock_guard lock(mutex);
  escapes = options.format == LogFormat::kJson;
  CurrentSink() = std::move(next);
  return Status::Ok();
}

void StopLog() {
  Sink last;
  {
    std::lock_guard lock(mutex);
    last = std::move(CurrentSink());
    CurrentSink() = {};
    escapes = false;
  }
  if (!last.logger) return;
  dropped_before += last.pool->overrun_counter();
  last.logger->flush();
  last.logger.reset();
  last.pool.reset();  // joins its thread after the queue is written
}

void SetLogLevel(LogLevel level) { threshold = level; }

bool LogEnabled(LogLevel level) { return level >= threshold.load(std::memory_order_relaxed); }

uint64_t DroppedLogLines() {
  std::lock_guard lock(mutex);
  const auto& pool = CurrentSink().pool;
  return dropped_before + (pool ? pool->overrun_counter() : 0);
}

void LogLine(LogLevel level, std::string_view line) {
  std::lock_guard lock(mutex);
  std::string escaped;
  if (escapes) line = escaped = JsonEscape(line);
  if (const auto& logger = CurrentSink().logger) {
    logger->log(ToSpdlog(level), spdlog::string_view_t(line.data(), line.size()));
  } else {
    std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
  }
}

}  // namespace dyna
