// Loads the shared object dyna_ucx, and UCX with it, on first use: an engine that never asks for
// UCX never has its signal handlers, memory hooks and threads.
#pragma once

#include "client/transport/ucx_worker_api.h"
#include "schemas/status.h"

namespace dyna {

struct UcxModule {
  UcxCreateFunction create = nullptr;
};

// Looked for as $DYNA_UCX_MODULE, beside this code, in ../lib of it, and on the loader's path.
// Loaded once, never unloaded. UNSUPPORTED with the loader's message where it is missing.
Result<UcxModule> LoadUcx();

}  // namespace dyna
