// The admin page: /metrics, /livez, /readyz, /status and / over HTTP, for operators and probes.
//
// Runs on the loop of its io_context and nowhere else; answers are built there when asked for.
// Connections, headers and time are bounded; bodies are refused. Loopback unless configured.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/base/asio.h"
#include "daemon/admin/metrics.h"
#include "schemas/status.h"

namespace dyna::admin {

struct HttpOptions {
  std::string address = "127.0.0.1";  // numeric
  uint16_t port = 0;                  // 0: any free one
  uint32_t connections = 32;          // more are closed at once
  uint32_t timeout_ms = 10'000;       // for a request to come, and for its answer to be taken
};

// What is asked on the loop for a page. A snapshot walks over all that is held; whoever asks every
// second whether the daemon is ready must not cost that.
struct Facts {
  std::function<Snapshot()> snapshot;
  std::function<std::vector<std::string>()> not_ready;  // why; empty: ready
};

class HttpServer {
 public:
  static Result<std::unique_ptr<HttpServer>> Listen(asio::io_context& loop,
                                                    const HttpOptions& options, Facts facts);
  ~HttpServer();  // stops listening and closes every connection; on the loop, or after it
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  uint16_t port() const;

 private:
  class Impl;
  explicit HttpServer(std::shared_ptr<Impl> impl);
  const std::shared_ptr<Impl> impl_;
};

}  // namespace dyna::admin
