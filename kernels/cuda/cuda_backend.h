// The backend on a CUDA device: host memory is copied once into pinned memory, coded on the device
// by the batches of device_batch.h, and copied back. K and V that are on the device already are
// read and written where they lie; segments are the host's.
//
// Head sizes without kernels (tile_kernels.h), and large groups of a score, run on the CPU backend:
// same bytes, same bounds. Calls from several threads run beside
// each other, as many as there are lanes (lane.h); more wait. A failing device says INTERNAL of the
// jobs of its call (kernels/fallback_backend.h does them again).
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "kernels/backend.h"
#include "kernels/shared_device.h"

namespace dyna {

struct CudaDevice {
  std::string gpu;     // "NVIDIA H100 80GB HBM3 (sm_90)"
  std::string driver;  // "580.95.05, CUDA 13.0"; without the first where /sys does not say it
};

struct CudaOptions {
  // Calls at once. Each takes pinned and device memory for what it stages: 16 to 128 MiB of both.
  int lanes = 4;
  std::string_view isa = "auto";  // of the CPU backend beside it
  // With it that backend, too, may have jobs whose K and V are on the device. Outlives this one.
  SharedDevice* shared = nullptr;
};

// The first device of this process. UNSUPPORTED, with the reason, where there is none.
Result<CudaDevice> FindCudaDevice();
// UNSUPPORTED where there is no device or no driver. INTERNAL when the device fails.
Result<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options = {});

}  // namespace dyna
