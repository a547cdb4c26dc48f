#include "daemon/server/backend_choice.h"

#include <algorithm>
#include <utility>

#include "kernels/host_copy_backend.h"

#ifdef DYNA_WITH_CUDA
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/ipc_device.h"
#endif

namespace dyna {
namespace {

#ifdef DYNA_WITH_CUDA
// A lane holds memory of host and device. As many as codec threads: with half of them the others
// waited, at half the rate (tests/bench/RESULTS.md).
constexpr uint32_t kMaxLanes = 16;

Status OpenCuda(const config::Options& o, BackendChoice* choice) {
  DYNA_ASSIGN_OR_RETURN(const CudaDevice found, FindCudaDevice());
  CudaOptions options;
  options.lanes = static_cast<int>(std::clamp(o.server.codec_threads, 1u, kMaxLanes));
  options.isa = o.server.isa;
  DYNA_ASSIGN_OR_RETURN(std::unique_ptr<SharedDevice> shared, MakeIpcDevice());
  options.shared = shared.get();
  DYNA_ASSIGN_OR_RETURN(std::unique_ptr<Backend> device, MakeCudaBackend(options));
  DYNA_ASSIGN_OR_RETURN(std::unique_ptr<Backend> cpu, MakeCpuBackend(o.server.isa));
  *choice = WithFallback(std::move(device), std::move(cpu), std::move(shared));
  choice->gpu = found.gpu;
  choice->driver = found.driver;
  return {};
}
#else
Status OpenCuda(const config::Options&, BackendChoice*) {
  return Unsupported("this build has no CUDA backend");
}
#endif

}  // namespace

Status CheckBackend(const config::Options& o) {
#ifndef DYNA_WITH_CUDA
  if (o.server.backend == "cuda")
    return Invalid(
        "server.backend: this build has no CUDA backend (configure it with DYNA_CUDA=ON, or say "
        "auto or cpu)");
#endif
  (void)o;
  return {};
}

BackendChoice WithFallback(std::unique_ptr<Backend> device, std::unique_ptr<Backend> cpu,
                           std::unique_ptr<SharedDevice> shared) {
  BackendChoice choice;
  if (shared) cpu = std::make_unique<HostCopyBackend>(std::move(cpu), shared.get());
  choice.shared = std::move(shared);
  auto both = std::make_unique<FallbackBackend>(std::move(device), std::move(cpu));
  choice.device = both.get();
  choice.backend = std::move(both);
  return choice;
}

Result<BackendChoice> ChooseBackend(const config::Options& o) {
  BackendChoice choice;
  if (o.server.backend != "cpu") {
    const Status opened = OpenCuda(o, &choice);
    if (opened.ok()) return choice;
    if (o.server.backend == "cuda")
      return Status(opened.code(),
                    "server.backend = cuda: " + std::string(opened.message()) +
                        ". Install the NVIDIA driver and let this process see the GPU (in a "
                        "container: --gpus all), or set server.backend to auto or cpu");
    choice.why_cpu = std::string(opened.message());
  }
  DYNA_ASSIGN_OR_RETURN(choice.backend, MakeCpuBackend(o.server.isa));
  return choice;
}

}  // namespace dyna
