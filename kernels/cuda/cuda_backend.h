// The backend on a CUDA device, for jobs in host memory: they are copied once into pinned memory,
// coded on the device by the batches of device_batch.h, and copied back.
//
// Head sizes without kernels (tile_kernels.h), and what is not yet worth the trip (query moments),
// run on the CPU backend: same bytes, same bounds. Calls from several threads take turns.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace dyna {

// UNSUPPORTED where there is no device or no driver. INTERNAL when the device fails.
Result<std::unique_ptr<Backend>> MakeCudaBackend();

}  // namespace dyna
