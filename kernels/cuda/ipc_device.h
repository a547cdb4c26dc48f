// SharedDevice (kernels/shared_device.h) over CUDA IPC, on the device of MakeCudaBackend().
#pragma once

#include <memory>

#include "kernels/shared_device.h"

namespace dyna {

// UNSUPPORTED where there is no device or no driver.
Result<std::unique_ptr<SharedDevice>> MakeIpcDevice();

}  // namespace dyna
