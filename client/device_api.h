// What the library needs of a GPU's driver, for K and V in memory of a GPU.
//
// Any thread; calls wait for the driver. The one of this machine is looked for when it is first
// needed: a machine without it answers UNSUPPORTED, and nothing links it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/shared_device.h"
#include "schemas/wire.h"

namespace dyna {

class DeviceApi : public DeviceCopier {
 public:
  // How the daemon can open these bytes. INVALID: not memory of a GPU, or more than was allocated.
  // UNSUPPORTED: no driver, or memory that has no handle of CUDA IPC (cudaMallocAsync, managed
  // memory, PyTorch's expandable segments).
  virtual Result<wire::RegisterRegion> Export(const std::byte* memory, uint64_t bytes) = 0;
  // Until what was submitted to `stream`, of the context that `memory` belongs to, is done.
  virtual Status Wait(const std::byte* memory, void* stream) = 0;
};

// libcuda.so.1
DeviceApi& CudaDriver();

}  // namespace dyna
