// The one symbol of dyna_ucx (ucx_worker_api.h).
#include <memory>
#include <string>

#include "client/transport/ucx/ucx_worker.h"

extern "C" __attribute__((visibility("default"))) void DynaUcxCreate(
    int abi, const dyna::UcxOptions& options, const dyna::UcxHost& host,
    dyna::Result<std::shared_ptr<dyna::UcxWorkerApi>>* worker) {
  if (abi != dyna::kUcxAbi) {
    *worker =
        dyna::Unsupported("dyna_ucx.so is of another build: interface " +
                          std::to_string(dyna::kUcxAbi) + ", asked for " + std::to_string(abi));
    return;
  }
  auto made = std::make_shared<dyna::ucx::UcxWorker>(options, host);
  const dyna::Status status = made->Open();
  if (status.ok()) {
    *worker = std::shared_ptr<dyna::UcxWorkerApi>(std::move(made));
  } else {
    *worker = status;
  }
}
