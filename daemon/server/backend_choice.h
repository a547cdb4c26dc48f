// Which backend this machine gets, by `server.backend`: the one place that knows what was built in.
#pragma once

#include <memory>
#include <string>

#include "daemon/config/options.h"
#include "kernels/backend.h"
#include "kernels/fallback_backend.h"
#include "kernels/shared_device.h"
#include "schemas/status.h"

namespace dyna {

struct BackendChoice {
  // Clients' memory on the backend's device; null on the CPU. Outlives `backend`.
  std::unique_ptr<SharedDevice> shared;
  std::unique_ptr<Backend> backend;
  // `backend` itself where it is a device's with the CPU behind it, else null.
  FallbackBackend* device = nullptr;
  std::string gpu, driver;  // "" on the CPU
  std::string why_cpu;      // why `auto` took no device; "" otherwise
};

// INVALID where the configuration asks for what this build has not got.
Status CheckBackend(const config::Options& options);

// REQUIRES resolved options. UNSUPPORTED with what to do where `cuda` is asked for and there is no
// device, INTERNAL where the device fails at once. `auto` takes the CPU then, and says why.
Result<BackendChoice> ChooseBackend(const config::Options& options);

// `device` with `cpu` behind it, as ChooseBackend makes it. For tests that bring their own device.
// `shared`: what both can follow addresses of, or null.
BackendChoice WithFallback(std::unique_ptr<Backend> device, std::unique_ptr<Backend> cpu,
                           std::unique_ptr<SharedDevice> shared = nullptr);

}  // namespace dyna
