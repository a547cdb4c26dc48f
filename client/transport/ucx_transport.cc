#include "client/transport/ucx_transport.h"

#include <thread>
#include <utility>
#include <vector>

#include "client/transport/ucx_loader.h"
#include "client/transport/ucx_pump.h"

namespace dyna {

UcxEnd::~UcxEnd() {
  if (!connected_) worker_->Close();
}

std::span<const std::byte> UcxEnd::address() const { return worker_->address(); }

Result<std::shared_ptr<Channel>> UcxEnd::Connect(std::span<const std::byte> address,
                                                 const SessionToken& token,
                                                 const ChannelOptions& options, FrameSink* sink) {
  auto channel = worker_->Connect(address, token, options, sink);
  connected_ |= channel.ok();
  return channel;
}

UcxTransport::UcxTransport(asio::io_context& loop, const UcxOptions& options)
    : loop_(loop), options_(options), executor_(loop) {}

Result<std::unique_ptr<UcxTransport>> UcxTransport::Create(asio::io_context& loop,
                                                           const UcxOptions& options) {
  DYNA_ASSIGN_OR_RETURN(const UcxModule module, LoadUcx());
  std::unique_ptr<UcxTransport> transport(new UcxTransport(loop, options));
  Result<std::shared_ptr<UcxContextApi>> context = Internal("UCX module: no answer");
  module.create(kUcxAbi, options, &context);
  if (!context.ok()) return context.status();
  transport->context_ = std::move(*context);
  return transport;
}

UcxTransport::~UcxTransport() {
  std::vector<std::shared_ptr<UcxWorkerApi>> workers;  // they leave the map as they end
  for (const auto& [pump, worker] : workers_) workers.push_back(worker);
  for (const auto& worker : workers) worker->Close();
  const TimePoint end = std::chrono::steady_clock::now() + options_.close_timeout;
  for (bool drained = false; !drained && std::chrono::steady_clock::now() < end;) {
    drained = true;
    for (const auto& worker : workers) drained &= worker->Drain();
    std::this_thread::yield();
  }
  for (const auto& worker : workers) worker->End();
}

std::string UcxTransport::version() const { return context_->version(); }
bool UcxTransport::handles_cuda_memory() const { return context_->handles_cuda_memory(); }

Result<std::unique_ptr<UcxEnd>> UcxTransport::Open() {
  if (workers_.size() >= options_.max_workers)
    return Status(StatusCode::kQuota,
                  "UCX: " + std::to_string(options_.max_workers) + " workers, open and closing");
  const auto pump = std::make_shared<UcxPump>(loop_, options_, stats_);
  UcxHost host;
  host.executor = &executor_;
  host.stats = stats_;
  host.kick = [pump] { pump->Kick(); };
  host.ending = [this, pump] {
    pump->Stop();
    workers_.erase(pump.get());
  };
  DYNA_ASSIGN_OR_RETURN(auto worker, context_->OpenWorker(host));
  workers_.emplace(pump.get(), worker);
  pump->Start(worker);
  return std::make_unique<UcxEnd>(std::move(worker));
}

UcxStats UcxTransport::stats() const { return *stats_; }

}  // namespace dyna
