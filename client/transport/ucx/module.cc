// The one symbol of dyna_ucx (ucx_worker_api.h).
#include <memory>
#include <string>

#include "client/transport/ucx/ucx_worker.h"

namespace dyna::ucx {
namespace {

class SharedContext final : public UcxContextApi {
 public:
  explicit SharedContext(const UcxOptions& options) : options_(options) {}
  Status Open() { return context_->Open(options_); }
  std::string version() const override { return ucp_get_version_string(); }
  bool handles_cuda_memory() const override { return context_->handles_cuda(); }
  Result<std::shared_ptr<UcxWorkerApi>> OpenWorker(const UcxHost& host) override {
    auto worker = std::make_shared<UcxWorker>(context_, options_, host);
    DYNA_RETURN_IF_ERROR(worker->Open());
    return std::shared_ptr<UcxWorkerApi>(std::move(worker));
  }

 private:
  const UcxOptions options_;
  const std::shared_ptr<Context> context_ = std::make_shared<Context>();
};

}  // namespace
}  // namespace dyna::ucx

extern "C" __attribute__((visibility("default"))) void DynaUcxCreate(
    int abi, const dyna::UcxOptions& options,
    dyna::Result<std::shared_ptr<dyna::UcxContextApi>>* context) {
  if (abi != dyna::kUcxAbi) {
    *context =
        dyna::Unsupported("dyna_ucx.so is of another build: interface " +
                          std::to_string(dyna::kUcxAbi) + ", asked for " + std::to_string(abi));
    return;
  }
  auto made = std::make_shared<dyna::ucx::SharedContext>(options);
  const dyna::Status status = made->Open();
  if (status.ok()) {
    *context = std::shared_ptr<dyna::UcxContextApi>(std::move(made));
  } else {
    *context = status;
  }
}
