// The daemon, put together: builds every part, owns the threads, stops in order (design 3 and 4).
//
// Run() is the loop's thread: call it from main. Build fails with a Status that says what to do.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "daemon/config/options.h"
#include "daemon/server/backend_choice.h"
#include "schemas/status.h"

namespace dyna {

class Server {
 public:
  // `options` are resolved (config/machine.h), `backend` is what they ask for. `reload` gives the
  // options of the file again, for SIGHUP; null: there is no file.
  static Result<std::unique_ptr<Server>> Build(config::Options options, BackendChoice backend,
                                               std::function<Result<config::Options>()> reload);
  ~Server();

  // Until SIGTERM or SIGINT, then drains. The exit code: 75 (EX_TEMPFAIL) where a device was lost:
  // what is durable is flushed, and a new process has the device again or does without.
  int Run();

  uint16_t admin_port() const;

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace dyna
