#include "client/transport/ucx_transport.h"

#include <utility>

#include "client/transport/ucx_loader.h"
#include "client/transport/ucx_pump.h"

namespace dyna {

UcxTransport::UcxTransport() = default;

Result<std::unique_ptr<UcxTransport>> UcxTransport::Create(asio::io_context& loop,
                                                           const UcxOptions& options) {
  DYNA_ASSIGN_OR_RETURN(const UcxModule module, LoadUcx());
  std::unique_ptr<UcxTransport> transport(new UcxTransport);
  transport->executor_ = std::make_unique<AsioExecutor>(loop);
  transport->pump_ = std::make_shared<UcxPump>(loop, options);
  UcxHost host;
  host.executor = transport->executor_.get();
  host.kick = [pump = transport->pump_] { pump->Kick(); };
  Result<std::shared_ptr<UcxWorkerApi>> worker = Internal("UCX module: no answer");
  module.create(kUcxAbi, options, host, &worker);
  if (!worker.ok()) return worker.status();
  transport->worker_ = std::move(*worker);
  transport->pump_->Start(transport->worker_);
  return transport;
}

UcxTransport::~UcxTransport() {
  if (!worker_) return;
  worker_->Shutdown(std::chrono::seconds(3));
  pump_->Stop();  // before the worker: the descriptor is the worker's
}

std::span<const std::byte> UcxTransport::address() const { return worker_->address(); }
std::string UcxTransport::version() const { return worker_->version(); }
bool UcxTransport::handles_cuda_memory() const { return worker_->handles_cuda_memory(); }

Result<std::shared_ptr<Channel>> UcxTransport::Connect(std::span<const std::byte> address,
                                                       const SessionToken& token,
                                                       const ChannelOptions& options,
                                                       FrameSink* sink) {
  return worker_->Connect(address, token, options, sink);
}

UcxStats UcxTransport::stats() const {
  UcxStats stats = worker_->stats();
  stats.wakeups = pump_->wakeups();
  stats.rescued_wakeups = pump_->rescued_wakeups();
  return stats;
}

}  // namespace dyna
